"""What a process that ends with an error may leave for the report: ``error-<role>-<rank>.json`` in the job's directory.

    {"time": SECONDS, "error": "one line", "caused_by": "worker 2" or null}

``time`` is counted from the epoch; ``caused_by`` names the process whose end was the error. The file is to appear at
once (written under another name, then renamed) and has at most 8 KiB. The user's program writes it, so nothing in it is
trusted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from .json_file import read_json

_LARGEST = 8192  # bytes


@dataclass(frozen=True)
class ErrorRecord:
    """A well-formed record; its texts are fit to print on one line."""

    time: float
    error: str
    caused_by: str | None


def read_error_record(directory: Path, role: str, rank: int) -> ErrorRecord | None:
    """The record of this process; None if there is none, or a malformed one."""
    match read_json(_path(directory, role, rank), _LARGEST):
        case {"time": float() | int() as time, "error": str(error), "caused_by": None | str() as caused_by}:
            return ErrorRecord(time, _printable(error), _printable(caused_by) if caused_by else None)
        case _:
            return None


def forget_error_record(directory: Path, role: str, rank: int) -> None:
    """Remove it: the process is started again, and what it left before says nothing about its end."""
    with contextlib.suppress(OSError):
        _path(directory, role, rank).unlink()


def _path(directory: Path, role: str, rank: int) -> Path:
    return directory / f"error-{role}-{rank}.json"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)

"""What a process that ends with an error may leave for the report: ``error-<role>-<rank>.json`` in the job's directory.

    {"time": SECONDS, "error": "one line", "caused_by": "worker 2" or null}

``time`` is counted from the epoch; ``caused_by`` names the process whose end was the error. The file is to appear at
once (written under another name, then renamed) and has at most 8 KiB. The user's program writes it, so nothing in it is
trusted.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

_LARGEST = 8192  # bytes


@dataclass(frozen=True)
class ErrorRecord:
    """A well-formed record; its texts are fit to print on one line."""

    time: float
    error: str
    caused_by: str | None


def read_error_record(directory: Path, role: str, rank: int) -> ErrorRecord | None:
    """The record of this process; None if there is none, or a malformed one."""
    try:
        # Neither waits for the writer of a FIFO nor follows a link out of the directory.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(directory / f"error-{role}-{rank}.json", flags)
        try:
            data = os.read(descriptor, _LARGEST + 1)
        finally:
            os.close(descriptor)
        content = json.loads(data) if len(data) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):  # the last: 8 KiB of opening brackets
        return None
    match content:
        case {"time": float() | int() as time, "error": str(error), "caused_by": None | str() as caused_by}:
            return ErrorRecord(time, _printable(error), _printable(caused_by) if caused_by else None)
        case _:
            return None


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)

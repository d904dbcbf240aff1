"""Whom the scheduler has given up: ``lost.json`` in the job's directory, which it replaces when there is another one.

    [["worker", 2, 4711], ...]         role, rank, pid

A process that exists but does not answer (SIGSTOP) must be killed before it can be started again.
"""

from __future__ import annotations

import os
from pathlib import Path

from .json_file import read_json

_LARGEST = 1 << 20  # bytes


class LostList:
    """A look at the file that costs one stat while nothing changes."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "lost.json"
        self._seen: tuple[int, int] | None = None  # inode and time of what was read last

    def news(self) -> list[tuple[str, int, int]]:
        """All its entries, if it was replaced since the last look; malformed ones are left out."""
        try:
            status = os.stat(self._path, follow_symlinks=False)
        except OSError:
            return []
        version = status.st_ino, status.st_mtime_ns
        if version == self._seen:
            return []
        self._seen = version
        entries = read_json(self._path, _LARGEST)
        return [entry for item in entries if (entry := _entry(item))] if isinstance(entries, list) else []


def _entry(item: object) -> tuple[str, int, int] | None:
    match item:
        case [str(role), int(rank), int(pid)]:
            return role, rank, pid
        case _:
            return None

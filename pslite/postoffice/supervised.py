"""What the scheduler and the launcher tell each other about the job's processes, by files in the job's directory."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from .membership import Hint

LOOK_FOR_THE_END = 0.5  # seconds between two looks of a process that wants to join whether there is a job


class Supervised:
    """The launcher's table of processes, and the scheduler's list of those it has given up.

    ``processes.json`` says what runs and what has ended; ``lost.json``, ``[[role, rank, pid], ...]``, names processes
    that do not answer though they may exist, for the launcher to end.
    """

    def __init__(self, directory: Path) -> None:
        self._table, self._lost = directory / "processes.json", directory / "lost.json"
        self._seen = (0, 0)  # when the table was changed, in ns, and its inode
        self._hints: list[Hint] = []
        self._reported: list[tuple[str, int, int]] = []

    def read(self) -> list[Hint]:
        """The table as it is; empty if there is none."""
        try:
            status = self._table.stat()
            if (seen := (status.st_mtime_ns, status.st_ino)) != self._seen:
                table = json.loads(self._table.read_text())
                self._hints = [Hint(p["role"], p["rank"], p["pid"], p["exit"], p.get("restarts", 0)) for p in table]
                self._seen = seen
        except (OSError, ValueError, KeyError, TypeError):  # by hand there is no table, and it is only a hint
            return []
        return self._hints

    def report(self, given_up: Sequence[tuple[str, int, int]]) -> None:
        """Say which processes the launcher should end."""
        if self._reported == list(given_up):
            return
        self._reported = list(given_up)
        aside = self._lost.with_suffix(".new")
        aside.write_text(json.dumps(self._reported))
        os.replace(aside, self._lost)


def has_ended(directory: str) -> bool:
    """Whether the launcher says that a job has ended well."""
    table = Supervised(Path(directory)).read() if directory else []
    return any(hint.role == "scheduler" and hint.exit == 0 for hint in table)

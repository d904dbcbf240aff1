"""Helpers: the launcher as a user runs it, and a look at what it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness import is_running, wait_until

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, str(ROOT / "tools" / "launch.py")]
LONGEST = 30  # seconds: far above what anything here takes, so that a hang is a failure

#: Each process leaves its pid in the directory PIDS.
NOTE_PID = """
import os, signal, sys, time
role, rank = os.environ["DMLC_ROLE"], os.environ.get("DMLC_WORKER_ID") or os.environ.get("DMLC_SERVER_ID") or "0"
with open(os.path.join(os.environ["PIDS"], role + rank + ".tmp"), "w") as file:
    file.write(str(os.getpid()))
os.rename(file.name, file.name[:-4])
"""
SLEEP = NOTE_PID + "time.sleep(60)\n"


def environment(**extra: str) -> dict[str, str]:
    """A plain environment: nothing of the test runner's own settings reaches the launcher."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1"} | extra


def launch(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher to its end."""
    return subprocess.run(
        [*LAUNCH, *arguments], env=environment(**env), cwd=cwd, capture_output=True, text=True, timeout=LONGEST
    )


@contextmanager
def launched(*arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The launcher, running; killed at the end if it still is."""
    process = subprocess.Popen(
        [*LAUNCH, *arguments], env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def pids(directory: Path, count: int) -> dict[str, int]:
    """By role and rank (``worker0``), once so many processes have left theirs."""
    wait_until(lambda: len(_notes(directory)) == count, LONGEST, f"the start of {count} processes")
    return {note.name: int(note.read_text()) for note in _notes(directory)}


def _notes(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.suffix != ".tmp"]


def children(pid: int) -> list[int]:
    """Its child processes."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_all(found: dict[str, int]) -> None:
    """So that a failing test leaves nothing either."""
    for pid in found.values():
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)

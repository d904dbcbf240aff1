"""Jobs of the launcher come to all their ends, and nothing stays of them: processes, files, shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import processes, wait_until

from .jobs import LONGEST, SCRIPTS, environment, took

pytestmark = pytest.mark.processes

CYCLES = int(os.environ.get("END_CYCLES", 1))  # of each end; 40 in a soak
STATUS = {"normal": 0, "exception": 1, "SIGINT": 130, "SIGTERM": 143, "SIGKILL": 137}


@pytest.mark.timeout(60 * CYCLES)
@pytest.mark.parametrize("how", STATUS)
def test_nothing_stays_of_a_job(how: str, tmp_path: Path) -> None:
    shared = named_memory()
    longest = 0.0
    for cycle in range(CYCLES):
        notes, temporary = tmp_path / f"notes-{cycle}", tmp_path / f"tmp-{cycle}"
        notes.mkdir()
        temporary.mkdir()
        longest = max(longest, end(how, notes, temporary))
        assert list(temporary.iterdir()) == [], "files or sockets are left"
        assert named_memory() <= shared
        assert processes.children() == []
    took(time.monotonic() - longest, f"was the longest of {CYCLES} ends by {how}")


def named_memory() -> set[str]:
    """Shared memory with a name; directories there are other tests'."""
    return {entry.name for entry in os.scandir("/dev/shm") if entry.is_file()}


def end(how: str, notes: Path, temporary: Path) -> float:
    """Run a job to this end; returns the seconds from its cause to the end of the launcher."""
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", "-n", "2", "-s", "1", sys.executable, SCRIPTS / "ending.py", how, notes],
        env=environment(TMPDIR=str(temporary)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as job:
        try:
            pids = [notes / "pid-0", notes / "pid-1"]
            wait_until(lambda: all(pid.exists() for pid in pids) or job.poll() is not None, LONGEST, "the pushes")
            begin = time.monotonic()
            if how == "SIGKILL":
                os.kill(int(pids[1].read_text()), signal.SIGKILL)
            elif how.startswith("SIG"):
                job.send_signal(signal.Signals[how])
            _, words = job.communicate(timeout=LONGEST)
        finally:
            job.kill()
    assert job.returncode == STATUS[how], words.decode()
    return time.monotonic() - begin

"""Processes leave in any order and in any way: nothing is lost, nothing hangs, nothing is left behind."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .jobs import SCRIPTS, HandMadeJob, launch, report

pytestmark = pytest.mark.processes

SOON = 5.0  # seconds from the last worker's decision to leave to the end of all processes
LEAVING = SCRIPTS / "leaving.py"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A TMPDIR whose path is short enough for the launcher, which must be empty at the end."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as path:
        yield Path(path)
        assert list(Path(path).iterdir()) == []


@pytest.mark.parametrize("kind", ["dist_sync", "dist_async"])
@pytest.mark.parametrize("ways", [
    ["see", "exit", "end"],  # rank 0 is the last
    ["see", "close", "with"],
    ["exit", "see", "close"],  # rank 0 is the first
], ids=" ".join)  # fmt: skip
def test_the_last_push_before_the_end_is_in(kind: str, ways: list[str], job: HandMadeJob, temporary: Path) -> None:
    job.start_all(LEAVING, kind, *ways, TMPDIR=str(temporary))
    [witness] = [worker for worker in job.of("worker") if ways[int(worker.said("rank"))] == "see"]
    witness.said("seen")
    seen = time.monotonic()
    assert job.wait() - seen < SOON
    assert [p.status for p in job.processes] == [0] * 5, job.processes
    assert all(p.stderr == "" for p in job.processes), job.processes


def test_a_status_of_its_own(job: HandMadeJob) -> None:
    """sys.exit(3) is no exception: the others go on, and the launcher (or a shell) sees the status."""
    job.start_all(LEAVING, "dist_async", "see", "fail", "close")
    job.worker(0).said("seen")
    seen = time.monotonic()
    assert job.wait() - seen < SOON
    assert [job.worker(rank).status for rank in range(3)] == [0, 3, 0], job.processes


@pytest.mark.parametrize("ways", [["see", "exit", "close"], ["end", "with", "see"]], ids=" ".join)
def test_the_launcher_leaves_nothing(ways: list[str], temporary: Path) -> None:
    done = launch("-n", 3, "-s", 2, sys.executable, LEAVING, "dist_async", *ways, TMPDIR=str(temporary))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "seen 60" in done.stdout


def test_the_launcher_leaves_nothing_after_a_failure(temporary: Path) -> None:
    ways = ("see", "fail", "close")
    done = launch("-n", 3, "-s", 2, sys.executable, LEAVING, "dist_async", *ways, TMPDIR=str(temporary))
    assert done.returncode == 3
    assert "worker 1" in report(done).splitlines()[0], report(done)

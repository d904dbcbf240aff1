"""Workers of real jobs die, or stop, between two pushes of a step: they are started again, or the others go on."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from .jobs import SCRIPTS, launch

pytestmark = pytest.mark.processes

PYTHON = [sys.executable, SCRIPTS / "steps.py"]
STEPS = 12
TYPES = ["dist_sync", "dist_async"]


def results(done: subprocess.CompletedProcess[str]) -> dict[int, tuple[int, str]]:
    """By rank: the step it began with, and the two values."""
    lines = re.findall(r"rank (\d) began with (\d+), ranks \[.*\]: (.*)", done.stdout)
    return {int(rank): (int(began), values) for rank, began, values in lines}


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("type", TYPES)
def test_a_worker_is_started_again(type: str, how: str) -> None:
    done = launch("-n", 3, "-s", 2, "--max-restarts", 1, *PYTHON, type, STEPS, f"1:5:{how}")
    assert done.returncode == 0, done.stderr
    total = 6 if type == "dist_sync" else 6 * STEPS
    found = results(done)
    assert {values for _, values in found.values()} == {f"{total} {total}"}, done.stdout
    assert {rank: began for rank, (began, _) in found.items()} == {0: 0, 1: 4, 2: 0}
    assert "ended well after 1 restart: worker 1 (1)" in done.stderr


def test_all_workers_are_started_again() -> None:
    events = ["0:3:SIGKILL", "1:5:SIGKILL", "2:5:SIGKILL"]
    done = launch("-n", 3, "-s", 2, "--max-restarts", 1, *PYTHON, "dist_sync", STEPS, *events)
    assert done.returncode == 0, done.stderr
    assert {values for _, values in results(done).values()} == {"6 6"}, done.stdout


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("type", TYPES)
def test_the_others_go_on_without_it(type: str, how: str) -> None:
    done = launch("-n", 3, "-s", 2, "--on-worker-lost", "shrink", *PYTHON, type, STEPS, f"1:5:{how}")
    assert done.returncode == 0, done.stderr
    others = 4 * STEPS
    # Of the last push to "a" nobody knows whether it has left the process that was stopped.
    either = {"4 4"} if type == "dist_sync" else {f"{others + 2 * n} {others + 2 * 5}" for n in (5, 6)}
    found = {rank: value for rank, (_, value) in results(done).items()}
    assert set(found) == {0, 2} and len(set(found.values())) == 1 and set(found.values()) <= either, done.stdout
    assert "the others go on without it" in done.stderr


def test_a_worker_that_dies_more_often_than_allowed_ends_the_job() -> None:
    script = "import kvstore, os, signal; kvstore.serve(); kv = kvstore.create('dist_sync'); os.kill(os.getpid(), 9)"
    done = launch("-n", 2, "-s", 1, "--max-restarts", 2, sys.executable, "-c", script)
    assert done.returncode == 137, done.stderr
    assert "gave up after 2 restarts" in done.stderr

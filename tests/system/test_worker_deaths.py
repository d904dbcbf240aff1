"""Workers of real jobs die between two pushes of a step; ``tests/cases`` has the cases of one worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .jobs import SCRIPTS, launch

pytestmark = pytest.mark.processes

PYTHON = [sys.executable, SCRIPTS / "steps.py"]
STEPS = 12


def test_all_workers_are_started_again() -> None:
    events = ["0:3:SIGKILL", "1:5:SIGKILL", "2:5:SIGKILL"]
    done = launch("-n", 3, "-s", 2, "--max-restarts", 1, *PYTHON, "dist_sync", STEPS, *events)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": 6 6\n") == 3, done.stdout


def test_a_worker_that_dies_more_often_than_allowed_ends_the_job() -> None:
    script = "import kvstore, os, signal; kvstore.serve(); kv = kvstore.create('dist_sync'); os.kill(os.getpid(), 9)"
    done = launch("-n", 2, "-s", 1, "--max-restarts", 2, sys.executable, "-c", script)
    assert done.returncode == 137, done.stderr
    assert "gave up after 2 restarts" in done.stderr


def test_the_next_worker_goes_on_with_the_duties_of_worker_0(tmp_path: Path) -> None:
    script = [sys.executable, SCRIPTS / "led.py", tmp_path]
    done = launch("-n", 3, "-s", 2, "--on-worker-lost", "shrink", *script, MXNET_KVSTORE_BIGARRAY_BOUND="2000")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("live [1, 2] w [-3.] v [-2.]\n") == 2, done.stdout

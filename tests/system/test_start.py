"""How a job comes together: by hand and by the launcher, one after the other, and without strangers."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from .jobs import EXAMPLES, GRACE, SCRIPTS, HandMadeJob, launch

pytestmark = pytest.mark.processes

HELLO = EXAMPLES / "hello.py"
MISFIT = SCRIPTS / "misfit.py"


def test_seven_processes_by_hand_train_as_under_the_launcher(job: HandMadeJob, tmp_path: Path) -> None:
    """With nothing but the DMLC_ variables; the weights are the same to the bit."""
    job.workers, job.servers = 4, 2
    script = EXAMPLES / "train_images.py"
    train = ["--kv-store", "dist_sync", "--steps", 20]
    job.start_all(script, *train, "--save-weights", tmp_path / "hand.npz", "--json", tmp_path / "hand.json")
    job.wait()
    assert [p.status for p in job.processes] == [0] * 7, job.processes
    done = launch("-n", 4, "-s", 2, sys.executable, script, *train, "--save-weights", tmp_path / "launched.npz")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "hand.json").read_text())
    assert (result["workers"], result["servers"], result["steps"]) == (4, 2, 20)
    with np.load(tmp_path / "hand.npz") as hand, np.load(tmp_path / "launched.npz") as launched:
        assert hand.files == launched.files and len(hand.files) == 4
        for name in hand.files:
            assert hand[name].tobytes() == launched[name].tobytes()


def test_two_jobs_one_after_the_other_at_the_same_address(job: HandMadeJob) -> None:
    for _ in range(2):
        job.start_all(HELLO, "dist_sync")
        job.wait()
        for worker in job.of("worker")[-3:]:
            assert worker.stdout.endswith("pulls [6. 6. 6.]\n"), worker
        assert [p.status for p in job.processes[-5:]] == [0] * 5, job.processes


def test_a_worker_that_slept_through_its_job_does_not_disturb_the_next(job: HandMadeJob) -> None:
    """It wakes up in the second job, whose scheduler tells it that it is no member."""
    job.start_all(MISFIT, "barrier", "stopped")
    for worker in job.of("worker"):
        worker.said("ready")
    sleeper, stopped = job.worker(0), job.worker(1)
    stopped.said("event")
    sleeper.signal(signal.SIGSTOP)
    job.wait(but=[sleeper, stopped])
    stopped.signal(signal.SIGKILL)
    old = len(job.processes)
    job.start_all(MISFIT, "exit", "wait")
    for worker in job.of("worker")[3:]:
        worker.said("ready")
    sleeper.signal(signal.SIGCONT)
    job.wait(but=job.processes[old:], timeout=GRACE)
    assert sleeper.status == 1
    assert "JoinError: worker 0 cannot join: it belongs to job" in sleeper.stderr, sleeper


def test_a_worker_of_an_earlier_job_is_refused(job: HandMadeJob) -> None:
    for role in ("scheduler", "server", "worker", "worker"):
        job.start(role, HELLO, "dist_sync", PSLITE_JOB_ID="second")
    late = job.start("worker", HELLO, "dist_sync", PSLITE_JOB_ID="first")
    job.wait(but=[p for p in job.processes if p is not late])
    assert late.status == 1
    assert "JoinError: this process cannot join: it belongs to job 'first', this is job 'second'" in late.stderr
    job.start("worker", HELLO, "dist_sync", PSLITE_JOB_ID="second")
    job.wait()
    assert [p.status for p in job.processes if p is not late] == [0] * 5, job.processes


def test_one_worker_too_many_is_refused(job: HandMadeJob) -> None:
    job.start_all(MISFIT, "exit", "wait")
    for worker in job.of("worker"):
        worker.said("ready")
    extra = job.start("worker", HELLO, "dist_sync")
    job.wait(but=[p for p in job.processes if p is not extra])
    assert "JoinError: worker cannot join: the job has its 3 workers already" in extra.stderr
    assert [p.status for p in job.processes[:-1]] == [None] * 5

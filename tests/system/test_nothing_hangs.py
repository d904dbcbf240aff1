"""One process falls out, somewhere in its life: every other one ends within three seconds, with an error naming it."""

from __future__ import annotations

import signal
import time

import pytest

from tests.harness import wait_until

from .jobs import GRACE, LONGEST, SCRIPTS, HandMadeJob, Process, took

pytestmark = pytest.mark.processes

SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


def check(job: HandMadeJob, culprit: Process | None, name: str, event: float) -> None:
    """All others end in time; each worker blames the culprit, servers and scheduler do or fail at least."""
    last = job.wait(but=[culprit] if culprit else [])
    seconds = took(event, "from the event to the last exit", last)
    for process in job.processes:
        if process is not culprit:
            assert process.status not in (0, None), process
            assert name in process.stderr, process
    assert seconds < GRACE, job.processes


@pytest.mark.parametrize("how", SIGNALS)
@pytest.mark.parametrize("where", ["barrier", "push", "training", "exit"])
def test_a_worker_is(how: str, where: str, job: HandMadeJob) -> None:
    job.start_all(SCRIPTS / "misfit.py", where, "wait")
    culprit = job.worker(1)
    for worker in job.of("worker"):
        worker.said("ready")
    if where != "training":
        culprit.said("event")
    event = time.monotonic()
    culprit.signal(SIGNALS[how])
    check(job, culprit, f"worker 1 (pid {culprit.popen.pid}", event)


@pytest.mark.parametrize("how", SIGNALS)
def test_a_worker_that_has_joined_is(how: str, job: HandMadeJob) -> None:
    """The job is not complete: one worker was never started."""
    for role in ("scheduler", "server", "worker", "worker"):
        job.start(role, SCRIPTS / "misfit.py", "barrier", "wait", PS_VERBOSE="1")
    scheduler, _, _, culprit = job.processes
    wait_until(lambda: scheduler.stderr.endswith("waiting for worker 2\n"), LONGEST, "the joining of all others")
    event = time.monotonic()
    culprit.signal(SIGNALS[how])
    check(job, culprit, f"worker (pid {culprit.popen.pid}", event)


def test_a_worker_is_missing(job: HandMadeJob) -> None:
    for role in ("scheduler", "server", "worker", "worker"):
        job.start(role, SCRIPTS / "misfit.py", "barrier", "wait", PS_VERBOSE="1", PSLITE_START_TIMEOUT="2")
    scheduler = job.processes[0]
    wait_until(lambda: scheduler.stderr.endswith("waiting for worker 2\n"), LONGEST, "the joining of all others")
    check(job, None, "missing worker 2", event=time.monotonic() + 2)


@pytest.mark.parametrize("how", SIGNALS)
def test_who_dies_waiting_ends_the_wait_of_those_beside_it(how: str, job: HandMadeJob) -> None:
    """All wait for worker 1, which computes; worker 2 falls out of the barrier that it had come to."""
    job.start_all(SCRIPTS / "misfit.py", "barrier", "wait")
    job.worker(1).said("event")
    witness, culprit = job.worker(0), job.worker(2)
    witness.said("ready"), culprit.said("ready")
    event = time.monotonic()
    culprit.signal(SIGNALS[how])
    job.wait(but=[p for p in job.processes if p is not witness], timeout=GRACE)
    took(event, "from the event to the exit of the witness")
    assert f"worker 2 (pid {culprit.popen.pid}" in witness.stderr, witness


@pytest.mark.parametrize("where", ["barrier", "push", "exit"])
def test_a_worker_raises(where: str, job: HandMadeJob) -> None:
    job.start_all(SCRIPTS / "misfit.py", where, "raise")
    culprit = job.worker(1)
    event = float(culprit.said("event"))
    check(job, culprit, f"worker 1 (pid {culprit.popen.pid}", event)
    assert all("batch 7 is broken" in worker.stderr for worker in job.of("worker"))
    job.wait()
    assert culprit.status == 1


@pytest.mark.parametrize("where", ["barrier", "push"])
def test_a_worker_finishes_with_fewer_batches(where: str, job: HandMadeJob) -> None:
    job.start_all(SCRIPTS / "misfit.py", where, "finish")
    culprit = job.worker(1)
    event = float(culprit.said("event"))
    check(job, culprit, f"worker 1 (pid {culprit.popen.pid}", event)
    job.wait()


@pytest.mark.parametrize("how", SIGNALS)
@pytest.mark.parametrize("role", ["server", "scheduler"])
def test_another_process_is(how: str, role: str, job: HandMadeJob) -> None:
    job.start_all(SCRIPTS / "misfit.py", "training", "wait")
    for worker in job.of("worker"):
        worker.said("ready")
    [culprit] = job.of(role)
    event = time.monotonic()
    culprit.signal(SIGNALS[how])
    check(job, culprit, "scheduler" if role == "scheduler" else f"server 0 (pid {culprit.popen.pid}", event)

"""A server that is started again by hand has nothing of what it held: nobody goes on as if it had."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from .jobs import SCRIPTS, HandMadeJob

pytestmark = pytest.mark.processes

UNKEPT = SCRIPTS / "unkept.py"


def test_a_server_started_again_by_hand_ends_the_job(tmp_path: Path) -> None:
    with HandMadeJob(tmp_path, workers=2) as job:
        job.start_all(UNKEPT, PSLITE_MAX_RESTARTS="1")
        for worker in job.of("worker"):
            worker.said("pushed")
        [lost] = job.of("server")
        lost.signal(signal.SIGKILL)
        again = job.start("server", UNKEPT, PSLITE_MAX_RESTARTS="1", DMLC_RANK="0")
        job.wait()
        for worker in job.of("worker"):
            assert worker.said("error").startswith("StateLost server 0 "), worker
            assert worker.status == 1
        assert again.status == 1
        assert "server 0 came again without what its predecessor held: start the whole job again" in again.stderr
        assert job.of("scheduler")[0].status == 1

"""Case 9: a worker that was taken for dead goes on beside its successor. No launcher is there to kill it before."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from random import Random

from kvstore.chaos.findings import find
from tests.harness import wait_until
from tests.network.hosts import ThisMachine
from tests.network.jobs import TYPED, LanesJob, outage
from tests.system.jobs import LONGEST

from .case import Trial, case

_STOPPED = 5.0  # seconds
_MORE = 3  # steps


@case(9, "a zombie worker beside its successor", soak=100)
def zombie(seed: int, where: Path) -> Trial:
    random, here = Random(seed), ThisMachine()
    rank, type = random.randrange(2), random.choice(["dist_sync", "dist_async"])
    with LanesJob(where, here, [here], [here, here]) as job:
        job.begin(type, (1,) * 6 + (2000,) * 2, PSLITE_MAX_RESTARTS="1")
        old = job.of("worker")[rank]
        old.signal(signal.SIGSTOP)
        outage(_STOPPED)
        begin, step = time.monotonic(), job.steps()[rank]
        command = [sys.executable, "-m", "kvstore.chaos.worker", str(job.lanes_in)]
        env = {"PSLITE_SECURITY": "none", "PSLITE_MAX_RESTARTS": "1", "PSLITE_RESTARTS": "1"}
        job.start_command("worker", command, DMLC_RANK=str(rank), **env)
        wait_until(lambda: job.steps()[rank] >= step + _MORE, LONGEST, "the successor's pushes")
        trial = Trial(recovery=time.monotonic() - begin)
        old.signal(signal.SIGCONT)
        wait_until(lambda: old.status is not None, LONGEST, "the zombie's end")
        job.ledger.stop = True
        job.wait()
        if old.status != 1 or not TYPED.search(old.stderr):
            trial.wrong.append(f"the zombie: {old}")
        trial.wrong += [repr(each) for each in job.processes if each is not old and each.status != 0]
        found = find(job.lanes_in, job.job, job.ledger)
    trial.lost, trial.doubled = found.lost, found.doubled
    trial.wrong += found.problems
    return trial

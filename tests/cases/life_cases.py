"""Case 30: real jobs end in every way there is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from kvstore.chaos import lanes
from kvstore.chaos.findings import find
from kvstore.chaos.worker import Job
from tests.harness import is_running, wait_until
from tests.system.jobs import LONGEST, environment

from .case import Trial, case

# How a job ends: a signal, who gets it, and the launcher's status if it can have one.
_ENDS = {
    "by itself": (0, None, 0),
    "with an exception": (signal.SIGINT, "worker0", 130),
    "with the death of a worker": (signal.SIGKILL, "worker1", 137),
    "with Ctrl-C": (signal.SIGINT, "launcher", 130),
    "with SIGTERM": (signal.SIGTERM, "launcher", 143),
    "with the death of the launcher": (signal.SIGKILL, "launcher", -signal.SIGKILL),
}


@case(30, "a job ends in one of six ways", quick=2, soak=200)
def ends(seed: int, where: Path) -> Trial:
    random = Random(seed)
    how = random.choice(list(_ENDS))
    signum, who, expected = _ENDS[how]
    width = lanes.width(2)
    job = Job(random.choice(["dist_sync", "dist_async"]), 2, (width, width, width * 5000))
    ledger = job.write(where)
    process = [sys.executable, "-m", "kvstore.chaos.worker", str(where)]
    command = [sys.executable, "-m", "launcher", "-n", "2", "-s", "1", *process]
    with open(where / "output", "wb") as output:
        launcher = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment())
    with launcher:
        wait_until(lambda: all(ledger.acked(rank).min() > 0 for rank in range(2)), LONGEST, "the first pushes")
        pids = {path.stem: int(path.read_text()) for path in where.glob("*.pid")} | {"launcher": launcher.pid}
        begin = time.monotonic()
        if who is None:
            ledger.stop = True
        else:
            os.kill(pids[who], signum)
        status = launcher.wait(LONGEST)
        wait_until(lambda: not any(map(is_running, pids.values())), LONGEST, "the end of all processes")
    wait_until(lambda: not list(Path(os.environ["TMPDIR"]).iterdir()), LONGEST, "the end of the job's directory")
    trial = Trial(recovery=time.monotonic() - begin)
    if status != expected:
        trial.wrong.append(f"{how}: status {status}, not {expected}\n{(where / 'output').read_text()}")
    if who is None:
        found = find(where, job, ledger)
        trial.lost, trial.doubled = found.lost, found.doubled
        trial.wrong += found.problems
    return trial

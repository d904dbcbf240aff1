"""Processes of real jobs are killed, stopped, and started again: cases 1 to 9."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from random import Random

from kvstore.chaos.plan import Injection
from tests.system.jobs import launch

from . import steps
from .case import Trial, case
from .tormented import REPLICAS, SECONDS, WORKERS, inject, job, torment

_SHARD = Path(__file__).parent / "programs" / "shard.py"


@case(1, "worker killed, async", quick=3, soak=300)
def worker_killed(seed: int, where: Path) -> list[Trial]:
    return torment("kill-worker", seed, 3, job("dist_async"))


@case(1, "worker killed between two keys, async", soak=100)
def worker_killed_between_keys(seed: int, where: Path) -> Trial:
    return steps.restarted("dist_async", seed)


@case(1, "worker killed between two keys, the others go on, async", soak=100)
def worker_lost(seed: int, where: Path) -> Trial:
    return steps.shrunk("dist_async", seed)


@case(2, "worker killed, sync", quick=3, soak=100)
def worker_killed_sync(seed: int, where: Path) -> list[Trial]:
    return torment("kill-worker", seed, 3, job("dist_sync"))


@case(2, "worker killed between two keys, sync", soak=100)
def worker_killed_between_keys_sync(seed: int, where: Path) -> Trial:
    return steps.restarted("dist_sync", seed)


@case(2, "worker killed between two keys, the others go on, sync", soak=100)
def worker_lost_sync(seed: int, where: Path) -> Trial:
    return steps.shrunk("dist_sync", seed)


@case(3, "server killed, kept, async", quick=3, soak=100)
def server_killed(seed: int, where: Path) -> list[Trial]:
    return torment("kill-server", seed, 3, job("dist_async"))


@case(3, "server killed, kept, sync", quick=3, soak=100)
def server_killed_sync(seed: int, where: Path) -> list[Trial]:
    return torment("kill-server", seed, 3, job("dist_sync"))


@case(3, "server with 100 MiB killed, kept, the script imports torch", quick=2, soak=100, needs=("torch",))
def large_shard(seed: int, where: Path) -> list[Trial]:
    return _shards("-s", 1, "--max-restarts", 2, mib=100, times=2, module="torch", where=where)


def _shards(*flags: object, mib: int, times: int, module: str, where: Path) -> list[Trial]:
    done = launch("-n", 1, *flags, sys.executable, _SHARD, mib, times, module, where)
    found = [Trial(recovery=float(seconds)) for seconds in re.findall(r"recovered (\S+)", done.stdout)]
    return found if not done.returncode and len(found) == times else [Trial(wrong=[done.stderr])]


@case(4, "server with 100 MiB killed, replicated", quick=1, soak=100)
def large_replicated_shard(seed: int, where: Path) -> list[Trial]:
    return _shards("-s", 2, "--replicas", 1, mib=200, times=1, module="numpy", where=where)


@case(4, "server killed, replicated, async", quick=1, soak=100)
def replicated_server_killed(seed: int, where: Path) -> list[Trial]:
    return torment("kill-server", seed, 1, job("dist_async"), *REPLICAS)


@case(4, "server killed, replicated, sync", quick=1, soak=100)
def replicated_server_killed_sync(seed: int, where: Path) -> list[Trial]:
    return torment("kill-server", seed, 1, job("dist_sync"), *REPLICAS)


@case(5, "scheduler killed, async", quick=3, soak=100)
def scheduler_killed(seed: int, where: Path) -> list[Trial]:
    return torment("kill-scheduler", seed, 3, job("dist_async"))


@case(5, "scheduler killed, barriers wait for it", quick=3, soak=100)
def scheduler_killed_barriers(seed: int, where: Path) -> list[Trial]:
    return torment("kill-scheduler", seed, 3, job("dist_sync", barrier_every=2))


@case(7, "one worker comes again and again", quick=10, soak=100)
def rejoins(seed: int, where: Path) -> list[Trial]:
    random = Random(seed)
    rank = random.randrange(WORKERS)
    times = [random.uniform(0, SECONDS) for _ in range(10)]
    return inject([[Injection(at, "kill", "worker", rank)] for at in times], job("dist_sync"))


@case(8, "worker and server killed", quick=2, soak=50)
def worker_and_server(seed: int, where: Path) -> list[Trial]:
    return torment("kill-worker+kill-server", seed, 2, job("dist_sync"))


@case(8, "server killed while it comes back", quick=2, soak=50)
def server_twice(seed: int, where: Path) -> list[Trial]:
    return torment("kill-server+kill-server+kill-server", seed, 2, job("dist_async"))


@case(8, "one of each role killed", quick=2, soak=50)
def one_of_each(seed: int, where: Path) -> list[Trial]:
    return torment("kill-worker+kill-server+kill-scheduler", seed, 2, job("dist_sync", barrier_every=2))


@case(8, "worker and server killed, replicated", quick=1, soak=50)
def worker_and_replicated_server(seed: int, where: Path) -> list[Trial]:
    return torment("kill-worker+kill-server", seed, 1, job("dist_sync"), *REPLICAS)


@case(9, "server stopped, replicated", quick=1, soak=50)
def replicated_server_stopped(seed: int, where: Path) -> list[Trial]:
    return torment("stop-server", seed, 1, job("dist_async"), *REPLICAS)


@case(9, "worker stopped", soak=100)
def worker_stopped(seed: int, where: Path) -> list[Trial]:
    return torment("stop-worker", seed, 1, job("dist_async"))


@case(9, "server stopped", soak=100)
def server_stopped(seed: int, where: Path) -> list[Trial]:
    return torment("stop-server", seed, 1, job("dist_sync"))


@case(9, "scheduler stopped for 5 s, push and pull go on", soak=100)
def scheduler_frozen(seed: int, where: Path) -> list[Trial]:
    return torment("freeze-scheduler", seed, 1, job("dist_async"))


"""Jobs whose processes are on hosts of their own; workers push lanes, as those of ``pslite chaos`` do."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from kvstore.chaos import lanes
from kvstore.chaos.findings import find
from kvstore.chaos.worker import Job
from tests.harness import wait_until
from tests.system.jobs import LONGEST, HandMadeJob, Process

from .hosts import Place

TYPED = re.compile(
    r"^(pslite\.errors\.)?(PeerLost|RequestTimeout|BarrierTimeout|WorkerFailed|JoinError)\b", re.MULTILINE
)


def outage(seconds: float) -> None:
    """Let time pass: what happens to a job depends on how long a fault lasts."""
    threading.Event().wait(seconds)


class NetworkJob(HandMadeJob):
    """The scheduler, servers and workers on these hosts. ``root``: the scheduler's address."""

    def __init__(self, directory: Path, scheduler: Place, servers: Sequence[Place], workers: Sequence[Place]) -> None:
        (directory / "output").mkdir()
        super().__init__(directory / "output", len(workers), len(servers))
        self.root = scheduler.address
        self._hosts = {"scheduler": [scheduler], "server": [*servers], "worker": [*workers]}

    def start_job(self, *command: str, addresses: dict[Place, str] | None = None, **env: str) -> None:
        """Start a Python command everywhere; servers listen on these addresses of their hosts, or the usual ones."""
        for role, hosts in self._hosts.items():
            for rank, host in enumerate(hosts):
                own = {"DMLC_RANK": str(rank)} if role != "scheduler" else {}
                own["DMLC_NODE_HOST"] = (addresses or {}).get(host, host.address)
                own |= {"PSLITE_SECURITY": "none"} | env
                self.start_command(role, host.within(sys.executable, *command), **own)


class LanesJob(NetworkJob):
    """A job of lanes, whose progress and values can be seen from here."""

    def __init__(self, directory: Path, scheduler: Place, servers: Sequence[Place], workers: Sequence[Place]) -> None:
        super().__init__(directory, scheduler, servers, workers)
        self.lanes_in = directory / "lanes"
        self.lanes_in.mkdir()

    def begin(self, type: str, sizes: Sequence[int], addresses: dict[Place, str] | None = None, **env: str) -> None:
        """Start it with keys of so many times a lane, and return when every worker has pushed."""
        width = lanes.width(self.workers)
        self.job = Job(type, self.workers, tuple(width * size for size in sizes))
        self.ledger = self.job.write(self.lanes_in)
        self.start_job("-m", "kvstore.chaos.worker", str(self.lanes_in), addresses=addresses, **env)
        self.go_on(1)

    def steps(self) -> list[int]:
        """By rank, the pushes of every key that were acknowledged."""
        return [int(self.ledger.acked(rank).min()) for rank in range(self.workers)]

    def go_on(self, steps: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Return when every worker has pushed so many times more."""
        goals = [step + steps for step in self.steps()]

        def reached() -> bool:
            meanwhile()
            assert not self.ended(), self.ended()
            return all(step >= goal for step, goal in zip(self.steps(), goals, strict=True))

        wait_until(reached, LONGEST, f"steps {goals}")

    def ended(self) -> list[Process]:
        """The processes that do not run any more."""
        return [process for process in self.processes if process.status is not None]

    def finish(self) -> int:
        """Stop, and check that no push was lost or applied twice; returns how many there were."""
        self.ledger.stop = True
        self.wait()
        assert [process.status for process in self.processes] == [0] * len(self.processes), self.processes
        found = find(self.lanes_in, self.job, self.ledger)
        assert (found.lost, found.doubled, found.problems) == (0, 0, []), found
        assert found.finals == self.workers
        return sum(self.steps())

    def fail(self) -> None:
        """Wait until all processes have ended with an error of this project, and check what was read until then.

        Of an asynchronous job a worker that nobody cuts off only notices when it wants to meet the others.
        """
        self.ledger.stop = True
        self.wait()
        for process in self.processes:
            assert process.status == 1 and (process.role != "worker" or TYPED.search(process.stderr)), process
        assert find(self.lanes_in, self.job, self.ledger).problems == []

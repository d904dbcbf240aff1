"""Jobs whose processes are on hosts of their own; workers push lanes, as those of ``pslite chaos`` do."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from kvstore.chaos import lanes
from kvstore.chaos.findings import Findings, find
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
                own = {"DMLC_NODE_HOST": (addresses or {}).get(host, host.address), "PSLITE_SECURITY": "none"}
                if role != "scheduler":
                    own["DMLC_RANK"] = str(rank)
                self.start_one(role, rank, host, [sys.executable, *command], own | env)

    def start_one(self, role: str, rank: int, host: Place, command: Sequence[str], env: dict[str, str]) -> None:
        """Start the process of a rank."""
        self.start_command(role, host.within(*command), **env)


class LanesJob(NetworkJob):
    """A job of lanes, whose progress and values can be seen from here."""

    def __init__(self, directory: Path, scheduler: Place, servers: Sequence[Place], workers: Sequence[Place]) -> None:
        super().__init__(directory, scheduler, servers, workers)
        self.lanes_in = directory / "lanes"
        self.lanes_in.mkdir()
        self.through: Sequence[str] = ["-m"]  # the program that runs a module
        self.lost: list[Process] = []  # those that may end with an error

    def begin(self, type: str, sizes: Sequence[int], addresses: dict[Place, str] | None = None, **env: str) -> None:
        """Start it with keys of so many times a lane, and return when every worker has pushed."""
        width = lanes.width(self.workers)
        self.job = Job(type, self.workers, tuple(width * size for size in sizes))
        self.ledger = self.job.write(self.lanes_in)
        self.start_job(*self.through, "kvstore.chaos.worker", str(self.lanes_in), addresses=addresses, **env)
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
        """The processes that do not run any more, and should."""
        return [process for process in self.processes if process.status is not None and process not in self.lost]

    def end(self) -> Findings:
        """Stop, see that all processes end well, and say what was lost or applied twice."""
        self.ledger.stop = True
        self.wait()
        assert all(process.status == 0 or process in self.lost for process in self.processes), self.processes
        found = find(self.lanes_in, self.job, self.ledger)
        assert found.finals == self.workers
        return found

    def finish(self) -> int:
        """The same, where nothing may be; returns how many pushes there were."""
        found = self.end()
        assert (found.lost, found.doubled, found.problems) == (0, 0, []), found
        return sum(self.steps())

    def fail(self, but: Sequence[Process] = ()) -> float:
        """Wait until all processes, except some, have ended with an error of this project, and check what was read
        until then; returns when the last ended.

        Of an asynchronous job a worker that nobody cuts off only notices when it wants to meet the others.
        """
        self.ledger.stop = True
        ended = self.wait(but)
        for process in self.processes:
            typed = process.role != "worker" or TYPED.search(process.stderr)
            assert process in but or (process.status == 1 and typed), process
        assert find(self.lanes_in, self.job, self.ledger).problems == []
        return ended


def memory(pid: int, kind: str = "VmRSS") -> float:
    """MiB of a process that are in memory, or its peak, ``VmHWM``; 0 if it has just ended."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def listening_port(pid: int) -> int:
    """The TCP port that a process listens on."""
    links = (os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
    inodes = {link[8:-1] for link in links if link.startswith("socket:")}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in inodes:  # TCP_LISTEN
            return int(words[1].split(":")[1], 16)
    raise AssertionError(f"process {pid} listens nowhere")

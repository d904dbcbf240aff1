"""Jobs over several hosts that lose processes, or a host, and go on. Every push is counted, once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvstore.chaos import lanes
from kvstore.chaos.findings import Findings, find
from kvstore.chaos.worker import Job
from tests.harness import wait_until
from tests.system.jobs import took

from .cluster import Cluster
from .machine import LONGEST, Machine

pytestmark = pytest.mark.processes


class Lanes:
    """A job of lanes (``kvstore/chaos``), whose progress is seen here."""

    def __init__(self, cluster: Cluster, name: str, workers: int, *options: object) -> None:
        self._directory = cluster.shared / name
        self._directory.mkdir()
        self.job = Job("dist_sync", workers, (lanes.width(workers),) * 4)
        self._ledger = self.job.write(self._directory)
        command = [sys.executable, "-m", "kvstore.chaos.worker", self._directory]
        self.launcher = cluster.launcher("-n", workers, "-s", 2, *options, *command)

    def go_on(self, ranks: Sequence[int], steps: int = 3) -> None:
        """Return when these workers have pushed so many times more."""
        goals = {rank: self._step(rank) + steps for rank in ranks}

        def reached() -> bool:
            assert self.launcher.status is None, self.launcher
            return all(self._step(rank) >= goal for rank, goal in goals.items())

        wait_until(reached, LONGEST, f"steps {goals} of {self.launcher}")

    def _step(self, rank: int) -> int:
        return int(self._ledger.acked(rank).min())

    def end(self) -> Findings:
        """Stop; all must have ended well."""
        self._ledger.stop = True
        assert self.launcher.wait() == 0, self.launcher
        return find(self._directory, self.job, self._ledger)


def kill(machine: Machine, role: str, rank: int) -> None:
    """kill -9 of the process of a rank."""
    wanted = {f"DMLC_ROLE={role}", *([] if role == "scheduler" else [f"DMLC_{role.upper()}_ID={rank}"])}
    (pid,) = (p for p in machine.processes() if wanted <= set(Path(f"/proc/{p}/environ").read_text().split("\0")))
    os.kill(pid, signal.SIGKILL)


def test_processes_are_started_again_on_their_host(cluster: Cluster) -> None:
    lanes = Lanes(cluster, "again", 3, "-H", "node1,node2,node3", "--max-restarts", 1)
    with lanes.launcher as launcher:
        lanes.go_on(range(3))
        for node, role, rank in ((2, "worker", 2), (1, "server", 1), (0, "scheduler", 0)):
            kill(cluster.nodes[node], role, rank)
            label = role if role == "scheduler" else f"{role} {rank}"
            launcher.told(f"pslite: {label} on node{node + 1} (pid ")
            lanes.go_on(range(3))
        assert launcher.stderr.count(" died: signal 9 (SIGKILL); restart 1 of 1") == 3
        assert_nothing_lost(lanes.end())


def test_a_host_with_replicas_elsewhere_may_be_lost(cluster: Cluster) -> None:
    """The others go on without its server, and without its worker."""
    options = ("-H", "node1:slots=2,node3,node2", "--servers-on", "node2,node3", "--replicas", 1)
    lanes = Lanes(cluster, "lost", 3, *options, "--on-worker-lost", "shrink")
    lost = cluster.nodes[2]
    with lanes.launcher as launcher, ExitStack() as cut:
        lanes.go_on(range(3))
        cut.enter_context(cluster.unplugged(lost))
        begin = time.monotonic()
        launcher.told("the others go on without ")
        took(begin, "from the loss of node3 until the launcher goes on without it")
        lanes.go_on(range(2))
        heard = "nothing was heard of it for 2.5 s"
        assert f"pslite: node3: {heard}; the others go on without server 1, worker 2\n" in launcher.stderr
        cluster.wait_until_clean(begin, "from the loss of node3 until nothing is left there", only=lost)
        found = lanes.end()
        # What the lost worker had pushed of its last step is in some keys only, which the oracle does not know of.
        found.problems = [problem for problem in found.problems if "worker 2: " not in problem]
        assert_nothing_lost(found)
        assert found.finals == 2


def assert_nothing_lost(found: Findings) -> None:
    assert (found.lost, found.doubled, found.problems) == (0, 0, []), found

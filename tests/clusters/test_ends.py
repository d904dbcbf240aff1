"""However a job on several hosts ends, nothing of it is left on any of them. ``pytest -s`` shows how long that took."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.harness import wait_until
from tests.network.jobs import outage

from .cluster import Cluster, Launcher
from .machine import LONGEST

pytestmark = pytest.mark.processes

#: Workers 0 and 1 are on node1, as are the scheduler and server 0; the others are node2's, and worker 3 is node3's.
JOB = ("-n", 4, "-s", 2, "-H", "node1,node2,node3", "--env", "PSLITE_SECURITY=none")  # its keys take time
SLEEP = ("sh", "-c", "echo ready; exec sleep 60")
STUBBORN = ("sh", "-c", "trap '' HUP INT TERM; echo ready; exec sleep 60")
TRAIN = (sys.executable, "-c", """
import kvstore, numpy
kvstore.serve()
kv = kvstore.create("dist_sync")
kv.init("w", numpy.zeros(1000))
for step in range(10**9):
    kv.pushpull("w", numpy.ones(1000))
    step == 10 and print("ready", flush=True)
""")  # fmt: skip


@contextmanager
def running(cluster: Cluster, command: Sequence[str], *options: object) -> Iterator[Launcher]:
    """A job of seven processes, or of four workers that train, which are all there."""
    with cluster.launcher(*JOB, *options, *command) as launcher:
        launcher.said("ready", 4 if command is TRAIN else 7)
        assert all(machine.processes() for machine in cluster.nodes)
        yield launcher


def test_a_kill_of_the_launcher(cluster: Cluster) -> None:
    with running(cluster, STUBBORN) as launcher:
        launcher.popen.kill()
        cluster.wait_until_clean(time.monotonic(), "from kill -9 of the launcher")


def test_ctrl_c(cluster: Cluster) -> None:
    with running(cluster, TRAIN) as launcher:
        begin = time.monotonic()
        launcher.popen.send_signal(signal.SIGINT)
        assert launcher.wait() == 130
        assert launcher.report[-1] == "pslite: stopped by SIGINT"
        cluster.wait_until_clean(begin, "from Ctrl-C")


def test_the_second_ctrl_c(cluster: Cluster) -> None:
    with running(cluster, STUBBORN, "--grace", 60) as launcher:
        begin = time.monotonic()
        launcher.popen.send_signal(signal.SIGINT)
        launcher.told("press Ctrl-C")
        launcher.popen.send_signal(signal.SIGINT)
        assert launcher.wait() == 130
        cluster.wait_until_clean(begin, "from the first of two Ctrl-C")


@pytest.mark.parametrize(("node", "command"), [(1, STUBBORN), (2, TRAIN)], ids=["stubborn", "training"])
def test_a_host_without_its_cable(cluster: Cluster, node: int, command: Sequence[str]) -> None:
    """That of the scheduler; and one whose loss the other processes notice, too, and fail of."""
    machine = cluster.nodes[node - 1]
    with running(cluster, command, "--grace", 1) as launcher, cluster.unplugged(machine):
        begin = time.monotonic()
        assert launcher.wait() == 1
        assert f"pslite: node{node}: nothing was heard of it for 2.5 s" in launcher.report, launcher
        cluster.wait_until_clean(begin, f"from the loss of node{node}")


def test_a_host_whose_connection_is_reset(cluster: Cluster) -> None:
    with running(cluster, SLEEP) as launcher:
        begin = time.monotonic()
        cluster.nodes[1].run("ss", "-K", "-H", "-t", "state", "established", "sport", "22")
        assert launcher.wait() == 1
        assert launcher.report[-2].startswith("pslite: node2: ssh ended with exit code 255"), launcher
        assert launcher.report[-1] == "  lost with it: server 1, worker 2"
        cluster.wait_until_clean(begin, "from a reset of the connection to node2")


def test_a_host_without_its_agent(cluster: Cluster) -> None:
    with running(cluster, SLEEP) as launcher:
        node = cluster.nodes[1]
        (agent,) = (pid for pid, words in node.processes().items() if "-I" in words)
        begin = time.monotonic()
        os.kill(agent, signal.SIGKILL)
        assert launcher.wait() == 1
        assert launcher.report[-2].startswith("pslite: node2: "), launcher
        wait_until(lambda: not node.processes(), LONGEST)
        node.sweep()  # nobody is there to remove the job's directory
        cluster.wait_until_clean(begin, "from kill -9 of the agent on node2")


def test_a_worker_that_fails(cluster: Cluster) -> None:
    begin = time.monotonic()
    done = cluster.launch(*JOB, "sh", "-c", '[ "$RANK" = 2 ] && exit 7; exec sleep 60')
    assert done.status == 7, done
    assert re.search(r"\npslite: worker 2 on node2 \(pid \d+\) failed: exit code 7, ", done.stderr), done
    cluster.wait_until_clean(begin, "from the start of a job whose worker fails")


def test_a_launcher_that_was_suspended_goes_on(cluster: Cluster) -> None:
    """Ctrl-Z, and fg when the silence has lasted longer than that of a lost connection."""
    with running(cluster, SLEEP) as launcher:
        launcher.popen.send_signal(signal.SIGTSTP)
        outage(3.0)
        assert launcher.status is None
        launcher.popen.send_signal(signal.SIGCONT)
        outage(0.5)
        assert launcher.status is None, launcher
        begin = time.monotonic()
        launcher.popen.send_signal(signal.SIGTERM)
        assert launcher.wait() == 143
        cluster.wait_until_clean(begin, "from SIGTERM")

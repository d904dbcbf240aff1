"""The hosts that the other tests use are what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import is_running, wait_until

from .cluster import Cluster
from .machine import LONGEST, environment

pytestmark = pytest.mark.processes


def ssh(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    argv = cluster.head.within("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=1", *words)
    return subprocess.run(
        argv, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LONGEST
    )


def test_ssh_leads_to_every_host_under_all_of_its_names(cluster: Cluster) -> None:
    node = cluster.nodes[1]
    for words in ([node.name], ["-p", "2222", node.address], ["-p", "2222", node.address6], [f"root@{node.name}6"]):
        assert ssh(cluster, *words, "hostname").stdout == f"{node.name}\n", words
    assert ssh(cluster, "alias", "echo $(hostname) $SSH_CONNECTION").stdout.split()[::4] == ["node1", "2222"]


def test_a_host_does_not_see_the_files_and_pids_of_another(cluster: Cluster) -> None:
    one, two, _ = cluster.nodes
    try:
        one.run("touch", "/tmp/mark", "/dev/shm/mark")
        assert one.file("/tmp/mark").exists() and not two.file("/tmp/mark").exists()
        assert one.traces() == ["/dev/shm/mark", "/tmp/mark"]
        assert int(two.run(sys.executable, "-c", "import os, pslite; print(os.getpid())")) < 1000
    finally:
        one.run("rm", "-f", "/tmp/mark", "/dev/shm/mark")


def test_what_runs_on_a_host_is_found_and_can_be_killed(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    argv = cluster.head.within("ssh", node.name, "exec sleep 60")
    with subprocess.Popen(argv, env=environment(), stdin=subprocess.DEVNULL) as client:
        wait_until(lambda: ["sleep", "60"] in node.processes().values(), LONGEST, "sleep on node1")
        (sleep,) = node.processes()
        assert [trace.split(":")[0] for trace in cluster.traces()] == ["head", "node1"]
        subprocess.run(["kill", "-9", str(sleep)], check=True)
        assert client.wait(LONGEST) == 255


def test_a_host_may_be_unplugged_or_closed_to_the_user(cluster: Cluster) -> None:
    one, two, three = cluster.nodes
    with cluster.unplugged(one), cluster.no_login(two):
        assert "timed out" in ssh(cluster, one.name, "true").stderr
        assert "Permission denied (publickey)" in ssh(cluster, two.name, "true").stderr
        assert ssh(cluster, three.name, "true").returncode == 0
    assert all(ssh(cluster, machine.name, "true").returncode == 0 for machine in (one, two))


def test_a_host_may_lack_python_or_this_project(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    with node.without(sys.executable):
        assert ssh(cluster, node.name, sys.executable, "-V").returncode == 126
    assert ssh(cluster, node.name, sys.executable, "-V").returncode == 0


def test_nothing_is_left_of_a_cluster(programs: None, tmp_path: Path) -> None:
    """Not even of what made itself a daemon."""
    with Cluster(tmp_path, nodes=1) as cluster:
        for machine in cluster.machines:
            machine.run("sh", "-c", "setsid sleep 60 > /dev/null 2>&1 &")
        wait_until(lambda: all(["sleep", "60"] in m.processes().values() for m in cluster.machines), LONGEST)
        pids = [pid for machine in cluster.machines for pid in (machine.pid, *machine.processes())]
    wait_until(lambda: not any(map(is_running, pids)), LONGEST)

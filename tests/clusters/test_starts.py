"""Hosts on which a job cannot start: the launcher says which and why, and nothing is left of what has started."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from .cluster import Cluster, Launcher
from .machine import HOME

pytestmark = pytest.mark.processes


def fails(cluster: Cluster, hosts: str, *options: object, status: int = 1) -> Launcher:
    """A job on these hosts, which ends before any of its processes has started."""
    begin = time.monotonic()
    job = ("-n", 2, "-s", 1, "--env", "PSLITE_SECURITY=none", "-H", hosts)
    done = cluster.launch(*job, *options, "echo", "started")
    assert done.status == status and "started" not in done.stdout, done
    cluster.wait_until_clean(begin, done.report[-1])
    return done


def test_a_host_that_does_not_take_the_key(cluster: Cluster) -> None:
    with cluster.no_login(cluster.nodes[1]):
        done = fails(cluster, "node1,node2")
    assert done.report[-1] == "pslite: node2: ssh ended with exit code 255: root@node2: Permission denied (publickey)."


def test_a_host_that_nobody_knows(cluster: Cluster) -> None:
    done = fails(cluster, "node1,nosuchhost")
    assert "pslite: nosuchhost: ssh ended with exit code 255: ssh: Could not resolve hostname" in done.report[-1]


def test_a_host_that_says_nothing(cluster: Cluster) -> None:
    """ssh waits for 10 s, unless it is told otherwise."""
    with cluster.unplugged(cluster.nodes[1]):
        done = fails(cluster, "node1,node2", "--ssh-option", "ConnectTimeout=1")
    assert done.report[-1].startswith("pslite: node2: ssh ended with exit code 255: ssh: connect to host node2"), done


def test_a_host_without_sshd_at_this_port(cluster: Cluster) -> None:
    done = fails(cluster, "node1,node2:port=23")
    assert "node2: ssh ended with exit code 255: ssh: connect to host node2 port 23: Connection refused" in done.stderr


def test_a_host_whose_key_has_changed(cluster: Cluster) -> None:
    """Host keys are checked as the user's configuration says: here by default, which is to ask, and nobody can."""
    known = cluster.head.file(HOME / ".ssh" / "known_hosts")
    before = known.read_text()
    node1, node2 = (machine.public_key for machine in cluster.nodes[:2])
    try:
        known.write_text(before.replace(node2, node1))
        assert "Host key verification failed." in fails(cluster, "node1,node2").report[-1]
        known.write_text("".join(line for line in before.splitlines(keepends=True) if node2 not in line))
        assert "Host key verification failed." in fails(cluster, "node1,node2").report[-1]
    finally:
        known.write_text(before)


def test_a_host_without_python(cluster: Cluster) -> None:
    with cluster.nodes[1].without(sys.executable):
        done = fails(cluster, "node1,node2")
    assert done.report[-1].startswith("pslite: node2: ssh ended with exit code 126: "), done
    done = fails(cluster, "node1", "--python", "/no/such/python")
    assert done.report[-1].startswith("pslite: node1: ssh ended with exit code 127: "), done
    assert "/no/such/python" in done.report[-1]


def test_a_host_without_this_project(cluster: Cluster) -> None:
    packages = [Path(spec.origin).parent for name in ("launcher", "pslite", "kvstore")
                if (spec := importlib.util.find_spec(name)) and spec.origin]  # fmt: skip
    with cluster.nodes[1].without(*packages):
        done = fails(cluster, "node1,node2")
    assert done.report[-1].startswith("pslite: node2: ssh ended with exit code 1: "), done
    assert "No module named 'launcher" in done.report[-1]


def test_a_host_without_the_directory(cluster: Cluster) -> None:
    directory = cluster.head.file("/tmp/only here")
    directory.mkdir()
    try:
        begin = time.monotonic()
        done = cluster.launch("-n", 1, "-s", 1, "-H", "node1", sys.executable, "-c", "0", cwd="/tmp/only here")
        assert done.status in (1, 126, 127), done
        assert "node1" in done.stderr and "/tmp/only here" in done.stderr
    finally:
        directory.rmdir()
    cluster.wait_until_clean(begin, "where the directory is missing")


def test_a_host_with_a_login_script_that_prints(cluster: Cluster) -> None:
    """bash reads ~/.bashrc also for ssh's commands; what that prints is shown if it is why there is no agent."""
    script = cluster.nodes[1].file(HOME / ".bashrc")
    try:
        script.write_text("echo Welcome; printf '$ '")
        done = cluster.launch("-n", 2, "-s", 1, "-H", "node1,node2", "echo", "ran")
        assert done.status == 0 and done.stdout.count("ran") == 4, done
        script.write_text("echo node2 is being repaired; exit 1")
        done = fails(cluster, "node1,node2")
        assert done.report[-1] == "pslite: node2: ssh ended with exit code 1: node2 is being repaired"
    finally:
        script.unlink()

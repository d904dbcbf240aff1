"""``--check`` on hosts with a real sshd: what is right, and what would be in a job's way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .cluster import Cluster

pytestmark = pytest.mark.processes

#: Nobody connects to this host, but to its sshd.
FIREWALL = """
table inet check {
    chain input {
        type filter hook input priority 0
        tcp dport { 22, 2222 } accept
        tcp flags & (syn | ack) == syn reject with tcp reset
    }
}
"""


@pytest.fixture
def firewall(cluster: Cluster) -> Iterator[None]:
    """On node 1."""
    cluster.nodes[0].host.run("nft", "-f", "-", input=FIREWALL)
    yield
    cluster.nodes[0].host.run("nft", "delete", "table", "inet", "check")


def test_hosts_on_which_a_job_would_run(cluster: Cluster) -> None:
    done = cluster.launch("-H", "node1,node2,node3", "-n", 3, "-s", 2, "--check")
    assert done.status == 0, done
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [[f"node{number}", "ok"] for number in (1, 2, 3)]
    assert all("numpy" in line and "clock" not in line for line in lines)
    assert f"reached at {cluster.nodes[0].address}" in lines[0]


def test_what_would_be_in_its_way(cluster: Cluster, firewall: None) -> None:
    with cluster.no_login(cluster.nodes[2]):
        done = cluster.launch("-H", "node1,node2,node3", "-n", 3, "-s", 1, "--check")
    assert done.status == 1, done
    found = done.stdout
    assert "node3  problem" in found and "Permission denied (publickey)" in found
    assert f"it cannot reach node1 at {cluster.nodes[0].address}, port" in found
    assert "node1  ok" in found


def test_a_directory_that_is_not_there(cluster: Cluster) -> None:
    done = cluster.launch("-H", "node1", "--chdir", "/no/such/place", "--check")
    assert done.status == 1, done
    assert "there is no directory /no/such/place" in done.stdout

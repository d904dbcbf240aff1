"""By which addresses hosts reach each other: IPv6, names, several addresses, and networks behind a NAT."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.system.jobs import EXAMPLES, HandMadeJob

from .hosts import Host, Named, Network, Place
from .jobs import LanesJob

pytestmark = pytest.mark.processes

HELLO = [sys.executable, str(EXAMPLES / "hello.py"), "dist_sync"]
PORT = 9091
Start = tuple[str, Place, Mapping[str, str]]  # role, where, and what is set there


def hello(directory: Path, root: str, starts: Sequence[Start]) -> None:
    """A job of these processes, in which workers push and pull, comes to its end."""
    roles = [role for role, _, _ in starts]
    with HandMadeJob(directory, roles.count("worker"), roles.count("server"), PORT) as job:
        job.root = root
        for role, place, env in starts:
            job.start_command(role, place.within(*HELLO), PSLITE_SECURITY="none", **env)
        job.wait()
        assert [p.status for p in job.processes] == [0] * len(starts), job.processes
        assert all("pulls [" in worker.stdout for worker in job.of("worker")), job.processes


def without_ipv4(hosts: Sequence[Host]) -> None:
    for number, host in enumerate(hosts, 1):
        host.run("ip", "-4", "address", "flush", "dev", "eth0")
        host.give(f"fd77::{number}/64", f"fe80::{number}/64")


@pytest.mark.parametrize(
    ("root", "listening"),
    [("fd77::1", "[fd77::1]"), ("fd77::1", "[::]"), ("fe80::1%eth0", "[fe80::1%eth0]")],
    ids=["address", "wildcard", "link-local"],
)
def test_a_job_on_hosts_that_have_ipv6_only(network: Network, tmp_path: Path, root: str, listening: str) -> None:
    """One server takes the address of the route, the other that of an interface."""
    without_ipv4(hosts := network.hosts(3))
    one, two, three = hosts
    starts: list[Start] = [
        ("scheduler", one, {"PSLITE_ROOT": f"tcp://{listening}:{PORT}"}),
        ("server", two, {"DMLC_INTERFACE": "eth0"}),
        ("server", one, {}),
        ("worker", three, {"DMLC_INTERFACE": "not-here"}),  # workers do not listen
        ("worker", two, {}),
    ]
    hello(tmp_path, root, starts)


def test_names_with_both_families(network: Network, tmp_path: Path) -> None:
    """On its own host the scheduler's name is the loopback, as Debian has it; one host has no IPv6."""
    (tmp_path / "hosts").mkdir()
    tables = {
        "one": "127.0.1.1 one\n10.77.0.2 two\n",
        "others": "fd77::1 one\n10.77.0.1 one\nfd77::2 two\n10.77.0.2 two\n",
    }
    for name, text in tables.items():
        (tmp_path / "hosts" / name).write_text(f"127.0.0.1 localhost\n{text}")
    hosts = network.hosts(3)
    hosts[0].give("fd77::1/64")
    hosts[1].give("fd77::2/64")
    one, two, three = (
        Named(host, tmp_path / "hosts" / name) for host, name in zip(hosts, ["one", "others", "others"], strict=True)
    )
    starts: list[Start] = [
        ("scheduler", one, {}),
        ("server", one, {}),
        ("server", two, {"DMLC_NODE_HOST": "two"}),
        ("worker", two, {}),
        ("worker", three, {}),
    ]
    (tmp_path / "output").mkdir()
    hello(tmp_path / "output", "one", starts)


def test_a_host_with_several_addresses_is_reached_by_the_one_that_it_gives(network: Network, tmp_path: Path) -> None:
    """The worker has no way to the server's address on the route to the scheduler."""
    one, two = network.hosts(2)
    one.give("10.80.0.1/24")
    two.give("10.80.0.2/24")
    two.run("ip", "address", "del", f"{two.address}/24", "dev", "eth0")
    starts: list[Start] = [
        ("scheduler", one, {"PSLITE_ROOT": f"tcp://0.0.0.0:{PORT}"}),
        ("server", one, {"PSLITE_ROOT": f"tcp://{one.address}:{PORT}", "DMLC_NODE_HOST": "10.80.0.1"}),
        ("worker", two, {}),
    ]
    hello(tmp_path, "10.80.0.1", starts)


def test_everybody_behind_a_nat_of_their_own(network: Network, tmp_path: Path) -> None:
    """Nobody reaches the worker; ports of gateways lead to the scheduler and a server, which give their addresses."""
    one, *gateways = network.hosts(4)
    scheduler, server, worker = (network.behind(gateway) for gateway in gateways)
    with LanesJob(tmp_path, scheduler, [one, server], [worker, one]) as job:
        job.root = gateways[0].address
        gateways[0].forward(job.port, scheduler)
        gateways[1].forward(9101, server)
        told: dict[Place, str] = {scheduler: gateways[0].address, server: gateways[1].address}
        job.begin("dist_sync", (1, 1, 2000), told, PSLITE_SERVER_PORT="9100")
        job.go_on(20)
        connections = one.run("ss", "-H", "-t", "-n", "state", "established")
        assert gateways[2].address in connections and worker.address not in connections
        assert job.finish() >= 40

"""What processes say that cannot listen, or cannot reach the scheduler or a server: who, where, from where, and why."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.system.jobs import LONGEST, HandMadeJob, Process

from .hosts import Host, Network

pytestmark = pytest.mark.processes

PORT = 9091
MEMBER = """
import pslite

office = pslite.Postoffice(pslite.Config.from_env())
office.start()
office.wait_job_over()
"""
CAP = "-net_bind_service"


def start(job: HandMadeJob, role: str, host: Host, *before: str, **env: str) -> Process:
    """Start a process that joins and stays."""
    return job.start_command(role, host.within(*before, sys.executable, "-c", MEMBER), PSLITE_SECURITY="none", **env)


def until_listening(host: Host, port: int) -> None:
    wait_until(lambda: host.run("ss", "-H", "-l", "-t", "-n", f"sport = {port}"), LONGEST, f"a listener at port {port}")


def refuse(host: Host, rule: str) -> None:
    """Do this to what comes."""
    host.run("nft", f"add rule inet faults input {rule}")


def test_who_does_not_reach_the_scheduler_says_why(network: Network, tmp_path: Path) -> None:
    """The addresses are wrong in all ways there are; the processes try at the same time."""
    one, two = network.hosts(2)
    refuse(one, "tcp dport 9092 drop")
    refuse(one, "tcp dport 9093 reject with icmpx host-unreachable")
    expected: Mapping[str, str] = {
        f"tcp://10.77.0.1:{PORT}": "connection refused, nothing listens there: is the scheduler started",
        "tcp://10.77.0.1:9092": "no answer: a firewall drops what is sent there",
        "tcp://10.77.0.1:9093": "no route to host",
        "tcp://10.77.0.99:9091": "no route to host: its host is down, no host there has this address",
        "tcp://10.99.0.1:9091": "network is unreachable, this host has no route to it",
        "tcp://nowhere.invalid:9091": "the name nowhere.invalid does not resolve on this host",
    }
    with HandMadeJob(tmp_path) as job:
        tried = {root: start(job, "worker", two, PSLITE_ROOT=root, PSLITE_START_TIMEOUT="0.1") for root in expected}
        job.wait()
        for root, process in tried.items():
            last = process.stderr.splitlines()[-1]
            assert last.startswith(f"pslite.errors.UnreachableError: scheduler at {root} was not reached in "), process
            assert expected[root] in last, process
            on_a_route = "10.99" not in root and "nowhere" not in root
            assert (", from 10.77.0.2 (eth0): " in last) == on_a_route, process


def test_who_cannot_listen_says_why(network: Network, tmp_path: Path) -> None:
    one, two = network.hosts(2)
    with HandMadeJob(tmp_path, 1, 1, PORT) as job:
        job.root = one.address
        first = start(job, "scheduler", one)
        until_listening(one, PORT)
        listening = start(job, "server", two, PSLITE_SERVER_PORT="9100")
        until_listening(two, 9100)
        on = f"scheduler cannot listen on tcp://{one.address}"
        expected = {
            start(job, "scheduler", one): f"{on}:{PORT} (eth0): Address already in use; end who listens there",
            start(job, "scheduler", two): f"{on}:{PORT}: Cannot assign requested address; it is {one.address}, "
            f"which is not an address of this host, lo (127.0.0.1, ::1); eth0 ({two.address}",
            start(
                job, "scheduler", one, "setpriv", f"--bounding-set={CAP}", f"--inh-caps={CAP}",
                PSLITE_ROOT=f"tcp://{one.address}:80",
            ): f"{on}:80 (eth0): Permission denied; ports below 1024 are for root",
        }  # fmt: skip
        job.wait(but=[first, listening])
        for process, said in expected.items():
            assert f"BindError: {said}" in process.stderr, process
        again = start(job, "server", two, PSLITE_SERVER_PORT="9100")
        job.wait(but=[first, listening])
        assert f"BindError: server cannot listen on tcp://{two.address}:9100 (eth0): Address already" in again.stderr


def test_workers_that_do_not_reach_a_server_say_why(network: Network, tmp_path: Path) -> None:
    """The server gave the address of another host, which refuses one worker, and does not answer the other."""
    one, two, three = network.hosts(3)
    refuse(three, f"ip saddr {two.address} tcp dport 9101 drop")
    with HandMadeJob(tmp_path, 2, 2, PORT) as job:
        job.root = one.address
        env = {"PSLITE_SERVER_PORT": "9100", "PSLITE_START_TIMEOUT": "2"}
        start(job, "scheduler", one, **env | {"PSLITE_START_TIMEOUT": "30"})
        start(job, "server", one, DMLC_SERVER_ID="0", **env)
        start(job, "server", one, DMLC_SERVER_ID="1", DMLC_NODE_HOST=three.address, **env)
        expected = {
            start(job, "worker", one, **env): ("10.77.0.1", "connection refused, nothing listens there: does this "),
            start(job, "worker", two, **env): ("10.77.0.2", "no answer: a firewall drops what is sent there"),
        }
        job.wait([process for process in job.processes if process not in expected])
        for worker, (source, said) in expected.items():
            last = worker.stderr.splitlines()[-1]
            assert last.startswith("pslite.errors.UnreachableError: server 1 (pid "), worker
            assert f" at tcp://{three.address}:9101 was not reached in " in last, worker
            assert f", from {source} (eth0): {said}" in last, worker

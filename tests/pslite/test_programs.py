"""ps-lite's own programs, with its figures: in one process, and as real processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pslite import InprocCluster, run_all
from tests.pslite.programs import group_requests, kv_app
from tests.system.jobs import HandMadeJob, launch

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=4, servers=2) as cluster:
        yield cluster


def test_connect_and_leave() -> None:
    for _ in range(4):
        with InprocCluster(workers=2, servers=2) as cluster:
            run_all([office.finalize for office in cluster.offices])


def test_100_requests_reach_every_node_exactly_once(cluster: InprocCluster) -> None:
    received = run_all([lambda office=office: group_requests.live(office) for office in cluster.offices])
    assert received == [100] * 7


@pytest.mark.parametrize("customers", [1, 2])
def test_pushes_pulls_and_pushpulls(cluster: InprocCluster, customers: int) -> None:
    for office in cluster.servers:
        kv_app.serve(office)
    errors = run_all([lambda office=office: kv_app.live(office, customers) for office in cluster.workers])
    assert np.shape(errors) == (4, customers, 2)
    assert np.max(errors) < kv_app.LARGEST_ERROR


def by_hand(directory: Path, program: str, *arguments: object, workers: int, servers: int) -> list[str]:
    """Run a program in real processes that know only their DMLC_ variables; returns who printed ``done``."""
    with HandMadeJob(directory, workers, servers) as job:
        job.start_all(PROGRAMS / program, *arguments)
        job.wait(timeout=100)
        assert [p.status for p in job.processes] == [0] * len(job.processes), job.processes
        return sorted(p.said("done").split(" [")[0] for p in job.processes)


NODES = ["scheduler", "server 0", "server 1", "worker 0", "worker 1", "worker 2", "worker 3"]


@pytest.mark.processes
def test_connect_and_leave_as_processes(tmp_path: Path) -> None:
    assert by_hand(tmp_path, "connect.py", workers=4, servers=2) == NODES


@pytest.mark.processes
def test_group_requests_as_processes(tmp_path: Path) -> None:
    done = by_hand(tmp_path, "group_requests.py", workers=4, servers=2)
    assert done == [f"{node} 100" for node in NODES]


@pytest.mark.processes
def test_two_customers_in_each_process(tmp_path: Path) -> None:
    assert by_hand(tmp_path, "kv_app.py", 2, workers=4, servers=2) == NODES


@pytest.mark.processes
def test_pushes_and_pulls_with_the_launcher() -> None:
    """Over Unix sockets, which a job of the launcher on one host uses."""
    result = launch("-n", 4, "-s", 2, sys.executable, PROGRAMS / "kv_app.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(line.split("done ")[1].split(" [")[0] for line in result.stdout.splitlines()) == NODES


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(120)
def test_10_million_keys(tmp_path: Path) -> None:
    assert by_hand(tmp_path, "many_keys.py", 10_000_000, workers=1, servers=1) == ["scheduler", "server 0", "worker 0"]

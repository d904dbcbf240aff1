from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .cluster import NEEDS, Cluster
from .named_hosts import require


@pytest.fixture(scope="session")
def programs() -> None:
    """Skips the test where what the hosts of a cluster need is not installed, which is a failure if CI=true."""
    require(NEEDS)


@pytest.fixture(scope="module")
def booted(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of a module's tests."""
    with Cluster(tmp_path_factory.mktemp("cluster"), nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(booted: Cluster) -> Iterator[Cluster]:
    """A head and three nodes, on which nothing runs, and on which the test leaves nothing."""
    yield booted
    try:
        booted.wait_until_clean(time.monotonic(), "from the end of the test until nothing was left")
    finally:
        for machine in booted.machines:
            machine.sweep()

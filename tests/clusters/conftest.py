from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import pytest

from .cluster import NEEDS, Cluster


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Skips the tests where the programs are not installed, which is a failure if CI=true."""
    lacking = [need for need in NEEDS if (os.geteuid() if need == "root" else not shutil.which(need))]
    if lacking:
        reason = f"hosts with ssh need {', '.join(lacking)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster of a module's tests."""
    with Cluster(tmp_path_factory.mktemp("cluster"), nodes=3) as cluster:
        yield cluster


@pytest.fixture
def cluster(booted: Cluster) -> Iterator[Cluster]:
    """A head and three nodes, on which nothing runs, and on which the test leaves nothing."""
    yield booted
    booted.wait_until_clean(time.monotonic(), "from the end of the test until nothing was left")

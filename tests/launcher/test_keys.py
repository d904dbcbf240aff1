"""The keys of a launched job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import keys as keys_module
from launcher.keys import JobKeys, KeysFailed
from launcher.spec import ProcessSpec

pytestmark = pytest.mark.processes



def files(keys: JobKeys, *places: tuple[str, int], replicas: int = 0) -> set[str]:
    return set(keys.of([ProcessSpec(role, rank, "here", (), {}) for role, rank in places], replicas))


def test_a_host_gets_the_keys_of_its_processes_and_the_roster() -> None:
    keys = JobKeys(workers=3, servers=2)
    assert files(keys, ("scheduler", 0), ("worker", 1)) == {"scheduler.key", "worker-1.key", "roster.json"}
    assert json.loads(keys.of([ProcessSpec("server", 1, "here", (), {})])["server-1.key"])["rank"] == 1
    assert set(keys.workers_from(1)) == {"worker-1.key", "worker-2.key"}


def test_and_of_the_servers_whose_place_its_own_may_take() -> None:
    keys = JobKeys(workers=1, servers=3)
    assert files(keys, ("server", 0), replicas=1) == {"server-0.key", "server-2.key", "roster.json"}


def test_a_python_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module.sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(KeysFailed, match=r"no keys: .*No such file"):
        JobKeys(1, 1)

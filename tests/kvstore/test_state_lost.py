"""A server that comes again with nothing of what its predecessor held says so, and so do all who need it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.base import KVStore
from kvstore.checkpoint.directory import Directory
from kvstore.server.hosting import Host
from pslite.errors import JoinError, StateLost

from .hosted_jobs import Job, job

WAITS = 20.0  # seconds: far above what anything here takes


KEYS = ["v", "w"]  # one on each of two servers


def train(kv: KVStore) -> None:
    for key in KEYS:
        kv.init(key, np.zeros(3))
    for _ in range(2):
        push(kv)


def push(kv: KVStore) -> None:
    for key in KEYS:
        kv.push(key, np.ones(3)).wait()


def come_again(jobs: Job, rank: int) -> tuple[Host, threading.Thread, list[int]]:
    """Kill a server, and start another process in its place, as by hand: nobody keeps its memory."""
    cluster = jobs.cluster
    host, statuses = Host(cluster.restart(cluster.servers[rank])), list[int]()
    thread = threading.Thread(target=lambda: statuses.append(host.serve()), daemon=True)
    thread.start()
    return host, thread, statuses


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
@pytest.mark.parametrize("rank", [0, 1])
def test_all_hear_that_the_state_is_lost(type: str, rank: int) -> None:
    with job(type, max_restarts=1) as jobs:
        jobs.all(train)
        host, thread, statuses = come_again(jobs, rank)

        def go_on(kv: KVStore) -> StateLost:
            with pytest.raises(StateLost) as raised:
                push(kv)
            return raised.value

        for error in jobs.all(go_on):
            assert str(error).startswith(f"server {rank} (pid")
            assert "came again without what its predecessor held: start the whole job again" in str(error)
        thread.join(WAITS)
        assert statuses == [1] and isinstance(host.first_failure, StateLost)
        with pytest.raises(JoinError, match="the job has its 2 servers already"):
            jobs.cluster.replace(host.office).start()


def test_a_push_under_way_is_not_taken_in_by_one_that_is_empty() -> None:
    """It waits for the other worker's, and is sent again to the successor, in which its key is not."""
    with job("dist_sync", max_restarts=1) as jobs:
        jobs.all(train)
        pushed = jobs.stores[0].push(KEYS, [np.ones(3)] * 2)
        for rank in (0, 1):
            _, thread, statuses = come_again(jobs, rank)
            thread.join(WAITS)
            assert statuses == [1]
        with pytest.raises(StateLost):
            pushed.wait()


def test_with_a_checkpoint_to_go_on_from_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Directory, "lock", lambda self: None)  # it goes with a process, and here is but one
    settings: dict[str, Any] = {"workers": 1, "servers": 1, "checkpoint_dir": str(tmp_path / "c"), "max_restarts": 1}
    with job("dist_sync", **settings) as jobs:
        jobs.all(train)
        jobs.all(lambda kv: kv.checkpoint())
        jobs.end()
    with job("dist_sync", **settings, resume=True) as jobs:
        _, thread, statuses = come_again(jobs, 0)
        [kv] = jobs.stores
        kv.init("w", np.zeros(3))
        assert kv.pull("w").tolist() == [1, 1, 1]
        jobs.end(0)
        thread.join(WAITS)
        assert statuses == [0]

"""A server process takes over the server of another one, with what it had."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.base import KVStore
from kvstore.p3 import open_store
from kvstore.server.hosting import Host
from kvstore.server.replica import Replica
from kvstore.server.replicating import Replicated
from kvstore.server.service import Service
from kvstore.server.store import Store
from pslite import InprocCluster, run_all
from pslite.memory import PLAIN

SMALL = [f"small {i}" for i in range(6)]


class Job:
    """A job of two workers and two servers, whose servers' processes are threads."""

    def __init__(self, type: str) -> None:
        self.cluster = InprocCluster(workers=2, servers=2, max_restarts=1)
        self.hosts = [Host(office) for office in self.cluster.servers]
        self.statuses: list[int | None] = [None, None, None]
        jobs = [Host(self.cluster.scheduler).serve, *[host.serve for host in self.hosts]]
        self._threads = [threading.Thread(target=self._serve, args=(i, job), daemon=True) for i, job in enumerate(jobs)]
        for thread in self._threads:
            thread.start()
        self.stores: list[KVStore] = run_all([lambda o=o: self._started(o, type) for o in self.cluster.workers])

    def _serve(self, index: int, job: Any) -> None:
        self.statuses[index] = job()

    def _started(self, office: Any, type: str) -> KVStore:
        office.start()
        return open_store(type, office)

    def all(self, call: Any) -> list[Any]:
        return run_all([lambda kv=kv: call(kv) for kv in self.stores])

    def end(self, *dead: int) -> None:
        """In good order; ``dead``: ranks of servers whose processes died."""
        self.all(lambda kv: kv.close())
        for index, thread in enumerate(self._threads):
            if index - 1 not in dead:
                thread.join(20)
                assert self.statuses[index] == 0

    def close(self) -> None:
        self.cluster.close()


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> dict[int, Store]:
    """The store of each server, by rank; the newest one."""
    found: dict[int, Store] = {}
    made = Service.__init__

    def noted(self: Service, office: Any, *rest: Any) -> None:
        made(self, office, *rest)
        found[office.rank] = self.store

    monkeypatch.setattr(Service, "__init__", noted)
    return found


@contextmanager
def job(type: str) -> Iterator[Job]:
    job = Job(type)
    try:
        yield job
    finally:
        job.close()


def copy_of(store: Store) -> Replica:
    """What a store has now."""
    replica = Replica()
    store.tell(Replicated(PLAIN, replica.take))
    store.stop_telling()
    return replica


def work(job: Job, steps: range) -> None:
    def push(kv: KVStore) -> None:
        for step in steps:
            kv.push("dense", np.full((300, 4), step + kv.rank + 0.5, np.float32))
            kv.push(SMALL, [np.full(3, step * kv.rank + i, np.float32) for i in range(len(SMALL))])
            rows = np.full((2, 2), step + 1.0, np.float32)
            kv.push("table", kvstore.sparse.row_sparse_array((rows, [step, 20 + kv.rank]), (40, 2)))

    job.all(push)


def result(kv: KVStore) -> list[Any]:
    kv.pull(["dense", *SMALL])  # behind all that this worker has pushed
    kv.row_sparse_pull("table", row_ids=[0])
    kv.barrier()
    table = kv.row_sparse_pull("table", row_ids=np.arange(40))
    return [kv.pull("dense"), *kv.pull(SMALL), table.todense()]


@pytest.mark.parametrize(
    ("type", "rule"),
    [("dist_sync", None), ("dist_sync", "test"), ("dist_sync", "sgd"), ("dist_sync", "adam"), ("dist_async", "test")],
)
def test_a_job_goes_on_with_servers_that_others_have_taken_over(
    type: str, rule: str | None, stores: dict[int, Store]
) -> None:
    def run(dies: int | None) -> list[Any]:
        with job(type) as jobs:
            if rule is not None:
                options: dict[str, Any] = {"sgd": {"momentum": 0.9}}.get(rule, {})
                jobs.all(lambda kv: kv.set_optimizer(kvstore.optimizer.create(rule, **options)))
            jobs.all(lambda kv: kv.init("dense", np.zeros((300, 4), np.float32)))
            jobs.all(lambda kv: kv.init(SMALL, [np.zeros(3, np.float32)] * len(SMALL)))
            jobs.all(lambda kv: kv.init("table", kvstore.sparse.zeros((40, 2))))
            work(jobs, range(3))
            jobs.all(result)
            if dies is not None:
                contents = copy_of(stores[dies])
                jobs.cluster.kill(jobs.cluster.servers[dies])
                jobs.hosts[1 - dies].adopt(dies, contents)
            work(jobs, range(3, 6))
            first, second = jobs.all(result)
            for one, other in zip(first, second, strict=True):
                np.testing.assert_array_equal(one, other)
            jobs.end(*[] if dies is None else [dies])
            return first

    expected = run(None)
    for dies in (0, 1):
        for one, other in zip(expected, run(dies), strict=True):
            np.testing.assert_array_equal(one, other)

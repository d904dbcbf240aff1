"""Jobs whose servers are hosted as in real processes, and may take over each other's; with something to do for all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import kvstore
from kvstore.base import KVStore
from kvstore.p3 import open_store
from kvstore.server.hosting import Host
from pslite import InprocCluster, Postoffice, run_all

SMALL = [f"small {i}" for i in range(6)]
SMALL_SHAPE, DENSE, TABLE = (3,), (300, 4), (40, 2)


class Job:
    """A job whose processes are threads; its workers have joined."""

    def __init__(self, type: str, workers: int = 2, servers: int = 2, **settings: Any) -> None:
        self.cluster = InprocCluster(workers=workers, servers=servers, **settings)
        self.hosts = [Host(office) for office in self.cluster.servers]
        self.statuses: dict[int, int] = {}  # of the scheduler (-1) and of the servers' processes that have ended
        jobs = [Host(self.cluster.scheduler), *self.hosts]
        self._threads = [threading.Thread(target=self._serve, args=(i, h), daemon=True) for i, h in enumerate(jobs, -1)]
        for thread in self._threads:
            thread.start()
        self.stores: list[KVStore] = run_all([lambda o=o: started(o, type) for o in self.cluster.workers])

    def _serve(self, index: int, host: Host) -> None:
        self.statuses[index] = host.serve()

    def all(self, call: Callable[[KVStore], Any]) -> list[Any]:
        """The results of all workers."""
        return run_all([lambda kv=kv: call(kv) for kv in self.stores])

    def end(self, *dead: int) -> None:
        """End in good order; ``dead``: ranks of servers whose processes died."""
        self.all(lambda kv: kv.close())
        for index, thread in enumerate(self._threads, -1):
            if index not in dead:
                thread.join(20)
                assert self.statuses[index] == 0


def started(office: Postoffice, type: str) -> KVStore:
    office.start()
    return open_store(type, office)


@contextmanager
def job(type: str, **settings: Any) -> Iterator[Job]:
    job = Job(type, **settings)
    try:
        yield job
    finally:
        job.cluster.close()


def prepare(kv: KVStore, rule: str | None) -> None:
    """Set a rule and make keys of all kinds."""
    if rule == "2bit":
        kv.set_gradient_compression({"type": "2bit", "threshold": 0.5})
    elif rule is not None:
        options: dict[str, Any] = {"momentum": 0.9} if rule == "sgd" else {}
        kv.set_optimizer(kvstore.optimizer.create(rule, **options))
    kv.init("dense", np.zeros(DENSE, np.float32))
    kv.init(SMALL, [np.zeros(SMALL_SHAPE, np.float32)] * len(SMALL))
    if rule != "2bit":
        kv.init("table", kvstore.sparse.zeros(TABLE))


def work(kv: KVStore, steps: range) -> None:
    """Push in each step to all keys, as lists and alone, and pull now and then."""
    for step in steps:
        kv.push("dense", np.full(DENSE, step + kv.rank + 0.5, np.float32))
        kv.push(SMALL, [np.full(SMALL_SHAPE, step * kv.rank + i, np.float32) for i in range(len(SMALL))])
        if "table" in kv._records:
            rows = np.full((2, *TABLE[1:]), step + 1.0, np.float32)
            kv.push("table", kvstore.sparse.row_sparse_array((rows, [step, 20 + kv.rank]), TABLE))
        if step % 3 == 1:
            kv.push(SMALL[2], np.full(SMALL_SHAPE, 0.25 * kv.rank, np.float32))  # the bundle ends
            kv.pull("dense")


def result(kv: KVStore) -> list[Any]:
    """All values when all workers have pushed."""
    _values(kv)  # which comes behind all that this worker has pushed
    kv.barrier()
    return _values(kv)


def _values(kv: KVStore) -> list[Any]:
    found = [kv.pull("dense"), *kv.pull(SMALL)]
    if "table" in kv._records:
        found.append(kv.row_sparse_pull("table", row_ids=np.arange(TABLE[0])).todense())
    return found


def same(one: list[Any], other: list[Any]) -> None:
    """To the bit."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)

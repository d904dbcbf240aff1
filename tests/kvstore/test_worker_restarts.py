"""A worker dies in the midst of a step: the job waits for its successor, or goes on without it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest

import kvstore
from kvstore.base import KVStore
from kvstore.p3 import open_store
from kvstore.resumed import Resumed
from kvstore.server.hosting import serve
from pslite import InprocCluster, Postoffice, run_all, worker_id
from pslite.errors import PeerLost
from tests.harness import wait_until

KEYS = ["a", "b"]
SHAPE = (4,)


@contextmanager
def job(type: str = "dist_sync", workers: int = 2, servers: int = 2, **settings: object) -> Iterator[InprocCluster]:
    cluster = InprocCluster(workers=workers, servers=servers, **settings)
    threads = [threading.Thread(target=serve, args=(o,), daemon=True) for o in (cluster.scheduler, *cluster.servers)]
    for thread in threads:
        thread.start()
    try:
        yield cluster
    finally:
        cluster.close()
        for thread in threads:
            thread.join(10)


def started(office: Postoffice, type: str = "dist_sync") -> KVStore:
    office.start()
    return open_store(type, office)


def soon(job: Callable[[], object]) -> Future[object]:
    future: Future[object] = Future()

    def work() -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def push(kv: KVStore, key: str, value: float) -> None:
    kv.push(key, np.full(SHAPE, value))


def value(kv: KVStore, key: str) -> float:
    return float(kv.pull(key)[0])


@pytest.mark.parametrize("counts_steps", [True, False])
def test_a_worker_is_killed_between_its_pushes_of_two_keys(counts_steps: bool) -> None:
    with job(max_restarts=3) as cluster:
        first, second = run_all([lambda o=o: started(o) for o in cluster.workers])
        run_all([lambda kv=kv: kv.init(KEYS, [np.zeros(SHAPE)] * 2) for kv in (first, second)])
        for step in range(3):
            for kv, mine in ((first, 1.0), (second, 10.0)):
                push(kv, "a", mine * (step + 1))
                push(kv, "b", mine * (step + 1))
            for kv in (first, second):
                assert value(kv, "a") == value(kv, "b") == 11.0 * (step + 1)
                if counts_steps:
                    kv.step()
        push(second, "a", 40.0)
        second._worker.customer.settle(5)  # the servers have it, and it waits there for the other worker's
        again = started(cluster.restart(cluster.workers[1]))
        again.init(KEYS, [np.zeros(SHAPE)] * 2)
        assert again.start_step == (2 if counts_steps else 3)  # of step 2 the servers do not know that it was all
        for step in range(again.start_step, 4):
            push(again, "a", 999.0)  # its predecessor's pushes of these steps count, so these do not
            push(again, "b", 999.0 if step < 3 else 40.0)
            if counts_steps and step < 3:
                again.step()
        push(first, "a", 4.0)
        push(first, "b", 4.0)
        for kv in (first, again):
            assert value(kv, "a") == value(kv, "b") == 44.0
        if counts_steps:
            run_all([first.step, again.step])
        for kv, mine in ((first, 5.0), (again, 50.0)):
            push(kv, "a", mine)
            push(kv, "b", mine)
        for kv in (first, again):
            assert value(kv, "a") == value(kv, "b") == 55.0
        run_all([first.close, again.close])


def test_a_worker_of_an_asynchronous_job_comes_again_and_again() -> None:
    with job("dist_async", max_restarts=9) as cluster:
        first, second = run_all([lambda o=o: started(o, "dist_async") for o in cluster.workers])
        sgd = kvstore.optimizer.create("test")
        run_all([lambda kv=kv: kv.set_optimizer(sgd) for kv in (first, second)])
        run_all([lambda kv=kv: kv.init(KEYS, [np.zeros(SHAPE)] * 2) for kv in (first, second)])
        for times in range(1, 5):
            again = started(cluster.restart(cluster.workers[1]), "dist_async")
            again.set_optimizer(sgd)
            again.init(KEYS, [np.zeros(SHAPE)] * 2)
            assert again.start_step == times - 1
            again.push(KEYS, [np.ones(SHAPE)] * 2)
            again.pull(KEYS)
            again.step()
        assert value(first, "a") == value(first, "b") == 4.0


def test_the_others_go_on_without_a_worker_that_is_lost() -> None:
    with job(workers=3, on_worker_lost="shrink") as cluster:
        stores = run_all([lambda o=o: started(o) for o in cluster.workers])
        run_all([lambda kv=kv: kv.init(KEYS, [np.zeros(SHAPE)] * 2) for kv in stores])
        first, lost, third = stores
        for kv in stores:
            push(kv, "a", 1.0)
        assert value(first, "a") == 3.0
        push(first, "a", 1.0)
        push(first, "b", 1.0)
        push(lost, "b", 1.0)
        push(third, "a", 1.0)
        push(third, "b", 1.0)
        assert value(third, "b") == 3.0  # it has pushed that one
        cluster.kill(cluster.workers[1])
        assert value(first, "a") == 2.0  # but not this one
        assert first.num_workers == 3
        assert first.step() == 1
        assert first.live_ranks == [0, 2] and first.num_workers == 2
        assert first.get_num_dead_node(4) == 1 and first.status()["worker 1"] == "lost"
        run_all([first.close, third.close])


def test_by_default_a_lost_worker_is_an_error() -> None:
    with job() as cluster:
        stores = run_all([lambda o=o: started(o) for o in cluster.workers])
        run_all([lambda kv=kv: kv.init(KEYS, [np.zeros(SHAPE)] * 2) for kv in stores])
        push(stores[0], "a", 1.0)
        cluster.kill(cluster.workers[1])
        with pytest.raises(PeerLost):
            value(stores[0], "a")


def test_who_is_away_can_be_asked() -> None:
    with job(max_restarts=3) as cluster:
        first, _ = run_all([lambda o=o: started(o) for o in cluster.workers])
        assert first.get_num_dead_node(4) == 0
        cluster.kill(cluster.workers[1])
        wait_until(lambda: worker_id(1) in cluster.workers[0].away())
        assert first.get_num_dead_node(4) == 1 and first.status()["worker 1"] == "away"
        started(cluster.restart(cluster.workers[1]))
        assert first.get_num_dead_node(4) == 0


def test_where_to_go_on_when_a_key_is_pushed_seldom() -> None:
    assert Resumed({1: 7, 2: 6, 3: 2}).step == 6
    assert Resumed({1: 7 << 32 | 1, 2: 6 << 32 | 2, 3: 2 << 32 | 1}).step == 6
    assert Resumed({}).step == Resumed({1: 0, 2: 1}).step == 0

"""One store used by many threads, and beside a thread that keeps the interpreter busy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import kvstore
from pslite import run_all

THREADS, STEPS = 8, 30
KV = kvstore.KVStore


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(index)`` in threads; the first error is raised here."""
    run_all([partial(work, index) for index in range(count)])


def run(type: str, work: Callable[[Any], Any], workers: int = 2) -> list[Any]:
    if type == "local":
        return [work(kvstore.create())]
    return kvstore.LocalCluster(workers=workers, servers=2, type=type, timeout=30).run(work)


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_eight_threads_with_keys_of_their_own(type: str) -> None:
    """Every pushpull returns exactly its own round's sum."""

    def work(kv: KV) -> None:
        kv.init([f"k{i}" for i in range(THREADS)], [np.zeros(100)] * THREADS)

        def step(index: int) -> None:
            out = np.zeros(100)
            for turn in range(STEPS):
                kv.pushpull(f"k{index}", np.full(100, 1000.0 * index + turn), out=out)
                assert (out == kv.num_workers * (1000 * index + turn)).all()

        in_threads(THREADS, step)

    run(type, work)


@pytest.mark.parametrize("type", ["local", "dist_sync", "dist_async"])
def test_eight_threads_that_add_to_one_key(type: str) -> None:
    def work(kv: KV) -> float:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", np.zeros(10))

        def step(index: int) -> None:
            for _ in range(STEPS):
                kv.push("w", np.ones(10))
                assert kv.pull("w")[0] >= 1

        in_threads(THREADS, step)
        kv.barrier()
        total: float = kv.pull("w")[0]
        return total

    for total in run(type, work):
        assert total == (1 if type == "local" else 2) * THREADS * STEPS


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_threads_that_make_keys(type: str) -> None:
    def work(kv: KV) -> None:
        def make(index: int) -> None:
            for turn in range(5):
                kv.init(f"{index}/{turn}", np.full(3, float(index)))
                kv.push(f"{index}/{turn}", np.ones(3))
                assert (kv.pull(f"{index}/{turn}") == kv.num_workers).all()

        in_threads(THREADS, make)

    run(type, work)


def test_a_thread_that_waits_for_a_key_to_be_made_holds_nobody_up() -> None:
    pulled = threading.Event()

    def work(kv: KV) -> None:
        kv.init("old", np.ones(2))
        if kv.rank == 0:
            assert pulled.wait(10)
            kv.init("new", np.ones(2))
            return

        def use(index: int) -> None:
            if index == 0:
                kv.init("new", np.ones(2))
                assert pulled.is_set()
                return
            for _ in range(20):
                kv.pull("old")
            pulled.set()

        in_threads(2, use)

    run("dist_sync", work)


def test_pulls_in_threads_while_a_round_is_open() -> None:
    """A thread whose pull waits for another worker does not hold up the threads that use other keys."""
    waiting, checked = threading.Event(), threading.Event()

    def work(kv: KV) -> None:
        kv.init(["slow", "fast"], [np.zeros(2), np.full(2, 7.0)])
        if kv.rank == 1:
            assert checked.wait(10)
            kv.push("slow", np.ones(2))
            return

        def use(index: int) -> None:
            if index == 0:
                kv.push("slow", np.ones(2))
                handle = kv.pull("slow", wait=False)
                waiting.set()
                assert handle.wait()[0] == 2
                return
            assert waiting.wait(10)
            for _ in range(20):
                assert kv.pull("fast")[0] == 7
            checked.set()

        in_threads(2, use)

    run("dist_sync", work)


@pytest.mark.parametrize("type", ["local", "dist_sync", "dist_async"])
def test_a_store_beside_a_thread_that_computes_in_python(type: str) -> None:
    stop = threading.Event()

    def compute() -> None:
        total = 0
        while not stop.is_set():
            total += sum(range(1000))

    def work(kv: KV) -> float:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", np.zeros(1000))
        out = np.zeros(1000)
        for _ in range(10):
            kv.pushpull("w", np.ones(1000), out=out)
        kv.barrier()
        return float(kv.pull("w")[999])

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        for total in run(type, work):
            assert total == (10 if type == "local" else 20)
    finally:
        stop.set()
        busy.join()


def test_a_push_that_meets_the_open_burst_of_another_thread_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The burst, which leaves first, has a push of the same key: it must have the lower number."""

    def work(kv: Any) -> float:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", np.zeros(10))
        one, check = np.ones(10), kv._check_closing

        def another_thread_was_here() -> None:
            monkeypatch.setattr(kv, "_check_closing", check)
            assert kv._join(kv._small("w", one), one, 0, push=True) is not None

        monkeypatch.setattr(kv, "_check_closing", another_thread_was_here)
        kv.push("w", one).wait()
        total: float = kv.pull("w")[0]
        return total

    assert run("dist_async", work, workers=1) == [2.0]

"""Calls in flight: handles, when failures are raised, how far ahead a worker may be, barriers, and the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import rules
from kvstore.ledger import MAX_AHEAD
from pslite.errors import (
    BarrierTimeout,
    ClosedError,
    PSError,
    RemoteError,
    RequestTimeout,
    WorkerFailed,
    WorkerFinished,
)
from tests.harness import wait_until

KV = kvstore.KVStore


def run(*roles: Callable[[Any], Any], servers: int = 2, type: str = "dist_sync", **options: Any) -> list[Any]:
    """A cluster with one worker per function, each of which runs its own."""
    cluster = kvstore.LocalCluster(workers=len(roles), servers=servers, type=type, **options)
    return cluster.run(lambda kv: roles[kv.rank](kv))


@pytest.fixture(autouse=True)
def _updaters() -> Iterator[None]:
    @kvstore.updater("refuse-negative")
    def refuse_negative(key: Any, received: Any, stored: Any) -> None:
        if (received < 0).any():
            raise ValueError("negative")
        stored += received

    yield
    del rules._UPDATERS["refuse-negative"]


ONE, MINUS = np.ones(2, np.float32), -np.ones(2, np.float32)


def prepared(kv: KV, *keys: str, updater: bool = True) -> None:
    if updater:
        kv.set_updater("refuse-negative")
    for key in keys:
        kv.init(key, np.zeros(2, np.float32))


# -- handles ----------------------------------------------------------------------------------------------------------


def test_a_push_is_done_when_its_round_is() -> None:
    pushed, seen = threading.Event(), threading.Event()

    def first(kv: KV) -> None:
        kv.init("w", ONE)
        handle = kv.push("w", ONE)
        assert not handle.done() and "in flight" in repr(handle)
        with pytest.raises(RequestTimeout, match="worker 1"):
            handle.wait(0.05)
        with pytest.raises(RequestTimeout):
            handle.exception(0.0)
        pushed.set()
        assert handle.wait() is None and handle.wait(0) is None
        assert handle.done() and handle.exception() is None and "done" in repr(handle)
        seen.set()

    def second(kv: KV) -> None:
        kv.init("w", ONE)
        assert pushed.wait(10)
        kv.push("w", ONE)
        assert seen.wait(10)

    run(first, second)


def test_a_pull_in_flight_gives_its_result_as_often_as_asked() -> None:
    def work(kv: KV) -> None:
        kv.init("w", 5 * ONE)
        kv.init("v", 6 * ONE)
        handle = kv.pull(["w", "v"], wait=False)
        first, second = handle.wait()
        assert first.tolist() == [5, 5] and second.tolist() == [6, 6]
        assert handle.wait()[0] is first
        out = np.zeros(2)
        handle = kv.pull("w", out=out, wait=False)
        assert handle.wait() is None and out.tolist() == [5, 5]

    for name in ("local", "dist_sync"):
        work(kvstore.create()) if name == "local" else run(work)


def test_thousands_of_pulls_in_flight_keep_their_results() -> None:
    def work(kv: KV) -> None:
        kv.init("w", ONE)
        handles = [kv.pull("w", wait=False) for _ in range(2000)]
        assert all(handle.wait().tolist() == [1, 1] for handle in handles)

    run(work, servers=1)


def test_two_threads_may_wait_for_one_handle() -> None:
    def work(kv: KV) -> None:
        kv.init("w", ONE)
        for _ in range(50):
            handle = kv.pull("w", wait=False)
            seen: list[Any] = []
            threads = [threading.Thread(target=lambda h=handle, s=seen: s.append(h.wait())) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(seen) == 4 and all(value is seen[0] is not None for value in seen)

    run(work, servers=1)


def test_pushpull_in_flight_leaves_out_alone_until_it_is_done() -> None:
    go = threading.Event()

    def first(kv: KV) -> None:
        kv.init("w", ONE)
        out = np.zeros(2)
        handle = kv.pushpull("w", ONE, out=out, wait=False)
        assert out.tolist() == [0, 0]
        go.set()
        handle.wait()
        assert out.tolist() == [3, 3]

    def second(kv: KV) -> None:
        kv.init("w", ONE)
        assert go.wait(10)
        kv.push("w", 2 * ONE)

    run(first, second)


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_push_is_raised_once_by_the_next_call() -> None:
    def work(kv: KV) -> None:
        prepared(kv, "w", "v")
        handle = kv.push("w", MINUS)
        wait_until(handle.done)
        with pytest.raises(RemoteError, match="refuse-negative"):
            kv.pull("v")
        assert kv.pull("v").tolist() == [0, 0]
        kv.push("w", ONE)
        assert kv.pull("w").tolist() == [1, 1]

    run(work)


@pytest.mark.parametrize("call", ["push", "pull", "pushpull", "init", "barrier", "set_updater", "send_command"])
def test_every_call_raises_what_failed_before(call: str) -> None:
    def work(kv: KV) -> None:
        prepared(kv, "w")
        wait_until(kv.push("w", MINUS).done)
        calls: dict[str, Callable[[], Any]] = {
            "push": lambda: kv.push("w", ONE),
            "pull": lambda: kv.pull("w"),
            "pushpull": lambda: kv.pushpull("w", ONE.copy()),
            "init": lambda: kv.init("new", ONE),
            "barrier": kv.barrier,
            "set_updater": lambda: kv.set_updater("refuse-negative"),
            "send_command": lambda: kv.send_command_to_servers(1, ""),
        }
        with pytest.raises(RemoteError):
            calls[call]()
        calls[call]()

    run(work)


@pytest.mark.parametrize("look", ["wait", "exception"])
def test_what_the_handle_told_is_not_raised_again(look: str) -> None:
    def work(kv: KV) -> None:
        prepared(kv, "w")
        handle = kv.push("w", MINUS)
        if look == "wait":
            for _ in range(2):
                with pytest.raises(RemoteError):
                    handle.wait()
        assert isinstance(handle.exception(), RemoteError)
        kv.pull("w")

    run(work)


def test_a_failure_behind_a_push_that_waits_is_raised_by_the_next_call() -> None:
    failed = threading.Event()

    def first(kv: KV) -> None:
        prepared(kv, "slow", "bad")
        waiting = kv.push("slow", ONE)
        wait_until(kv.push("bad", 5 * MINUS).done)
        assert not waiting.done()
        with pytest.raises(RemoteError):
            kv.pull("bad")
        failed.set()
        waiting.wait()

    def second(kv: KV) -> None:
        prepared(kv, "slow", "bad")
        assert isinstance(kv.push("bad", ONE).exception(), RemoteError)
        assert failed.wait(10)
        kv.push("slow", ONE)

    run(first, second)


def test_several_failures_are_raised_one_by_one() -> None:
    def work(kv: KV) -> None:
        prepared(kv, "a", "b", "c")
        handles = [kv.push("a", MINUS), kv.push("b", MINUS)]
        for handle in handles:
            wait_until(handle.done)
        for _ in handles:
            with pytest.raises(RemoteError):
                kv.push("c", ONE)
        assert kv.pull("c").tolist() == [0, 0]

    run(work)


def test_close_waits_for_pushes_and_raises_what_failed() -> None:
    def work(kv: KV) -> None:
        prepared(kv, "w")
        kv.push("w", MINUS)

    with pytest.raises(RemoteError, match="negative"):
        run(work)


def test_close_waits_for_a_pushpull_whose_handle_is_dropped() -> None:
    def work(kv: KV) -> None:
        prepared(kv, "w")
        kv.pushpull("w", MINUS.copy(), wait=False)

    with pytest.raises(RemoteError, match="negative"):
        run(work)


def test_close_delivers_every_push() -> None:
    left, done = threading.Event(), threading.Event()
    seen = []

    def first(kv: KV) -> None:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", ONE)
        for _ in range(100):
            kv.push("w", ONE)
        left.set()

    def second(kv: KV) -> None:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", ONE)
        assert left.wait(10)
        wait_until(lambda: kv.pull("w")[0] == 101)
        seen.append(kv.pull("w")[0])
        done.set()

    run(first, second, type="dist_async")
    assert seen == [101]


def test_after_close_calls_raise_and_another_close_does_nothing() -> None:
    def work(kv: KV) -> None:
        kv.init("w", ONE)
        kv.close()
        kv.close()
        for call in (lambda: kv.pull("w"), lambda: kv.push("w", ONE), lambda: kv.init("v", ONE), kv.barrier):
            with pytest.raises(ClosedError, match="create a new one"):
                call()

    run(work)
    work(kvstore.create())


def test_a_store_that_is_closed_in_its_with_block_stays_closed() -> None:
    with kvstore.create() as kv:
        kv.init("w", ONE)
    with pytest.raises(ClosedError):
        kv.pull("w")


# -- the others' end --------------------------------------------------------------------------------------------------


def test_an_exception_in_a_with_block_tells_the_others_at_once() -> None:
    heard: list[PSError] = []

    def failing(kv: KV) -> None:
        kv.init("w", ONE)
        raise LookupError("no such file")

    def waiting(kv: KV) -> None:
        kv.init("w", ONE)
        with pytest.raises(WorkerFailed) as caught:
            kv.pushpull("w", ONE.copy())
        heard.append(caught.value)

    with pytest.raises(LookupError, match="no such file"):
        run(failing, waiting)
    assert "worker 0" in heard[0].node and "LookupError: no such file" in str(heard[0])


def test_close_raises_the_failure_of_another_worker() -> None:
    heard: list[str] = []

    def failing(kv: KV) -> None:
        raise LookupError("mine")

    def closing(kv: KV) -> None:
        with pytest.raises(WorkerFailed, match="LookupError: mine") as caught:
            kv.close()
        heard.append(str(caught.value))

    with pytest.raises(LookupError):
        run(closing, failing, closing)
    assert len(heard) == 2


def test_unequal_numbers_of_batches_end_in_worker_finished() -> None:
    def few(kv: KV) -> None:
        kv.init("w", ONE)
        for _ in range(2):
            kv.pushpull("w", ONE.copy())

    def many(kv: KV) -> None:
        few(kv)
        with pytest.raises(WorkerFinished, match=r"worker 0.*round 3 of key 'w'.*same number of batches"):
            kv.pushpull("w", ONE.copy())

    run(few, many)


def test_a_barrier_with_a_worker_that_finished() -> None:
    def waiting(kv: KV) -> None:
        with pytest.raises(WorkerFinished, match=r"worker 1.*this barrier"):
            kv.barrier()

    run(waiting, lambda kv: None)


def test_close_with_join_lets_the_others_go_on() -> None:
    def few(kv: KV) -> None:
        kv.init("w", ONE)
        kv.pushpull("w", ONE.copy())
        kv.close(join=True)

    def many(kv: KV) -> list[float]:
        kv.init("w", ONE)
        out, seen = ONE.copy(), []
        for _ in range(3):
            kv.pushpull("w", kv.rank * ONE, out=out)
            seen.append(float(out[0]))
        return seen

    assert run(few, many, many)[1:] == [[4.0, 3.0, 3.0]] * 2


# -- limits -----------------------------------------------------------------------------------------------------------


def test_a_worker_may_be_three_pushes_ahead_and_no_further() -> None:
    blocked = threading.Event()

    def fast(kv: KV) -> None:
        prepared(kv, "w", "other")
        for _ in range(MAX_AHEAD):
            kv.push("w", ONE)
        with pytest.raises(RequestTimeout) as caught:
            kv.push("w", ONE)
        assert caught.value.missing == ["worker 1 (round 1 of key 'w')", "worker 2 (round 1 of key 'w')"]
        assert caught.value.seconds == 0.3
        kv.push("other", ONE)  # the limit is each key's own
        blocked.set()
        kv.barrier(10)
        kv.push("w", ONE)

    def slow(kv: KV) -> None:
        prepared(kv, "w", "other")
        assert blocked.wait(10)
        for _ in range(MAX_AHEAD):
            kv.push("w", ONE).wait(10)
        kv.push("other", ONE)
        kv.barrier(10)
        kv.push("w", ONE)

    run(fast, slow, slow, timeout=0.3)


def test_a_blocked_push_goes_on_when_there_is_room() -> None:
    started = threading.Event()

    def fast(kv: KV) -> float:
        prepared(kv, "w")
        started.set()
        for _ in range(20):
            kv.push("w", ONE)
        return float(kv.pull("w")[0])

    def slow(kv: KV) -> float:
        prepared(kv, "w")
        assert started.wait(10)
        for _ in range(20):
            kv.push("w", ONE).wait()
        return float(kv.pull("w")[0])

    assert run(fast, slow) == [40, 40]


def test_a_barrier_that_takes_too_long_names_the_missing() -> None:
    over = threading.Event()

    def waiting(kv: KV) -> None:
        with pytest.raises(BarrierTimeout) as caught:
            kv.barrier(timeout=0.1)
        assert caught.value.missing == ["worker 1"]
        assert "0.1 s" in str(caught.value)
        over.set()
        kv.barrier()

    def late(kv: KV) -> None:
        assert over.wait(10)
        kv._barrier()

    run(waiting, late)


def test_a_barrier_does_not_wait_for_pushes() -> None:
    def pushing(kv: KV) -> None:
        kv.init("w", ONE)
        handle = kv.push("w", ONE)
        kv.barrier()
        assert not handle.done()
        kv.barrier()

    def other(kv: KV) -> None:
        kv.init("w", ONE)
        kv.barrier()
        kv.barrier()
        kv.push("w", ONE)

    run(pushing, other)


# -- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [10**6, 2], ids=["whole", "split"])
def test_a_version_counts_changes_of_what_was_pulled_last(bound: int) -> None:
    def work(kv: KV) -> list[int]:
        kv.init("w", np.zeros((4, 2), np.float32))
        versions = []
        for _ in range(3):
            kv.pull("w")
            versions.append(kv.version("w"))
            kv.push("w", np.ones((4, 2), np.float32))
        versions.append(kv.version("w"))
        out = np.zeros((4, 2), np.float32)
        kv.pull("w", out=out)
        return [*versions, kv.version("w")]

    assert run(work, work, bigarray_bound=bound) == [[0, 1, 2, 2, 3]] * 2


def test_a_local_version() -> None:
    kv = kvstore.create()
    kv.init("w", ONE)
    assert kv.version("w") == 0
    kv.push("w", ONE)
    kv.pushpull("w", ONE.copy())
    assert kv.version("w") == 2

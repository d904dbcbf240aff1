"""What several workers' pushes come to, in step and each at its own pace, for every shape of job."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

import kvstore
from kvstore.factory import DIST_TYPES
from tests.kvstore.on_stores import ASYNC, DIST, KV, LOCAL, SHAPE, STORES, SYNC, Store, full, on, pulled, push, same

IN_STEP = [store for store in SYNC if store.workers > 1]
AT_ITS_OWN_PACE = [store for store in ASYNC if store.workers > 1]


# -- in step ----------------------------------------------------------------------------------------------------------


@on(IN_STEP)
def test_a_round_is_the_sum_over_workers_and_devices_and_replaces(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init("w", full(100))
        for _ in range(3):
            kv.push("w", [full(kv.rank + 1), full(10)])
            same(kv.pull("w"), 6 + 30)

    store.run(work)


@on(IN_STEP)
def test_an_updater_runs_once_a_round_on_the_sum(store: Store) -> None:
    seen: list[float] = []

    @kvstore.updater("add")
    def add(key: Any, received: Any, stored: Any) -> None:
        seen.append(float(received[0, 0]))
        stored += received

    def work(kv: KV) -> None:
        kv.set_updater(add)
        kv.init("w", full(100))
        for turn in range(3):
            kv.push("w", full(turn + kv.rank))
        same(kv.pull("w"), 100 + 3 + 6 + 9)

    store.run(work)
    assert seen == [3, 6, 9]


@on(IN_STEP)
def test_two_pushes_of_one_worker_are_two_rounds(store: Store) -> None:
    """MXNet counts requests: rank 1 would fill rounds alone."""
    pushed = threading.Event()

    def work(kv: KV) -> float:
        kv.init("w", full(0))
        if kv.rank == 1:
            kv.push("w", full(1))
            kv.push("w", full(10))
            pushed.set()
            return float(kv.pull("w")[3, 2])
        assert pushed.wait(10)
        kv.push("w", full(100))
        first = float(kv.pull("w")[3, 2])
        kv.push("w", full(1000))
        return first

    assert store.run(work) == [201, 2010, 201]


@on(STORES)
def test_three_pushes_of_each_worker_before_a_pull(store: Store) -> None:
    """With momentum 1/2: SGD's steps are g, g + g / 2, ...; MXNet loses some, or makes other rounds of them."""

    def work(kv: KV) -> None:
        kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=1.0, momentum=0.5, rescale_grad=0.125))
        kv.init("w", full(0))
        for _ in range(3):
            kv.push("w", full(8))
        kv.pull("w")
        kv.barrier()
        n, weight, momentum = kv.num_workers, 0.0, 0.0
        steps = [n] * 3 if "async" not in kv.type else [1] * (3 * n)
        for grad in steps:
            momentum = momentum / 2 - grad
            weight += momentum
        same(kv.pull("w"), weight)

    store.run(work)


@on(IN_STEP)
def test_push_and_pushpull_meet_in_one_round(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init("w", full(0))
        out = full(0)
        if kv.rank == 1:
            kv.push("w", full(1))
            kv.pull("w", out=out)
        else:
            kv.pushpull("w", full(2), out=out)
        same(out, 5)

    store.run(work)


@on([store for store in DIST if store.workers > 1])
def test_a_pull_waits_for_this_workers_pushes_only(store: Store) -> None:
    pulled = threading.Event()

    def work(kv: KV) -> float:
        kv.init("w", full(7))
        if kv.rank != 0:
            value = float(kv.pull("w")[0, 0])
            kv.barrier()
            pulled.set()
            kv.push("w", full(1))
            return value
        pushing = threading.Thread(target=lambda: pulled.wait(10) and kv.push("w", full(1)))
        pushing.start()
        kv.barrier()
        pushing.join()
        return float(kv.pull("w")[0, 0])

    assert store.run(work) == [1 if "async" in store.type else 3, 7, 7]


# -- each at its own pace ---------------------------------------------------------------------------------------------


@on(AT_ITS_OWN_PACE)
def test_async_a_push_is_applied_without_the_others(store: Store) -> None:
    done = threading.Event()

    def work(kv: KV) -> float:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", full(0))
        if kv.rank == 2:
            kv.push("w", full(1))
            value = full(2)
            kv.pushpull("w", value)
            done.set()
            return float(value[3, 2])
        assert done.wait(10)
        return float(kv.pull("w")[0, 0])

    assert store.run(work) == [3, 3, 3]


@on(ASYNC)
def test_async_without_an_updater_assigns(store: Store) -> None:
    """MXNet's server aborts."""

    def work(kv: KV) -> None:
        kv.init(["w", "v"], [full(0), full(0)])
        push(kv, "w", [full(1), full(2)])
        same(pulled(kv, "w"), 3)
        value = full(4)
        kv.pushpull("v", value)
        same(value, 4)
        same(kv.pull("v"), 4)

    store.run(work)


@on(ASYNC)
def test_async_a_pull_has_all_of_this_workers_pushes(store: Store) -> None:
    """MXNet waits for the last one only: one worker read 11 of 45."""

    def work(kv: KV) -> None:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", full(0))
        for step in range(20):
            kv.push("w", full(step))
        assert kv.pull("w").min() >= sum(range(20))
        kv.barrier()
        same(kv.pull("w"), sum(range(20)) * kv.num_workers)

    store.run(work)


# -- what does not depend on the store --------------------------------------------------------------------------------


def train(kv: KV) -> list[bytes]:
    """Some rounds of NAG with weight decay and a schedule on three keys; every worker's gradients differ."""
    rng = np.random.default_rng(kv.rank if kv.num_workers > 1 else 7)
    schedule = kvstore.optimizer.FactorScheduler(step=2, factor=0.5, base_lr=0.1)
    kv.set_optimizer(kvstore.optimizer.create("nag", momentum=0.9, wd=0.01, lr_scheduler=schedule))
    shapes = {"a": SHAPE, "b": (169,), "c": (5, 2, 3)}
    kv.init(list(shapes), [np.random.default_rng(0).standard_normal(s, np.float32) for s in shapes.values()])
    for turn in range(5):
        some = list(shapes)[: turn % 3 + 1]
        kv.push(some, [[rng.standard_normal(shapes[k], np.float32) for _ in range(2)] for k in some])
    return [value.tobytes() for value in kv.pull(list(shapes))]


def test_one_worker_gets_the_bits_of_a_local_store_whatever_the_type_and_the_servers() -> None:
    alone = [store for store in STORES if store.workers == 1]
    alone += [Store(type, 1, 3, 100) for type in DIST_TYPES]
    [expected] = LOCAL[0].run(train)
    for store in alone:
        assert store.run(train) == [expected], store


def test_three_workers_get_the_same_bits_whatever_the_servers() -> None:
    """A round is summed in rank order, wherever the pieces of an array are; of 169 elements here 56, 57 and 56."""
    types = [type for type in DIST_TYPES if "async" not in type]
    expected = Store("dist_sync", 3).run(train)
    assert expected[1:] == expected[:1] * 2
    for store in IN_STEP + [Store(type, 3, 3, 100) for type in types]:
        assert store.run(train) == expected, store


@on()
def test_half_precision_is_summed_in_single_and_rounded_once(store: Store) -> None:
    """2048 + 1 + 1 is 2048 if every step rounds to float16."""

    def work(kv: KV) -> None:
        kv.init("w", full(0, "float16"))
        devices = {1: [2048, 1, 1], 3: [2048 if kv.rank == 0 else 1]}[1 if "async" in kv.type else kv.num_workers]
        push(kv, "w", [full(number, "float16") for number in devices])
        same(kv.pull("w"), 2050)

    store.run(work)


@on()
def test_bools_are_summed_by_or(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init("w", full(False, "bool"))
        push(kv, "w", [full(True, "bool"), full(False, "bool")])
        same(kv.pull("w"), True)

    store.run(work)

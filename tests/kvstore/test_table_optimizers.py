"""Optimizers on every store: common arguments, multipliers, mixed precision, and changes while the job runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import optimizer
from kvstore.bfloat16 import from_float32
from pslite.errors import ConfigError, ConflictError
from tests.kvstore.on_stores import (
    ASYNC,
    DIST,
    KV,
    LOCAL,
    ONE_OF_EACH,
    STORES,
    SYNC,
    Store,
    full,
    on,
    push,
    read,
    update,
)


def value(number: float, dtype: str) -> Any:
    return kvstore.bfloat16(from_float32(full(number))) if dtype == "bfloat16" else full(number, dtype)


# -- common arguments -------------------------------------------------------------------------------------------------


@on()
def test_the_default_rate_of_sgd_is_that_of_1x(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init("w", full(0))
        kv.set_optimizer(optimizer.SGD())
        update(kv, "w", full(1))
        assert read(kv) == np.float32(-0.01)

    store.run(work)


@on()
def test_gradients_are_rescaled_then_clipped_then_decayed(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(optimizer.SGD(learning_rate=1.0, rescale_grad=0.5, clip_gradient=1.0, wd=0.25))
        kv.init("w", full(16))
        update(kv, "w", full(4))  # 16 - (clip(4 / 2) + 16 / 4)
        assert read(kv) == 11
        update(kv, "w", full(-1))  # 11 - (-1 / 2 + 11 / 4)
        assert read(kv) == 8.75

    store.run(work)


@on()
def test_the_optimizer_of_mxnets_tests_adds(store: Store) -> None:
    """As in 1.x: neither learning rate nor weight decay."""

    def work(kv: KV) -> None:
        kv.set_optimizer(optimizer.create("Test", rescale_grad=2, wd=5))
        kv.init("w", full(4))
        push(kv, "w", [full(1), full(2)])
        assert read(kv) == 4 + 6 * kv.num_workers

    store.run(work)


@on()
def test_a_schedule_counts_the_updates_of_the_key(store: Store) -> None:
    def work(kv: KV) -> list[float]:
        schedule = optimizer.FactorScheduler(step=2, factor=0.5, base_lr=1.0)
        kv.set_optimizer(optimizer.SGD(lr_scheduler=schedule))
        kv.init(["w", "v"], [full(0), full(0)])
        update(kv, "v", full(1))
        values = []
        for _ in range(6):
            update(kv, "w", full(1))
            values.append(read(kv))
        return values

    assert store.run(work)[0] == [-1, -2, -2.5, -3, -3.25, -3.5]


# -- multipliers ------------------------------------------------------------------------------------------------------


@on()
@pytest.mark.parametrize("names", [True, False], ids=["names", "numbers"])
def test_multipliers_are_looked_up_by_parameter_then_key_then_name(store: Store, names: bool) -> None:
    """MXNet's servers know neither string keys nor param_dict."""
    keys: list[Any] = ["k0", "k1", "k2", "k3"] if names else [40, 10, 30, 20]
    a, b, c, d = keys

    def work(kv: KV) -> None:
        sgd = optimizer.SGD(
            learning_rate=1.0,
            param_idx2name={a: "a_weight", b: "b_weight", c: "c_weight", d: "d_bias"},
            param_dict={a: {"lr_mult": 0.5}},
            wd=1.0,
        )
        sgd.set_lr_mult({a: 9.0, b: 0.25, "b_weight": 9.0, "c_weight": 0.125})
        sgd.set_wd_mult({"c_weight": 0.0})
        kv.set_optimizer(sgd)
        kv.init(keys, [full(8)] * 4)
        update(kv, keys, [full(8)] * 4)
        # w - lr * (g + wd * w); d_bias does not decay, and has no multiplier of its rate
        assert [read(kv, k) for k in keys] == [8 - 0.5 * 16, 8 - 0.25 * 16, 8 - 0.125 * 8, 8 - 8]

    store.run(work)


# -- mixed precision --------------------------------------------------------------------------------------------------

HALVES = {"float16": 2048, "bfloat16": 256}  # keys, and the number from which on odd ones are not in the dtype


def halves(number: Callable[[int], Any]) -> list[Any]:
    """For each of the dtypes an array of the number that its limit gives, or a list of arrays for a list of numbers."""
    given = {dtype: number(limit) for dtype, limit in HALVES.items()}
    return [
        [value(one, dtype) for one in numbers] if isinstance(numbers, list) else value(numbers, dtype)
        for dtype, numbers in given.items()
    ]


def read_halves(kv: KV) -> list[float]:
    return [read(kv, dtype) for dtype in HALVES]


@on()
@pytest.mark.parametrize("early", [True, False], ids=["before-init", "after-init"])
def test_with_a_master_weight_small_steps_add_up(store: Store, early: bool) -> None:
    """The value is the master, rounded half to even."""

    def work(kv: KV) -> list[list[float]]:
        if early:
            kv.set_optimizer(optimizer.create("test", multi_precision=True))
        kv.init(list(HALVES), halves(lambda limit: limit))
        kv.barrier()
        if not early:
            kv.set_optimizer(optimizer.create("test", multi_precision=True))
        values = []
        for _ in range(4):
            push(kv, list(HALVES), halves(lambda limit: 1 if kv.rank == 0 else 0))
            values.append([got - limit for got, limit in zip(read_halves(kv), HALVES.values(), strict=True)])
        return values

    assert store.run(work) == [[[0, 0], [2, 2], [4, 4], [4, 4]]] * store.workers


@on()
def test_without_a_master_weight_every_step_is_rounded(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(optimizer.create("test"))
        kv.init(list(HALVES), halves(lambda limit: limit))
        for _ in range(4):
            kv.push(list(HALVES), halves(lambda limit: 1 if kv.rank == 0 else 0)).wait()
        kv.barrier()
        assert read_halves(kv) == list(HALVES.values())

    store.run(work)


@on()
def test_the_sum_over_devices_is_rounded_to_the_keys_dtype(store: Store) -> None:
    """It has to travel. So the lowest bit of the first push is lost, and the second leaves nothing."""

    def work(kv: KV) -> None:
        kv.set_optimizer(optimizer.create("test", multi_precision=True))
        kv.init(list(HALVES), halves(lambda limit: 0))
        first = kv.rank == 0
        kv.push(list(HALVES), halves(lambda limit: [limit, 1] if first else [0, 0]))
        kv.push(list(HALVES), halves(lambda limit: [-limit, 0] if first else [0, 0])).wait()
        kv.barrier()
        assert read_halves(kv) == [0, 0]

    store.run(work)


@on([store for store in SYNC if store.workers == 3])
def test_the_sum_over_workers_for_a_master_weight_is_not_rounded(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(optimizer.create("test", multi_precision=True))
        kv.init(list(HALVES), halves(lambda limit: 0))
        kv.push(list(HALVES), halves(lambda limit: [limit, 1, 0][kv.rank]))
        kv.push(list(HALVES), halves(lambda limit: [-limit, 0, 0][kv.rank]))
        assert read_halves(kv) == [1, 1]

    store.run(work)


# -- changes while the job runs ---------------------------------------------------------------------------------------


def lr(sgd: Any) -> None:
    sgd.lr = 2.0


def set_learning_rate(sgd: Any) -> None:
    sgd.set_learning_rate(2.0)


def rescale_grad(sgd: Any) -> None:
    sgd.rescale_grad = 2.0


def set_lr_mult(sgd: Any) -> None:
    sgd.set_lr_mult({"w": 2.0})


def lr_mult(sgd: Any) -> None:
    sgd.lr_mult["w"] = 2.0


def param_dict(sgd: Any) -> None:
    sgd.param_dict = {"w": {"lr_mult": 2.0}}


CHANGES = [(store, lr) for store in STORES]
CHANGES += [
    (store, change)
    for change in (set_learning_rate, rescale_grad, set_lr_mult, lr_mult, param_dict)
    for store in ONE_OF_EACH
]


@pytest.mark.parametrize(("store", "change"), CHANGES, ids=lambda given: getattr(given, "__name__", str(given)))
def test_a_change_counts_from_the_next_push_and_keeps_the_state(store: Store, change: Any) -> None:
    """Momentum 1/2, gradients of 1, twice the rate after two of them: -1, -1.5; then -.75 - 2, -1.375 - 2."""

    def work(kv: KV) -> list[float]:
        sgd = optimizer.SGD(learning_rate=1.0, momentum=0.5)
        kv.set_optimizer(sgd)
        kv.init("w", full(0))
        values = []
        for turn in range(4):
            if turn == 2:
                change(sgd)
            update(kv, "w", full(1))
            values.append(read(kv))
        return values

    assert store.run(work)[0] == [-1, -2.5, -5.25, -8.625]


@on()
def test_weight_decay_may_be_changed(store: Store) -> None:
    def work(kv: KV) -> list[float]:
        sgd = optimizer.SGD(learning_rate=1.0)
        kv.set_optimizer(sgd)
        kv.init("w", full(8))
        values = []
        for wd, mult in ((0.0, 1.0), (0.5, 1.0), (0.5, 0.5), (0.0, 0.5)):
            sgd.wd = wd
            sgd.set_wd_mult({"w": mult})
            update(kv, "w", full(0))
            values.append(read(kv))
        return values

    assert store.run(work)[0] == [8, 4, 3, 3]


@on()
def test_a_schedules_rate_may_be_changed_and_the_count_goes_on(store: Store) -> None:
    def work(kv: KV) -> list[float]:
        sgd = optimizer.SGD(lr_scheduler=optimizer.FactorScheduler(step=1, factor=0.5, base_lr=1.0))
        kv.set_optimizer(sgd)
        kv.init("w", full(0))
        values = []
        for turn in range(3):
            if turn == 2:
                with pytest.raises(ConfigError, match=r"the scheduler sets it; set lr_scheduler\.base_lr"):
                    sgd.set_learning_rate(8.0)
                sgd.lr_scheduler.base_lr = 8.0
            update(kv, "w", full(1))
            values.append(read(kv))
        return values

    assert store.run(work)[0] == [-1, -1.5, -3.5]


@on([store for store in SYNC if store.workers == 3])
def test_in_step_the_lowest_ranks_setting_counts_for_the_round(store: Store) -> None:
    def work(kv: KV) -> None:
        sgd = optimizer.SGD(learning_rate=1.0)
        kv.set_optimizer(sgd)
        kv.init("w", full(0))
        if kv.rank != 0:
            sgd.lr = 100.0  # does not count
        push(kv, "w", full(1))
        assert read(kv) == -3
        if kv.rank == 0:
            sgd.lr = 2.0
        push(kv, "w", full(1))
        assert read(kv) == -9

    store.run(work)


@on([store for store in SYNC if store.workers == 3])
def test_in_step_when_rank_0_has_left_rank_1_decides(store: Store) -> None:
    def work(kv: KV) -> float:
        sgd = optimizer.SGD(learning_rate=1.0)
        kv.set_optimizer(sgd)
        kv.init("w", full(0))
        sgd.lr = {0: 2.0, 1: 4.0, 2: 100.0}[kv.rank]
        push(kv, "w", full(1))
        first = read(kv)
        if kv.rank == 0:
            kv.close(join=True)
            return first
        kv.push("w", full(1))
        return float(kv.pull("w")[0, 0])

    assert store.run(work) == [-6, -14, -14]


@on([store for store in SYNC if store.workers == 3])
def test_in_step_a_change_waits_for_its_round(store: Store) -> None:
    """Rank 0 is two rounds ahead, with another rate for each; the others come later."""
    ahead = threading.Event()

    def work(kv: KV) -> float:
        sgd = optimizer.SGD(learning_rate=1.0)
        kv.set_optimizer(sgd)
        kv.init("w", full(0))
        if kv.rank != 0:
            assert ahead.wait(10)
        for rate in (1.0, 2.0, 4.0):
            sgd.lr = rate
            kv.push("w", full(1))
        ahead.set()
        return read(kv)

    assert store.run(work) == [-21] * 3


@on([store for store in ASYNC if store.workers == 3])
def test_async_a_change_by_any_worker_counts_for_all(store: Store) -> None:
    """Of changes the one with the highest number counts: who repeats an earlier one, later, changes nothing."""

    def work(kv: KV) -> None:
        sgd = optimizer.SGD(learning_rate=1.0)
        kv.set_optimizer(sgd)
        kv.init(["w", "other"], [full(0), full(0)])
        kv.barrier()
        if kv.rank == 1:
            for rate in (8.0, 2.0):
                sgd.lr = rate
                kv.push("other", full(1)).wait()
        update(kv, "w", full(1))  # by rank 0
        assert read(kv) == -2
        if kv.rank == 2:
            sgd.lr = 8.0
            kv.push("other", full(1)).wait()
        update(kv, "w", full(1))
        assert read(kv) == -4

    store.run(work)


@on()
def test_what_was_set_first_may_be_set_again_after_changes(store: Store) -> None:
    def work(kv: KV) -> list[float]:
        sgd = optimizer.SGD(learning_rate=1.0, momentum=0.5)
        kv.set_optimizer(sgd)
        kv.init("w", full(0))
        values = []
        for turn in range(3):
            if turn == 1:
                sgd.lr = 4.0
            elif turn == 2:
                kv.set_optimizer(optimizer.SGD(learning_rate=1.0, momentum=0.5))
            update(kv, "w", full(1))
            values.append(read(kv))
        return values

    assert store.run(work)[0] == [-1, -5.5, -8.75]


@on([store for store in DIST if store.workers == 3])
def test_optimizers_that_differ_are_a_conflict_where_they_do(store: Store) -> None:
    def work(kv: KV) -> None:
        if kv.rank == 1:
            with pytest.raises(ConflictError, match=r"rank 1 gave learning_rate=2\.0.*learning_rate=1\.0"):
                kv.set_optimizer(optimizer.SGD(learning_rate=2.0))
        kv.set_optimizer(optimizer.SGD(learning_rate=1.0))
        kv.init("w", full(0))
        push(kv, "w", full(1))
        assert read(kv) == -3

    store.run(work)


@on(ONE_OF_EACH)
def test_a_change_of_state_is_taken_over_too(store: Store) -> None:
    """Momentum that is raised from 0 begins with slots of 0."""

    def work(kv: KV) -> list[float]:
        sgd = optimizer.SGD(learning_rate=1.0)
        kv.set_optimizer(sgd)
        kv.init("w", full(0))
        values = []
        for momentum in (0.0, 0.5, 0.5):
            sgd.momentum = momentum
            update(kv, "w", full(1))
            values.append(read(kv))
        return values

    assert store.run(work)[0] == [-1, -2, -3.5]


@pytest.mark.parametrize("store", LOCAL, ids=str)
def test_the_object_given_last_is_the_one_that_may_be_changed(store: Store) -> None:
    kv = kvstore.create(store.type)
    first, second = optimizer.SGD(learning_rate=1.0), optimizer.SGD(learning_rate=1.0)
    kv.set_optimizer(first)
    kv.init("w", full(0))
    kv.set_optimizer(second)
    first.lr, second.lr = 100.0, 2.0
    kv.push("w", full(1))
    assert read(kv) == -2

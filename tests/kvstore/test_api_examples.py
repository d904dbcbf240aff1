"""The examples of MXNet's API description and tutorials, with numpy in place of mx.nd and lists in place of GPUs.

Each runs on every store, but not on dist_async with several workers, whose values depend on who is first; where a
number is a sum over workers, three workers see three times of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import rules
from tests.kvstore.on_stores import KV, LOCAL, STORES, Store, on

SHAPE = (2, 3)
DEVICES = range(4)
IN_STEP = [store for store in STORES if "async" not in store.type or store.workers == 1]

updated: list[Any] = []  # keys in the order of their updates


@pytest.fixture(autouse=True)
def _updater() -> Iterator[None]:
    updated.clear()
    kvstore.updater("update")(update)
    yield
    del rules._UPDATERS["update"]


def update(key: Any, input: Any, stored: Any) -> None:
    updated.append(key)
    stored += input * 2


def ones(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.ones(shape, np.float32)


def zeros(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.zeros(shape, np.float32)


def on_devices() -> list[Any]:
    return [ones() for _ in DEVICES]


def each(example: Callable[[KV, int], None], stores: list[Store] = IN_STEP) -> Any:
    """``example(kv, n)`` on every store; n is the number of workers whose pushes are summed."""

    @on(stores)
    def test(store: Store) -> None:
        store.run(lambda kv: example(kv, kv.num_workers))

    test.__doc__ = example.__doc__
    return test


def each_whole(example: Callable[[KV, int], None]) -> Any:
    """The stores whose arrays are not split, for an updater that is set after init."""
    return each(example, [store for store in IN_STEP if not store.split])


def same(array: Any, number: float) -> None:
    np.testing.assert_array_equal(array, np.full(SHAPE, number))


# -- API description --------------------------------------------------------------------------------------------------


@each
def test_init(kv: KV, n: int) -> None:
    kv.init("3", ones() * 2)
    a = zeros()
    kv.pull("3", out=a)
    same(a, 2)
    keys = ["5", "7", "9"]
    kv.init(keys, [ones()] * len(keys))
    b = [zeros()] * len(keys)
    kv.pull(keys, out=b)
    same(b[1], 1)


@each
def test_pull(kv: KV, n: int) -> None:
    kv.init(["3", "5", "7", "9", "6", "8", "10"], [ones() * 2] * 7)
    a = zeros()
    kv.pull("3", out=a)
    same(a, 2)
    b = on_devices()
    kv.pull("3", out=b)
    for array in b:
        same(array, 2)
    keys = ["5", "7", "9"]
    b = [zeros()] * len(keys)
    kv.pull(keys, out=b)
    same(b[1], 2)
    keys = ["6", "8", "10"]
    c = [on_devices()] * len(keys)
    kv.pull(keys, out=c)
    same(c[1][1], 2)


@each
def test_push(kv: KV, n: int) -> None:
    a = zeros()
    kv.init(["3", "4", "5", "6", "7", "8", "9"], [ones()] * 7)
    kv.push("3", ones() * 8)
    kv.pull("3", out=a)
    same(a, 8 * n)
    kv.push("3", on_devices())
    kv.pull("3", out=a)
    same(a, 4 * n)
    keys = ["4", "5", "6"]
    kv.push(keys, [ones()] * len(keys))
    b = [zeros()] * len(keys)
    kv.pull(keys, out=b)
    same(b[1], 1 * n)
    keys = ["7", "8", "9"]
    c = [on_devices()] * len(keys)
    kv.push(keys, c)
    kv.pull(keys, out=c)
    same(c[1][1], 4 * n)


@each
def test_pushpull(kv: KV, n: int) -> None:
    a = zeros()
    kv.init(["3", "4", "5", "6", "7", "8", "9"], [ones()] * 7)
    kv.pushpull("3", ones() * 8, out=a)
    same(a, 8 * n)
    kv.pushpull("3", on_devices(), out=a)
    same(a, 4 * n)
    keys = ["4", "5", "6"]
    b = [zeros()] * len(keys)
    kv.pushpull(keys, [ones()] * len(keys), out=b)  # the description says push, which has no out
    same(b[1], 1 * n)
    keys = ["7", "8", "9"]
    c = [on_devices() for _ in keys]
    kv.pushpull(keys, c)
    for group in c:
        for array in group:
            same(array, 4 * n)


@each
def test_set_optimizer(kv: KV, n: int) -> None:
    shape = (2, 2)
    weight = zeros(shape)
    kv.init(3, weight)
    kv.set_optimizer(kvstore.optimizer.SGD())
    kv.push(3, ones(shape))
    kv.pull(3, out=weight)
    np.testing.assert_array_equal(weight, np.full(shape, np.float32(-0.01) * n))
    assert weight.dtype == np.float32


@each
def test_attributes(kv: KV, n: int) -> None:
    assert kv.num_workers == n
    assert kv.rank in range(n)
    assert kv.type in {store.type for store in IN_STEP}


@each
def test_broadcast(kv: KV, n: int) -> None:
    out = on_devices()
    kv.broadcast("w", ones() * (5 if kv.rank == 0 else 6), out=out)
    for array in out:
        same(array, 5)
    kv.broadcast(["a", "b"], [ones(), ones() * 2], out=[out[:1], out[1:3]], priority=-1)
    same(out[0], 1)
    same(out[2], 2)


# -- tutorials --------------------------------------------------------------------------------------------------------


@each_whole
def test_the_tutorial(kv: KV, n: int) -> None:
    kv.init(3, ones() * 2)
    a = zeros()
    kv.pull(3, out=a)
    same(a, 2)
    kv.push(3, ones() * 8)
    kv.pull(3, out=a)
    same(a, 8 * n)
    b = on_devices()
    kv.push(3, b)
    kv.pull(3, out=a)
    same(a, 4 * n)
    kv._set_updater(update)
    kv.pull(3, out=a)
    same(a, 4 * n)
    kv.push(3, ones())
    kv.pull(3, out=a)
    same(a, 6 * n)
    assert updated == [3]
    kv.pull(3, out=b)
    same(b[1], 6 * n)


@each_whole
def test_the_tutorial_on_lists(kv: KV, n: int) -> None:
    keys = [5, 7, 9]
    kv._set_updater(update)
    kv.init(keys, [ones()] * len(keys))
    kv.push(keys, [ones()] * len(keys))
    b = [zeros()] * len(keys)
    kv.pull(keys, out=b)
    same(b[1], 1 + 2 * n)
    kv.barrier()
    assert sorted(updated) == [5, 7, 9]
    kv.barrier()
    c = [on_devices()] * len(keys)
    kv.push(keys, c)
    kv.pull(keys, out=c)
    same(c[1][1], 1 + 2 * n + 8 * n)
    kv.barrier()
    assert sorted(updated) == [5, 5, 7, 7, 9, 9]


@on(LOCAL)
def test_updates_are_in_the_order_of_keys(store: Store) -> None:
    kv = kvstore.create(store.type)
    kv._set_updater(update)
    kv.init([5, 7, 9], [ones()] * 3)
    kv.push([5, 7, 9], [ones()] * 3)
    assert updated == [5, 7, 9]

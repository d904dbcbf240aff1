"""Lists of keys of all kinds, on several servers: as if each key were a call of its own."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvstore
from kvstore import lists
from kvstore.lists import KeyList
from pslite.errors import ConfigError, DTypeError, KeyTypeError, ShapeError, UnknownKeyError

from .direct import Cluster
from .on_stores import SYNC, Store, on
from .sparse_jobs import KV

pytestmark = pytest.mark.timeout(60)

KINDS: list[tuple[tuple[int, ...], str]] = [
    ((3,), "float32"),
    ((2, 2), "float32"),
    ((), "float32"),
    ((0, 4), "float32"),
    ((5,), "int32"),
    ((2,), "float16"),
    ((5000,), "float32"),  # not small
]
NAMES = [f"k{i}" for i in range(60)]


def value(place: int, number: float) -> Any:
    shape, dtype = KINDS[place * 7 % 5 if place < 40 else place % len(KINDS)]
    return np.full(shape, number + place, dtype)


def same(found: list[Any], number: float, places: list[int]) -> None:
    for array, place in zip(found, places, strict=True):
        expected = value(place, number)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


@on(SYNC)
def test_lists_of_all_kinds(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init(NAMES, [value(place, 0) for place in range(60)])
        rng = np.random.default_rng(5)
        for step in range(4):
            places = rng.permutation(60)[: rng.integers(8, 60)].tolist()
            names = [NAMES[place] for place in places]
            share = [value(place, step) if kv.rank == 0 else value(place, step) * 0 for place in places]
            outs = [np.empty_like(array) for array in share]
            if step % 2:
                kv.pushpull(names, share, out=outs)
            else:
                kv.push(names, share)
                kv.pull(names, out=outs)
            same(outs, step, places)
            same(kv.pull(names), step, places)
            kv.barrier()
        assert kv.version(names[0]) > 0
        pulled = kv.stats()["keys"][names[0]]["pull_bytes"]
        kv.pull(names)
        assert kv.stats()["keys"][names[0]]["pull_bytes"] == pulled + outs[0].nbytes

    store.run(work)


@given(
    places=st.lists(st.integers(0, 59), min_size=2, max_size=30, unique=True),
    singly=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None)
def test_any_list_in_any_order(places: list[int], singly: bool, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "FEWEST", 2)
        patch.setattr(lists, "LONGEST", 30)  # bytes: some parts
        [kv] = Cluster(1, 2, 10**6, Random(seed)).stores
        kv.init(NAMES, [value(place, 0) for place in range(60)])
        names, values = [NAMES[p] for p in places], [value(p, seed) for p in places]
        outs = [np.empty_like(array) for array in values]
        if singly:
            for name, array in zip(names, values, strict=True):
                kv.push(name, array)
            for handle in [kv.pull(n, out=out, wait=False) for n, out in zip(names, outs, strict=True)]:
                handle.wait()
        else:
            kv.push(names, values)
            kv.pull(names, out=outs)
        same(outs, seed, places)


def small_job() -> Any:
    [kv] = Cluster(1, 1, 10**6, Random(0)).stores
    kv.init(NAMES[:20], [np.zeros(3, np.float32)] * 20)
    kv.push(NAMES[:20], [np.ones(3, np.float32)] * 20)
    return kv


def test_mistakes_are_told_as_those_of_single_calls() -> None:
    kv = small_job()
    good = [np.ones(3, np.float32)] * 20
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    for error, call in {
        ShapeError: lambda: kv.push(NAMES[:20], [*good[:19], np.ones(4, np.float32)]),
        DTypeError: lambda: kv.push(NAMES[:20], [*good[:19], np.ones(3)]),
        UnknownKeyError: lambda: kv.push([*NAMES[:19], "nobody"], good),
        KeyTypeError: lambda: kv.pull([*NAMES[:19], 1.5]),
        ConfigError: lambda: kv.pull(NAMES[:20], out=[*good[:19], frozen]),
    }.items():
        with pytest.raises(error):
            call()
    assert all((array == 1).all() for array in kv.pull(NAMES[:20]))
    assert kv.version("k0") == 1


def test_an_array_given_for_several_keys_gets_the_last_ones_value() -> None:
    kv = small_job()
    kv.push(NAMES[:20], [np.full(3, place, np.float32) for place in range(20)])
    shared = np.empty(3, np.float32)
    kv.pull(NAMES[19::-1], out=[shared] * 20)
    assert shared.tolist() == [0, 0, 0]
    kv.pull(NAMES[:20], out=[shared] * 20)
    assert shared.tolist() == [19, 19, 19]


def test_numbers_that_equal_keys_are_none() -> None:
    [kv] = Cluster(1, 1, 10**6, Random(0)).stores
    kv.init(list(range(10)), [np.zeros(3, np.float32)] * 10)
    kv.pull(list(range(10)))
    with pytest.raises(KeyTypeError):
        kv.pull([float(key) for key in range(10)])


def test_a_list_with_compression_is_compressed() -> None:
    [kv] = Cluster(1, 1, 10**6, Random(0)).stores
    kv.init(NAMES[:20], [np.zeros(3, np.float32)] * 20)
    kv.set_gradient_compression({"type": "2bit", "threshold": 0.5})
    kv.push(NAMES[:20], [np.ones(3, np.float32)] * 20)
    assert [array[0] for array in kv.pull(NAMES[:20])] == [0.5] * 20
    kv.set_gradient_compression({"type": "none"})
    kv.push(NAMES[:20], [np.ones(3, np.float32)] * 20)
    assert [array[0] for array in kv.pull(NAMES[:20])] == [1.5] * 20  # with what was held back


def test_a_call_that_fails_in_two_ways_is_one_failure() -> None:
    [kv] = Cluster(1, 1, 10**6, Random(0)).stores
    values = [np.ones(3, np.int32)] * 20 + [np.ones(5000, np.int32)]
    kv.init(NAMES[:21], values)
    kv.set_optimizer(kvstore.optimizer.create("sgd"))
    kv.push(NAMES[:21], values)
    with pytest.raises(DTypeError):
        kv._flush()
    kv.pull("k0")


def test_few_lists_are_remembered() -> None:
    kv = small_job()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists, "KEPT", 100)
        for first in range(10):
            for end in range(first + 9, 21):
                kv.pull(NAMES[first:end])
                assert isinstance(kv._plans._plans[tuple(NAMES[first:end])], KeyList)
                assert sum(map(len, kv._plans._plans)) <= 100


def test_with_an_optimizer_the_bits_are_those_of_single_calls() -> None:
    def work(kv: KV, listed: bool) -> bytes:
        kv.init(NAMES, [value(place, 0.5) for place in range(60)])
        mine = [place for place in range(60) if value(place, 0).dtype.kind == "f"]
        kv.set_optimizer(kvstore.optimizer.create("adam", learning_rate=0.1, wd=0.01))
        for step in range(3):
            grads = [value(place, step / 7 + kv.rank) for place in mine]
            if listed:
                kv.push([NAMES[place] for place in mine], grads)
            else:
                for place, array in zip(mine, grads, strict=True):
                    kv.push(NAMES[place], array).wait()
        return b"".join(array.tobytes() for array in kv.pull(NAMES))

    results = {
        found
        for listed in (True, False)
        for found in kvstore.LocalCluster(workers=2, servers=2, timeout=30).run(lambda kv, how=listed: work(kv, how))
    }
    assert len(results) == 1

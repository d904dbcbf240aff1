"""Row-sparse keys without an updater, on every type of store, whole and split: MXNet's results, and mended ones.

All that is tried on a setup runs in one job, each on keys of its own; a test looks at how it went.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.sparse import RowSparseArray, zeros
from pslite.errors import (
    ConfigError,
    DTypeError,
    DuplicateKeyError,
    KeyTypeError,
    RowIndexError,
    ShapeError,
    StorageError,
    UnknownKeyError,
)

from .sparse_jobs import FEW, KV, SETUPS, SHAPE, Setup, column, plain, rows, rsp, senders

ALL = dict.fromkeys(range(6), 1.0)
Tried = Callable[[KV, str, str], None]

TRIED: dict[str, Tried] = {}


def tried(fn: Tried) -> Tried:
    """Try ``fn(kv, key, dtype)`` on every setup, with each of its dtypes."""
    TRIED[fn.__name__] = fn
    return fn


@cache
def outcomes(setup: Setup) -> dict[str, BaseException]:
    """What each trial raised on any worker, if it did."""
    found: dict[str, BaseException] = {}
    dtypes = ("float32", "float16", "bfloat16") if setup in FEW else ("float32", "float16")

    def work(kv: KV) -> None:
        for name, fn in TRIED.items():
            for dtype in dtypes:
                try:
                    fn(kv, f"{name} {dtype}", dtype)
                except Exception as error:
                    found[name] = error
                kv.barrier()

    setup.run(work)
    return found


# -- init -------------------------------------------------------------------------------------------------------------


@tried
def init_with_all_rows(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    assert rows(kv, key) == [1] * 6
    assert kv.version(key) == 0


@tried
def init_with_missing_rows(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({4: 2, 1: 3}, SHAPE, dtype))
    assert rows(kv, key) == [0, 3, 0, 0, 2, 0]


@tried
def init_without_rows(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, zeros(SHAPE, dtype))
    assert rows(kv, key) == [0] * 6
    kv.push(key, rsp(ALL, SHAPE, dtype))
    assert rows(kv, key) == [senders(kv)] * 6


@tried
def init_again(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    for again in (rsp({0: 5}, SHAPE, dtype), np.ones(SHAPE, np.float32)):
        with pytest.raises(DuplicateKeyError):
            kv.init(key, again)
    assert rows(kv, key) == [1] * 6


@tried
def init_copies(kv: KV, key: str, dtype: str) -> None:
    value = rsp(ALL, SHAPE, dtype)
    kv.init(key, value)
    value *= 9
    value.indices[...] = 3
    assert rows(kv, key) == [1] * 6


@tried
def other_numbers_of_dimensions(kv: KV, key: str, dtype: str) -> None:
    for shape in ((5,), (4, 2, 3), (4, 1)):
        own = f"{key} {shape}"
        kv.init(own, rsp({1: 1}, shape, dtype))
        kv.push(own, rsp({0: 2, 3: 4}, shape, dtype))
        kv.barrier()
        out = zeros(shape, dtype)
        kv.row_sparse_pull(own, out=out, row_ids=np.array([3, 1]))
        assert plain(out).shape == shape and out.indices.tolist() == [1, 3]
        assert column(out) == [4 * senders(kv) if row == 3 else 0 for row in range(shape[0])]


@tried
def tables_without_elements(kv: KV, key: str, dtype: str) -> None:
    for shape in ((0, 3), (3, 0)):
        own = f"{key} {shape}"
        kv.init(own, zeros(shape, dtype))
        kv.push(own, zeros(shape, dtype))
        assert plain(kv.pull(own)).shape == shape
        out = zeros(shape, dtype)
        kv.pull(own, out=out, ignore_sparse=False)
        kv.row_sparse_pull(own, out=out, row_ids=[])
        assert out.data.shape == (0, shape[1])


# -- row_sparse_pull --------------------------------------------------------------------------------------------------


@tried
def row_ids_of_all_forms(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({0: 1, 2: 3, 5: 6}, SHAPE, dtype))
    forms: list[tuple[Any, list[int]]] = [
        (np.array([[5, 0], [2, 0]]), [0, 2, 5]),
        (np.array([2, 2, 2]), [2]),
        (np.array([5, 1, 0]), [0, 1, 5]),
        (np.array([1.7, 5.9, 0.0]), [0, 1, 5]),
        (np.array([-0.9]), [0]),
        (np.array([5, 2], np.uint8), [2, 5]),
        (np.array([5, 2], np.uint64), [2, 5]),
        (np.array([5, 2], np.int64), [2, 5]),
        (np.array([5, 2], np.float16), [2, 5]),
        (kvstore.bfloat16(np.array([0x40A0, 0x4000], np.uint16)), [2, 5]),
        (np.int32(5), [5]),
        ([5, 0, 5], [0, 5]),
        ([1.7], [1]),
        ((2, np.int64(5)), [2, 5]),
        ([[5, 0]], [0, 5]),
        ([], []),
        (np.empty((0, 2), np.float32), []),
        (np.arange(6)[::-2], [1, 3, 5]),
    ]
    expected = {0: 1, 2: 3, 5: 6}
    for given, ids in forms:
        out = rsp(ALL, SHAPE, dtype)  # all of its rows disappear
        assert kv.row_sparse_pull(key, out=out, row_ids=given) is None
        assert out.indices.dtype == np.int64 and out.indices.tolist() == ids, given
        assert column(out) == [expected.get(row, 0) if row in ids else 0 for row in range(6)]
        assert len(out.data if dtype != "bfloat16" else out.data.bits) == len(ids)  # rows of zeros are there


@tried
def row_ids_that_do_not_exist(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    out = rsp({3: 7}, SHAPE, dtype)
    bad: list[Any] = [[6], [-1], [0, 10**9], [2**70 // 2**8], np.array([-1.0]), np.array([np.nan]), np.array([np.inf])]
    bad += [np.array([2**63], np.uint64), np.array([1e30]), np.array([-1], np.int8)]
    for given in bad:
        with pytest.raises(RowIndexError, match=r"row .* does not exist.*6 rows") as caught:
            kv.row_sparse_pull(key, out=out, row_ids=given)
        assert isinstance(caught.value, IndexError)
    assert column(out) == [0, 0, 0, 7, 0, 0]
    assert rows(kv, key) == [1] * 6


@tried
def row_ids_that_are_no_numbers(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    bad: list[Any] = ["ab", np.array([True, False]), np.array(["a"]), [[1], [1, 2]], [[1, [2]]], np.array([1j]), 3]
    for given in bad[:3] + bad[5:]:
        with pytest.raises(DTypeError):
            kv.row_sparse_pull(key, out=zeros(SHAPE, dtype), row_ids=given)
    for given in bad[3:5]:  # more sets of rows than outs, or lists that are no array
        with pytest.raises((ConfigError, DTypeError)):
            kv.row_sparse_pull(key, out=zeros(SHAPE, dtype), row_ids=given)
    with pytest.raises(ConfigError, match="row_ids"):
        kv.row_sparse_pull(key, out=zeros(SHAPE, dtype))


@tried
def one_set_of_rows_for_several_outs(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({0: 1, 3: 4}, SHAPE, dtype))
    for given in (np.array([3, 1]), [np.array([3, 1])], [3, 1]):
        outs = [zeros(SHAPE, dtype), rsp(ALL, SHAPE, dtype)]
        kv.row_sparse_pull(key, out=outs, row_ids=given)
        assert [out.indices.tolist() for out in outs] == [[1, 3], [1, 3]]
        assert [column(out) for out in outs] == [[0, 0, 0, 4, 0, 0]] * 2
        outs[0] *= 5
        outs[0].indices[...] = 0
        assert column(outs[1]) == [0, 0, 0, 4, 0, 0]  # they share nothing


@tried
def a_set_of_rows_for_each_out(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({0: 1, 3: 4, 5: 6}, SHAPE, dtype))
    outs = [zeros(SHAPE, dtype) for _ in range(3)]
    kv.row_sparse_pull(key, out=outs, row_ids=[np.array([5, 4]), [0], np.empty(0)])
    assert [out.indices.tolist() for out in outs] == [[4, 5], [0], []]
    assert [column(out) for out in outs] == [[0, 0, 0, 0, 0, 6], [1, 0, 0, 0, 0, 0], [0] * 6]
    with pytest.raises(ConfigError, match=r"2 arrays.*each of 3"):
        kv.row_sparse_pull(key, out=outs, row_ids=[np.array([5, 4]), np.array([0])])
    with pytest.raises(ConfigError, match="empty list"):
        kv.row_sparse_pull(key, out=[], row_ids=[0])


@tried
def lists_of_keys(kv: KV, key: str, dtype: str) -> None:
    keys = [f"{key} {i}" for i in range(3)]
    kv.init(keys, [rsp(dict.fromkeys(range(6), i + 1.0), SHAPE, dtype) for i in range(3)])
    outs = [[zeros(SHAPE, dtype), zeros(SHAPE, dtype)], [zeros(SHAPE, dtype)], zeros(SHAPE, dtype)]
    ids = [[np.array([0]), np.array([5])], [np.array([1])], np.array([2])]
    kv.row_sparse_pull(keys, out=outs, row_ids=ids)
    assert [column(out) for out in outs[0]] == [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]]
    assert column(outs[1][0]) == [0, 2, 0, 0, 0, 0]
    assert column(outs[2]) == [0, 0, 3, 0, 0, 0]
    found = kv.row_sparse_pull(keys, row_ids=np.array([4]))
    assert [column(one) for one in found] == [[0, 0, 0, 0, i + 1, 0] for i in range(3)]
    [alone] = kv.row_sparse_pull(keys[:1], row_ids=[[3]])
    assert column(alone) == [0, 0, 0, 1, 0, 0]
    for bad in ({"row_ids": [[0], [0]]}, {"row_ids": [[0]] * 3, "out": outs[:2]}, {"row_ids": 3, "out": zeros(SHAPE)}):
        with pytest.raises((ConfigError, DTypeError)):
            kv.row_sparse_pull(keys, **bad)


@tried
def a_key_twice_in_a_list(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({0: 1, 3: 4, 5: 6}, SHAPE, dtype))
    outs = [zeros(SHAPE, dtype), zeros(SHAPE, dtype)]
    kv.row_sparse_pull([key, key], out=outs, row_ids=[[0, 3], [3, 5]])
    assert [column(out) for out in outs] == [[1, 0, 0, 4, 0, 0], [0, 0, 0, 4, 0, 6]]
    found = kv.row_sparse_pull([key, key], row_ids=[[5], []])
    assert [column(out) for out in found] == [[0, 0, 0, 0, 0, 6], [0] * 6]


@tried
def outs_of_other_dtypes(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({1: 1.5, 3: 40}, SHAPE, dtype))
    for other in ("float16", "float32", "float64", "bfloat16", "int32"):
        out = zeros(SHAPE, other)
        kv.row_sparse_pull(key, out=out, row_ids=[1, 3])
        assert column(out) == [0, 1 if other == "int32" else 1.5, 0, 40, 0, 0]
        assert (out.dtype is kvstore.bfloat16) if other == "bfloat16" else (out.dtype == other)


@tried
def without_out_new_arrays(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({1: 1, 3: 4}, SHAPE, dtype))
    found = kv.row_sparse_pull(key, row_ids=[3, 0])
    assert isinstance(found, RowSparseArray) and found.shape == SHAPE and found.indices.tolist() == [0, 3]
    assert (found.dtype is kvstore.bfloat16) if dtype == "bfloat16" else (found.dtype == dtype)
    found *= 100  # it is the caller's own
    assert rows(kv, key) == [0, 1, 0, 4, 0, 0]
    handle = kv.row_sparse_pull(key, row_ids=[3], wait=False)
    assert column(handle.wait()) == [0, 0, 0, 4, 0, 0] and handle.done()


@tried
def outs_that_do_not_fit(kv: KV, key: str, dtype: str) -> None:
    kv.init([key, f"{key} dense"], [rsp(ALL, SHAPE, dtype), np.ones(SHAPE, np.float32)])
    for bad in (np.zeros(SHAPE, np.float32), [zeros(SHAPE), np.zeros(SHAPE)], [None], 3):
        with pytest.raises(StorageError, match="RowSparseArray"):
            kv.row_sparse_pull(key, out=bad, row_ids=[0])
    with pytest.raises(ShapeError, match=r"\(6, 4\)"):
        kv.row_sparse_pull(key, out=zeros((6, 4)), row_ids=[0])
    with pytest.raises(StorageError, match="initialised as row-sparse"):
        kv.row_sparse_pull(f"{key} dense", out=zeros(SHAPE), row_ids=[0])
    with pytest.raises(UnknownKeyError):
        kv.row_sparse_pull(f"{key} unknown", out=zeros(SHAPE), row_ids=[0])
    with pytest.raises(KeyTypeError):
        kv.row_sparse_pull(7, out=zeros(SHAPE), row_ids=[0])
    assert rows(kv, key) == [1] * 6


# -- pull, pushpull, broadcast ----------------------------------------------------------------------------------------


@tried
def pull_ignores_sparse_outs(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({1: 2}, SHAPE, dtype))
    out, other = rsp({0: 9}, SHAPE, dtype), np.zeros(SHAPE, np.float32)
    kv.pull(key, out=out)
    assert column(out) == [9, 0, 0, 0, 0, 0]
    kv.pull([key], out=[[out, other]])
    assert column(out) == [9, 0, 0, 0, 0, 0] and column(other) == [0, 2, 0, 0, 0, 0]
    assert kv.pull(key, out=out, wait=False).wait() is None


@tried
def pull_fills_sparse_outs(kv: KV, key: str, dtype: str) -> None:
    dense = f"{key} dense"
    kv.init([key, dense], [rsp({1: 2, 4: 0}, SHAPE, dtype), np.eye(6, 3, dtype=np.float32)])
    out, other = rsp({0: 9}, SHAPE, dtype), zeros(SHAPE, "float32")
    kv.pull([key, dense], out=[[out, other], rsp(ALL, SHAPE)], ignore_sparse=False)
    assert column(out) == column(other) == [0, 2, 0, 0, 0, 0]
    assert out.indices.tolist() == [1]  # rows of zeros are not there
    kv.pull(dense, out=other, ignore_sparse=False)
    np.testing.assert_array_equal(other.todense(), np.eye(6, 3))
    assert other.indices.tolist() == [0, 1, 2]
    with pytest.raises(ShapeError):
        kv.pull(key, out=zeros((3, 6)), ignore_sparse=False)


@tried
def dense_pulls_of_sparse_keys(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp({1: 2, 4: 3}, SHAPE, dtype))
    for out in (np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float64), np.ones(SHAPE, np.int32)):
        kv.pull(key, out=out)
        assert column(out) == [0, 2, 0, 0, 3, 0]
    found = kv.pull(key)
    assert column(found) == [0, 2, 0, 0, 3, 0]
    assert isinstance(found, kvstore.bfloat16) if dtype == "bfloat16" else found.dtype == dtype
    (found.bits if dtype == "bfloat16" else found)[...] = 0
    assert rows(kv, key) == [0, 2, 0, 0, 3, 0]


@tried
def pushpull_of_rows(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    grad, out = rsp({2: 3}, SHAPE, dtype), np.zeros(SHAPE, np.float32)
    kv.pushpull(key, grad, out=out)
    assert column(out) == [0, 0, 3 * senders(kv), 0, 0, 0]
    kv.pushpull(key, grad)  # a row-sparse out is ignored, as by pull
    assert column(grad) == [0, 0, 3, 0, 0, 0]
    kv.pushpull([key], [rsp({1: 2}, SHAPE, dtype)], out=[[out, grad]])
    assert column(out) == [0, 2 * senders(kv), 0, 0, 0, 0] and column(grad) == [0, 0, 3, 0, 0, 0]
    kv.barrier()
    version = kv.num_workers * 3 if kv.type == "dist_async" else 3
    kv.pull(key)
    assert kv.version(key) == version
    with pytest.raises(ShapeError):
        kv.pushpull(key, grad, out=[np.zeros((2, 2)), zeros(SHAPE)])
    assert rows(kv, key) == [0, 2 * senders(kv), 0, 0, 0, 0]  # nothing was pushed


@tried
def pushpull_of_rows_and_dense_arrays(kv: KV, key: str, dtype: str) -> None:
    dense = f"{key} dense"
    kv.init([key, dense], [rsp(ALL, SHAPE, dtype), np.ones(SHAPE, np.float32)])
    values = [rsp({2: 3}, SHAPE, dtype), np.full(SHAPE, 2, np.float32)]
    assert kv.pushpull([key, dense], values, wait=False).wait() is None
    assert column(values[0]) == [0, 0, 3, 0, 0, 0] and column(values[1]) == [2 * senders(kv)] * 6
    assert rows(kv, key) == [0, 0, 3 * senders(kv), 0, 0, 0]


@tried
def broadcast_of_rows(kv: KV, key: str, dtype: str) -> None:
    out, ignored = np.zeros(SHAPE, np.float32), rsp({0: 9}, SHAPE, dtype)
    kv.broadcast(key, rsp({kv.rank: 1, 5: 2}, SHAPE, dtype), out=[out, ignored])
    assert column(out) == [1, 0, 0, 0, 0, 2]  # rank 0's
    assert column(ignored) == [9, 0, 0, 0, 0, 0]


# -- push -------------------------------------------------------------------------------------------------------------


@tried
def a_push_replaces_the_whole_value(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    kv.push(key, rsp({1: 5, 3: 5}, SHAPE, dtype))
    assert rows(kv, key) == [0, 5 * senders(kv), 0, 5 * senders(kv), 0, 0]
    kv.push(key, rsp({0: 2}, SHAPE, dtype))
    assert rows(kv, key) == [2 * senders(kv), 0, 0, 0, 0, 0]


@tried
def devices_with_different_rows(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    kv.push(key, [rsp({1: 5, 3: 5}, SHAPE, dtype), rsp({0: 2, 3: 2}, SHAPE, dtype), zeros(SHAPE, dtype)])
    assert rows(kv, key) == [n * senders(kv) for n in (2, 5, 0, 7, 0, 0)]
    kv.push([key, key], [rsp({4: 1}, SHAPE, dtype), [rsp({4: 2}, SHAPE, dtype), rsp({5: 3}, SHAPE, dtype)]])
    assert rows(kv, key) == [n * senders(kv) for n in (0, 0, 0, 0, 3, 3)]


@tried
def workers_with_different_rows(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    mine = rsp({kv.rank: 1, 3: kv.rank + 1}, SHAPE, dtype)
    n = kv.num_workers
    if kv.type == "dist_async":  # each push is a value of its own
        for rank in range(n):
            if rank == kv.rank:
                kv.push(key, mine).wait()
            assert rows(kv, key) == [float(row == rank) + (rank + 1) * (row == 3) for row in range(6)]
    else:
        kv.push(key, mine)
        assert rows(kv, key) == [float(row < n) + (row == 3) * n * (n + 1) / 2 for row in range(6)]


@tried
def a_push_of_no_rows_counts(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    none = zeros(SHAPE, dtype)
    kv.push(key, rsp({4: 2}, SHAPE, dtype) if kv.rank == kv.num_workers - 1 else none)
    if kv.type != "dist_async":  # else the last one counts
        assert rows(kv, key) == [0, 0, 0, 0, 2, 0]
    kv.push(key, none)
    assert rows(kv, key) == [0] * 6
    assert kv.version(key) == (kv.num_workers * 2 if kv.type == "dist_async" else 2)


@tried
def a_push_may_be_overwritten_at_once(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, zeros(SHAPE, dtype))
    grad = rsp({1: 5, 4: 2}, SHAPE, dtype)
    kv.push(key, grad)
    (grad.data.bits if dtype == "bfloat16" else grad.data)[...] = 0
    grad.indices[...] = 0
    assert rows(kv, key) == [n * senders(kv) for n in (0, 5, 0, 0, 2, 0)]
    other = rsp({1: 5}, SHAPE, dtype)
    kv.push(key, [other, other])
    kv.pull(key)
    assert column(other) == [0, 5, 0, 0, 0, 0]


@tried
def rows_onto_a_dense_key(kv: KV, key: str, dtype: str) -> None:
    ones = rsp(ALL, SHAPE, dtype).todense()
    kv.init(key, ones)
    kv.push(key, [rsp({1: 5}, SHAPE, dtype), rsp({1: 1, 2: 2}, SHAPE, dtype)])
    kv.barrier()
    assert column(kv.pull(key)) == [n * senders(kv) for n in (0, 6, 2, 0, 0, 0)]
    kv.barrier()
    if kv.num_workers > 1 and kv.type == "dist_sync":
        kv.push(key, rsp({0: 3}, SHAPE, dtype) if kv.rank else ones)  # dense ones and rows in one round
        assert column(kv.pull(key)) == [1 + 3 * (kv.num_workers - 1), 1, 1, 1, 1, 1]
    kv.push(key, ones)  # it is a dense key still
    kv.barrier()
    assert column(kv.pull(key)) == [senders(kv)] * 6


@tried
def pushes_that_do_not_fit(kv: KV, key: str, dtype: str) -> None:
    dense, scalar = f"{key} dense", f"{key} scalar"
    kv.init([key, dense, scalar], [rsp(ALL, SHAPE, dtype), rsp(ALL, SHAPE, dtype).todense(), np.ones((), np.float32)])
    good, other = rsp({0: 5}, SHAPE, dtype), "int8"
    with pytest.raises(StorageError, match=r"dense array.*RowSparseArray"):
        kv.push(key, good.todense())
    with pytest.raises(StorageError):
        kv.push(key, [good, good.todense()])
    with pytest.raises(StorageError, match="dense and row-sparse"):
        kv.push(dense, [good, good.todense()])
    for name in (key, dense):
        with pytest.raises(ShapeError, match=r"\(7, 3\), expected \(6, 3\)"):
            kv.push(name, rsp({0: 1}, (7, 3), dtype))
        with pytest.raises(ShapeError):
            kv.push(name, [good, rsp({0: 1}, (6,), dtype)])
        with pytest.raises(DTypeError, match=f"int8, expected {dtype}"):
            kv.push(name, rsp({0: 1}, SHAPE, other))
        with pytest.raises(DTypeError):
            kv.push(name, [good, rsp({0: 1}, SHAPE, other)])
    with pytest.raises(ShapeError):
        kv.push(scalar, rsp({0: 1}, (1,), "float32"))
    broken = rsp({0: 1, 4: 2}, SHAPE, dtype)
    for ids, kind in (([4, 0], ShapeError), ([4, 4], ShapeError), ([0, 6], RowIndexError), ([-1, 2], RowIndexError),
                      ([0], ShapeError), ([0.0, 1.0], DTypeError), ([[0, 1]], DTypeError)):  # fmt: skip
        broken.indices = np.array(ids)
        with pytest.raises(kind):
            kv.push(key, broken)
    assert rows(kv, key) == [1] * 6 and column(kv.pull(dense)) == [1] * 6


@tried
def traffic_is_that_of_rows(kv: KV, key: str, dtype: str) -> None:
    kv.init(key, rsp(ALL, SHAPE, dtype))
    kv.push(key, rsp({1: 5, 3: 5}, SHAPE, dtype))
    kv.row_sparse_pull(key, row_ids=[0, 4, 5])
    width = 12 if dtype == "float32" else 6
    count = kv.stats()["keys"][key]
    assert count["push_bytes"] == count["push_bytes_raw"] == 2 * (8 + width)
    assert count["pull_bytes"] == count["pull_bytes_raw"] == 3 * width


@tried
def api_documentation(kv: KV, key: str, dtype: str) -> None:
    shape = (3, 3)
    kv.init(key, rsp(dict.fromkeys(range(3), 1.0), shape, dtype))
    for ids, expected in (([0, 2], [1, 0, 1]), ([2, 2], [0, 0, 1]), ([1, 0], [1, 1, 0])):
        out = zeros(shape, dtype)
        kv.row_sparse_pull(key, out=out, row_ids=np.array(ids))
        assert column(out) == expected
    kv.init(f"{key} 10", zeros((2, 3), dtype))
    kv.push(f"{key} 10", rsp({0: 1, 1: 1}, (2, 3), dtype))
    kv.barrier()
    assert column(kv.row_sparse_pull(f"{key} 10", row_ids=[0, 1])) == [senders(kv)] * 2


@pytest.mark.parametrize("setup", SETUPS, ids=str)
@pytest.mark.parametrize("trial", TRIED)
def test_row_sparse(trial: str, setup: Setup) -> None:
    error = outcomes(setup).get(trial)
    if error is not None:
        raise error

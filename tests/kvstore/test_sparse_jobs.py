"""Row-sparse keys without an updater, in jobs of their own: keys, dtypes, sums, logs, ranks that disagree."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.sparse import from_dense, row_sparse_array, zeros
from pslite.errors import DTypeError, ShapeError, StorageError

from .sparse_jobs import FEW, KV, SETUPS, SHAPE, Setup, column, rows, rsp, senders


@pytest.mark.parametrize("setup", FEW, ids=str)
def test_integer_keys_of_64_bits(setup: Setup) -> None:
    keys = [0, -5, 300_000, 2**62]

    def work(kv: KV) -> None:
        kv.init(keys, [rsp({0: i + 1.0}, SHAPE) for i in range(4)])
        kv.push(keys, [rsp({5: i + 1.0}, SHAPE) for i in range(4)])
        found = kv.row_sparse_pull(keys, row_ids=[0, 5])
        assert [column(one) for one in found] == [[0, 0, 0, 0, 0, senders(kv) * (i + 1)] for i in range(4)]

    setup.run(work)


@pytest.mark.parametrize("setup", FEW, ids=str)
def test_integers_wrap_around_and_bools_are_ored(setup: Setup) -> None:
    def work(kv: KV) -> None:
        kv.init(["u", "b"], [zeros(SHAPE, "uint8"), zeros(SHAPE, "bool")])
        kv.push("u", [rsp({1: 100}, SHAPE, "uint8"), rsp({1: 200, 2: 1}, SHAPE, "uint8")])
        kv.push("b", [rsp({1: 1}, SHAPE, "bool"), rsp({1: 1, 2: 0}, SHAPE, "bool")])
        assert rows(kv, "u") == [0, 300 * senders(kv) % 256, senders(kv), 0, 0, 0]
        assert rows(kv, "b") == [0, 1, 0, 0, 0, 0]

    setup.run(work)


@pytest.mark.parametrize("setup", FEW, ids=str)
def test_halves_are_summed_in_float32(setup: Setup) -> None:
    """2048 + 1 + 1 is 2048 if each sum is rounded to float16."""

    def work(kv: KV) -> None:
        kv.init("t", zeros(SHAPE, "float16"))
        first = rsp({0: 2048}, SHAPE, "float16") if kv.rank == 0 else zeros(SHAPE, "float16")
        ones = rsp({0: 1, 1: 1} if kv.rank == 0 else {2: 1}, SHAPE, "float16")
        kv.push("t", [first, ones, ones])
        assert rows(kv, "t")[0] == 2050

    setup.run(work)


@pytest.mark.parametrize("setup", FEW, ids=str)
def test_a_pull_that_ignores_an_array_says_so_once(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    def work(kv: KV) -> None:
        kv.init("t", zeros(SHAPE))
        kv.barrier()
        if kv.rank == 0:
            kv.pull("t", out=[zeros(SHAPE), zeros(SHAPE)])

    with caplog.at_level(logging.INFO, "kvstore"):
        setup.run(work)
    [record] = [r for r in caplog.records if "row_sparse_pull" in r.getMessage()]
    assert record.levelno == logging.INFO and "'t'" in record.getMessage()


@pytest.mark.parametrize("setup", [s for s in SETUPS if s.workers == 3], ids=str)
def test_ranks_that_disagree_on_a_key(setup: Setup) -> None:
    def work(kv: KV) -> None:
        sparse, dense = zeros(SHAPE), np.zeros(SHAPE, np.float32)
        if kv.rank == 0:
            kv.init(["a", "b", "c"], [sparse, dense, sparse])
        else:
            half = zeros(SHAPE, "float16")
            wrong = [("a", dense, StorageError), ("b", sparse, StorageError), ("c", half, DTypeError)]
            for key, value, kind in [*wrong, ("c", zeros((6, 4)), ShapeError)]:
                with pytest.raises(kind):
                    kv.init(key, value)
            kv.init(["a", "b", "c"], [sparse, dense, rsp({0: 1}, SHAPE)])
        assert rows(kv, "c") == [0] * 6  # rank 0's value counts

    setup.run(work)


def test_sums_have_the_same_bits_whole_and_split() -> None:
    values = np.random.default_rng(3).standard_normal((3, 6, 3)).astype(np.float32)
    ids = [[0, 3, 4], [0, 1, 2, 3], [0, 3, 5]]

    def work(kv: KV) -> Any:
        kv.init("t", zeros(SHAPE))
        own = ids[kv.rank]
        kv.push("t", row_sparse_array((values[kv.rank][own], own), SHAPE))
        return kv.pull("t").tobytes()

    found = {bits for s in SETUPS if s.type == "dist_sync" and s.workers == 3 for bits in s.run(work)}
    expected = np.zeros(SHAPE, np.float32)
    for own, value in zip(ids, values, strict=True):
        expected[own] += value[own]
    assert found == {expected.tobytes()}


def test_rows_are_refused_under_compression_and_work_when_it_is_ended() -> None:
    with kvstore.create("device") as kv:
        kv.init(["t", "w"], [zeros(SHAPE), np.zeros(SHAPE, np.float32)])
        kv.set_gradient_compression({"type": "2bit", "threshold": 0.5})
        kv.push("w", np.full(SHAPE, 0.75, np.float32))
        for key in ("t", "w"):
            with pytest.raises(StorageError, match="compression"):
                kv.push(key, rsp({1: 1}, SHAPE))
        kv.set_gradient_compression({"type": "none"})
        kv.push("t", rsp({1: 1}, SHAPE))
        assert column(kv.pull("t")) == [0, 1, 0, 0, 0, 0]
        np.testing.assert_array_equal(kv.pull("w"), np.full(SHAPE, 0.5))


def test_rows_onto_a_dense_key_that_travels_in_slices() -> None:
    def work(kv: KV) -> None:
        kv.init("w", np.ones(SHAPE, np.float32))
        kv.push("w", rsp({kv.rank: 1}, SHAPE) if kv.rank else zeros(SHAPE))
        assert column(kv.pull("w")) == [0, 1, 1, 0, 0, 0]

    kvstore.LocalCluster(workers=3, servers=2, p3=True, slice_threshold=5, timeout=10).run(work)


def test_the_rows_of_a_dense_array_are_found() -> None:
    array = np.zeros((4, 2), np.float32)
    array[2, 1] = np.nan
    array[0, 0] = -0.0
    assert from_dense(array).indices.tolist() == [2]

"""P3: arrays in slices, by priority; sums only. ``pslite-launch --p3``, or the option p3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import sparse
from pslite.errors import ConfigError, StorageError

KV = kvstore.KVStore


def run(work: Any, workers: int = 2, servers: int = 2, slice_threshold: int = 4, **options: Any) -> list[Any]:
    cluster = kvstore.LocalCluster(workers, servers, p3=True, slice_threshold=slice_threshold, **options)
    results: list[Any] = cluster.run(work)
    return results


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3,), (4,), (5,), (2, 3, 5), (1, 40)])
@pytest.mark.parametrize("servers", [1, 3])
def test_slices_are_put_together_again(shape: tuple[int, ...], servers: int) -> None:
    def work(kv: KV) -> None:
        value = np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)
        kv.init("w", value)
        assert np.array_equal(kv.pull("w"), value)
        kv.push("w", value * (kv.rank + 1), priority=-3)
        assert np.array_equal(kv.pull("w", priority=-3), value * 3)
        out = np.zeros(shape[::-1]).T  # not contiguous
        kv.pushpull("w", value, out=out)
        assert np.array_equal(out, value * 2)

    run(work, servers=servers)


def test_slices_go_to_one_server_after_the_other() -> None:
    def work(kv: Any) -> list[list[int]]:
        kv.init(["a", "b"], [np.zeros(9), np.zeros((2, 4))])
        ranges = kv._office.server_key_ranges()
        return [
            [next(s for s, (lo, hi) in enumerate(ranges) if lo <= p.wire < hi) for p in kv._records[k].pieces]
            for k in "ab"
        ]

    assert run(work)[0] == [[0, 1, 0], [1, 0]]


def test_lists_of_keys_and_devices_and_other_dtypes() -> None:
    def work(kv: KV) -> None:
        keys = [3, 5]
        kv.init(keys, [np.zeros(6, np.float16), np.zeros((3, 3), np.int32)])
        kv.push(keys, [[np.ones(6, np.float16)] * 2, np.full((3, 3), 7, np.int32)])
        first, second = kv.pull(keys)
        assert first.tolist() == [4] * 6 and (second == 14).all()

    run(work)


def test_what_p3_does_not_do_is_refused() -> None:
    def work(kv: KV) -> None:
        assert not kv.is_capable("optimizer")
        for refused in (
            lambda: kv.set_optimizer(kvstore.optimizer.create("sgd")),
            lambda: kv.set_updater("any"),
            lambda: kv.set_gradient_compression({"type": "2bit"}),
        ):
            with pytest.raises(ConfigError, match="p3 sums"):
                refused()
        kv.init("dense", np.ones(5))
        kv.push("dense", np.ones(5))
        assert kv.pull("dense").tolist() == [2] * 5

    run(work)
    with pytest.raises(ConfigError, match="asynchronous"):
        kvstore.LocalCluster(type="dist_async", p3=True)
    with pytest.raises(ConfigError, match="True or False"):
        kvstore.LocalCluster(p3=1)


def test_row_sparse_keys_are_refused() -> None:
    with pytest.raises(StorageError, match="under p3"):
        run(lambda kv: kv.init("e", sparse.zeros((4, 2))), workers=1)


def test_a_checkpoint_goes_from_slices_to_whole_keys_and_back(tmp_path: Path) -> None:
    value = np.arange(30.0).reshape(5, 6)

    def save(kv: KV) -> None:
        kv.init("w", value)
        kv.save(tmp_path / "slices")

    def load(kv: KV) -> None:
        kv.init("w", np.zeros((5, 6)))
        kv.load(tmp_path / "slices")
        assert np.array_equal(kv.pull("w"), value)
        kv.save(tmp_path / "whole")

    def back(kv: KV) -> None:
        kv.load(tmp_path / "whole")
        assert np.array_equal(kv.pull("w"), value)

    run(save)
    kvstore.LocalCluster(workers=2, servers=3).run(load)
    run(back, servers=3, slice_threshold=7)

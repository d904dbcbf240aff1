"""Stores on which sparse keys are tried, and a way to try many things in one job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import kvstore
from kvstore.bfloat16 import to_float32
from kvstore.sparse import RowSparseArray, row_sparse_array, zeros

KV = kvstore.KVStore
SHAPE = (6, 3)  # of the tables that are tried


@dataclass(frozen=True)
class Setup:
    """A type of store. ``bound`` 4: even small tables are split over the servers."""

    type: str
    workers: int = 1
    servers: int = 1
    bound: int = 1_000_000

    def __str__(self) -> str:
        if self.type in ("local", "device"):
            return self.type
        return f"{self.type}-{self.workers}w{self.servers}s" + ("-split" if self.bound == 4 else "")

    def run(self, work: Callable[[Any], Any]) -> list[Any]:
        """``work(kv)`` on every worker."""
        if self.type in ("local", "device"):
            with kvstore.create(self.type) as kv:
                return [work(kv)]
        cluster = kvstore.LocalCluster(self.workers, self.servers, self.type, bigarray_bound=self.bound, timeout=10)
        return cluster.run(work)


LOCAL = [Setup("local"), Setup("device")]
DIST = [
    Setup(type, workers, servers, bound)
    for type in ("dist_sync", "dist_async")
    for workers in (1, 3)
    for servers, bound in ((1, 1_000_000), (2, 1_000_000), (2, 4))
]
SETUPS = LOCAL + DIST
FEW = [*LOCAL, Setup("dist_sync"), Setup("dist_sync", 3, 2, 4), Setup("dist_async", 1, 2, 4)]


def rsp(rows: dict[int, float], shape: tuple[int, ...], dtype: str = "float32") -> RowSparseArray:
    """An array whose rows are filled with these numbers."""
    data = np.array([np.full(shape[1:], value) for value in rows.values()], np.float64).reshape(-1, *shape[1:])
    return row_sparse_array((data, np.array(list(rows), np.int64)), shape, dtype=dtype)


def plain(array: Any) -> Any:
    """A pulled array as numpy's, in float64."""
    dense = array.todense() if isinstance(array, RowSparseArray) else array
    return (to_float32(dense.bits) if isinstance(dense, kvstore.bfloat16) else dense).astype(np.float64)


def column(array: Any) -> list[float]:
    """The first number of each row; the others must be the same."""
    rows = plain(array).reshape(len(plain(array)), -1)
    assert (rows == rows[:, :1]).all(), rows
    return rows[:, 0].tolist()


def senders(kv: KV) -> int:
    """How many workers' equal pushes make one value."""
    return kv.num_workers if kv.type == "dist_sync" else 1


def rows(kv: KV, key: str) -> list[float]:
    """The first number of each row, as a pull of all rows gives it when all workers have pushed."""
    kv.barrier()
    out = zeros(SHAPE)
    kv.row_sparse_pull(key, out=out, row_ids=np.arange(SHAPE[0]))
    kv.barrier()
    return column(out)

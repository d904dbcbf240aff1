"""Every type of store in every shape of job, for the tables of behaviour: a row is a function of ``kv``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import kvstore

KV = kvstore.KVStore
SHAPE = (4, 3)
WHOLE, SPLIT = 10**6, 4  # bounds: of an array of SHAPE, each of two servers gets a half with the second


@dataclass(frozen=True)
class Store:
    """A type of store, and for dist types how many processes there are and what arrays are split."""

    type: str
    workers: int = 1
    servers: int = 1
    bound: int = WHOLE

    @property
    def split(self) -> bool:
        """Whether arrays of SHAPE are cut into pieces."""
        return self.servers > 1 and self.bound == SPLIT

    def run(self, work: Callable[[Any], Any]) -> list[Any]:
        """``work(kv)`` on each worker of a new job; the results by rank."""
        if self.type in ("local", "device"):
            return [work(kvstore.create(self.type))]
        options = {"workers": self.workers, "servers": self.servers, "bigarray_bound": self.bound, "timeout": 10}
        return kvstore.LocalCluster(type=self.type, **options).run(work)

    def __str__(self) -> str:
        shape = "" if self.type in ("local", "device") else f"-{self.workers}w{self.servers}s"
        return self.type + shape + "-split" * self.split


LOCAL = [Store("local"), Store("device")]
SYNC = [Store("dist_sync", n, *rest) for n in (1, 3) for rest in ((1, WHOLE), (2, WHOLE), (2, SPLIT))]
SYNC += [Store("dist_device_sync"), Store("dist_device_sync", 3, 2, SPLIT)]
ASYNC = [Store("dist_async", n, *rest) for n in (1, 3) for rest in ((1, WHOLE), (2, SPLIT))]
ASYNC += [Store("dist_device_async", 3, 2, WHOLE)]
DIST = SYNC + ASYNC
STORES = LOCAL + DIST
ONE_OF_EACH = [*LOCAL, Store("dist_sync", 3, 2, SPLIT), Store("dist_async", 3, 2, SPLIT)]


def on(stores: Sequence[Store] = STORES) -> pytest.MarkDecorator:
    """The test runs on each of these; its argument is ``store``."""
    return pytest.mark.parametrize("store", stores, ids=str)


def full(number: float, dtype: str = "float32", shape: tuple[int, ...] = SHAPE) -> Any:
    return np.full(shape, number, dtype)


def same(array: Any, number: float) -> None:
    """Every element is this number, rounded to the array's dtype."""
    np.testing.assert_array_equal(array, np.full_like(array, number))


def summed(kv: KV) -> int:
    """How many workers' pushes are one sum; in dist_async each is applied by itself."""
    return 1 if "async" in kv.type else kv.num_workers


def push(kv: KV, key: Any, value: Any) -> None:
    """Push on all workers; when it returns, everybody's push has taken effect, and nobody goes on before."""
    kv.barrier()
    kv.push(key, value).wait()
    kv.barrier()


def update(kv: KV, key: Any, value: Any) -> None:
    """One update with this sum: in dist_async by rank 0 alone, else the others push zeros."""
    kv.barrier()
    if kv.rank == 0:
        kv.push(key, value).wait()
    elif "async" not in kv.type:
        kv.push(key, value * 0 if not isinstance(value, list) else [v * 0 for v in value]).wait()
    kv.barrier()


def pulled(kv: KV, key: Any) -> Any:
    """Pull on all workers before anybody goes on."""
    value = kv.pull(key)
    kv.barrier()
    return value


def read(kv: KV, key: Any = "w") -> float:
    """The one number that all elements of a key are, pulled by all workers before anybody goes on."""
    out = full(0)
    kv.pull(key, out=out)
    kv.barrier()
    same(out, out[0, 0])
    return float(out[0, 0])

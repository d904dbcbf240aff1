"""A stand-in for the kvstore package, so that these tests are about the examples alone.

Its workers are threads that share one model. 'dist_sync' sums in rank order between two barriers; every other type
applies a push at once.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class SGD:
    """SGD with momentum, one step per call."""

    def __init__(self, learning_rate: float = 0.01, momentum: float = 0.0) -> None:
        self.learning_rate, self.momentum = learning_rate, momentum
        self.slots: dict[Any, Any] = {}

    def step(self, key: Any, gradient: Any, weight: Any) -> None:
        self.slots[key] = self.momentum * self.slots.get(key, 0) - self.learning_rate * gradient
        weight += self.slots[key]


class FakeCluster:
    """What the workers share. ``values`` and ``optimizer`` change under ``lock``."""

    def __init__(self, kind: str, workers: int) -> None:
        self.kind, self.workers = kind, workers
        self.lock, self.barrier = threading.Lock(), threading.Barrier(workers)
        self.values: dict[Any, Any] = {}
        self.slices: list[Any] = [None] * workers  # each rank writes its own
        self.optimizer: SGD | None = None

    def store(self, rank: int) -> FakeStore:
        return FakeStore(self, rank)

    def run(self, fn: Callable[[Any], Any]) -> list[Any]:
        """Call fn(store) in one thread per worker; return the results by rank."""
        results: list[Any] = [None] * self.workers
        failures: list[Exception] = []

        def work(rank: int) -> None:
            try:
                with self.store(rank) as kv:
                    results[rank] = fn(kv)
            except Exception as error:  # any failure belongs to the test's own thread
                failures.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results


class FakeStore:
    """The part of KVStore that the examples use, with lists of keys and numpy arrays only."""

    def __init__(self, cluster: FakeCluster, rank: int) -> None:
        self.cluster, self.rank = cluster, rank
        self.type, self.num_workers = cluster.kind, cluster.workers

    def __enter__(self) -> FakeStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to release."""

    def barrier(self) -> None:
        self.cluster.barrier.wait(timeout=30)

    def set_optimizer(self, optimizer: SGD) -> None:
        with self.cluster.lock:
            self.cluster.optimizer = self.cluster.optimizer or optimizer

    def init(self, keys: list[Any], values: list[Any]) -> None:
        with self.cluster.lock:
            for key, value in zip(keys, values, strict=True):
                self.cluster.values.setdefault(key, value.copy())

    def push(self, keys: list[Any], values: list[Any]) -> None:
        if self.type != "dist_sync":
            self._apply(keys, values)
            return
        self.cluster.slices[self.rank] = values
        self.barrier()
        if self.rank == 0:
            self._apply(keys, [sum(parts[1:], parts[0]) for parts in zip(*self.cluster.slices, strict=True)])
        self.barrier()

    def pull(self, keys: list[Any], out: list[Any]) -> None:
        with self.cluster.lock:
            for key, array in zip(keys, out, strict=True):
                array[...] = self.cluster.values[key]

    def pushpull(self, keys: list[Any], values: list[Any], out: list[Any]) -> None:
        self.push(keys, values)
        self.pull(keys, out)

    def _apply(self, keys: list[Any], gradients: list[Any]) -> None:
        with self.cluster.lock:
            assert self.cluster.optimizer is not None
            for key, gradient in zip(keys, gradients, strict=True):
                assert np.shape(gradient) == self.cluster.values[key].shape
                self.cluster.optimizer.step(key, gradient, self.cluster.values[key])


def fake_kvstore() -> ModuleType:
    module = ModuleType("kvstore")

    def create_optimizer(name: str, **options: float) -> SGD:
        assert name == "sgd"
        return SGD(**options)

    module.serve = lambda: None  # type: ignore[attr-defined]
    module.create = lambda name: FakeCluster(name, 1).store(0)  # type: ignore[attr-defined]
    module.optimizer = SimpleNamespace(create=create_optimizer)  # type: ignore[attr-defined]
    return module


def load(name: str) -> ModuleType:
    """Import a script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


@pytest.fixture(scope="module")
def train_images() -> Iterator[Any]:
    """The module train_images, on the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "kvstore", fake_kvstore())
        yield load("train_images")


@pytest.fixture(scope="module")
def demo() -> Any:
    """The module demo."""
    return load("demo")


@pytest.fixture(scope="session")
def cluster() -> type[FakeCluster]:
    """The class of clusters of threads: cluster(type, workers).run(fn)."""
    return FakeCluster

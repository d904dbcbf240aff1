"""dist_sync trains to the same bits: any number of servers, order of arrival and transport; and like one process."""

from __future__ import annotations

import itertools
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from tests.launcher.launching import launch

from .training import OPTIMIZERS, bits, gradient, start, train

WORKERS, STEPS = 3, 12
SCRIPT = Path(__file__).with_name("training.py")


class Turns:
    """Lets the workers push in a given order of each step: a push has reached its servers when it returns."""

    def __init__(self, orders: list[list[int]]) -> None:
        self._orders = orders
        self._changed = threading.Condition()
        self._pushing: list[int] = []  # (rank of) pushes that have begun in this step; under the condition

    def __call__(self, rank: int, step: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._orders[step][len(self._pushing) % WORKERS] == rank, 10)
            self._pushing.append(rank)
            self._changed.notify_all()


def trained(optimizer: str, servers: int = 2, dtype: str = "float32", before_push: Any = None, **options: Any) -> bytes:
    cluster = kvstore.LocalCluster(workers=WORKERS, servers=servers, **options)
    results = cluster.run(lambda kv: bits(train(kv, optimizer, dtype, STEPS, before_push)))
    assert len(set(results)) == 1  # on every worker
    return results[0]


def by_one_process(optimizer: str, dtype: str) -> bytes:
    """Plain local training on the sum of all workers' gradients."""
    kv = kvstore.create("local")
    kv.set_optimizer(kvstore.optimizer.create(optimizer, **OPTIMIZERS[optimizer]))
    weights = start(dtype)
    kv.init(list(weights), list(weights.values()))
    for step in range(STEPS):
        for name, weight in weights.items():
            kv.push(name, [gradient(name, weight, rank, step) for rank in range(WORKERS)])
        kv.pull(list(weights), out=list(weights.values()))
    return bits(weights)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_number_of_servers_whole_or_split(optimizer: str) -> None:
    results = {
        (servers, bound): trained(optimizer, servers, bigarray_bound=bound)
        for servers, bound in itertools.product((1, 2, 3), (1, 200, 10**6))
    }
    assert set(results.values()) == {by_one_process(optimizer, "float32")}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ten_shuffled_orders_of_arrival(optimizer: str) -> None:
    rng = random.Random(3)
    results = set()
    for _ in range(10):
        orders = [rng.sample(range(WORKERS), WORKERS) for _ in range(STEPS)]
        results.add(trained(optimizer, before_push=Turns(orders), bigarray_bound=200))
    assert results == {by_one_process(optimizer, "float32")}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_float64_is_within_a_billionth_of_one_process(optimizer: str) -> None:
    ours = np.frombuffer(trained(optimizer, dtype="float64"))
    one = np.frombuffer(by_one_process(optimizer, "float64"))
    assert np.abs(ours - one).max() / np.abs(one).max() <= 1e-9
    # and of one that adds up the gradients in any other way
    weights = start("float64")
    updater = kvstore.optimizer.Updater(kvstore.optimizer.create(optimizer, **OPTIMIZERS[optimizer]))
    for step in range(STEPS):
        for name, weight in weights.items():
            updater(name, sum(gradient(name, weight, rank, step) for rank in reversed(range(WORKERS))), weight)
    other = np.frombuffer(bits(weights))
    assert np.abs(ours - other).max() / np.abs(other).max() <= 1e-9


def test_the_gradients_tell_orders_apart() -> None:
    """Without this the tests above would show nothing."""
    weights = start("float32")
    terms = [gradient("matrix", weights["matrix"], rank, 0) for rank in range(WORKERS)]
    assert len({sum(order).tobytes() for order in itertools.permutations(terms)}) > 1


@pytest.mark.processes
@pytest.mark.parametrize("transport", ["tcp", "ipc", "shm", "auto"])
def test_real_processes(transport: str, tmp_path: Path) -> None:
    optimizer = "adam"
    job = launch(
        "-n", str(WORKERS), "-s", "2", sys.executable, str(SCRIPT), optimizer, str(tmp_path), PSLITE_TRANSPORT=transport
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    expected = trained(optimizer, bigarray_bound=200)
    for rank in range(WORKERS):
        with np.load(tmp_path / f"{rank}.npz") as saved:
            assert bits({name: saved[name] for name in start("float32")}) == expected

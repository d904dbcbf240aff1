"""Every optimizer on servers: the same bits as in one process, wherever keys and their pieces are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.optimizer import FactorScheduler, create, registered


def train(kv: kvstore.KVStore, name: str) -> list[bytes]:
    random = np.random.default_rng(3)
    shapes = {"wide_weight": (9, 4), "long_bias": (50,), "cube_gamma": (2, 3, 2)}
    arguments: dict[str, Any] = {} if name == "groupadagrad" else {"wd": 0.1}
    schedule = FactorScheduler(2, 0.5)
    kv.set_optimizer(create(name, learning_rate=0.1, lr_scheduler=schedule, clip_gradient=0.8, **arguments))
    kv.init(list(shapes), [random.normal(size=shape).astype(np.float32) for shape in shapes.values()])
    for _ in range(4):
        for key, shape in shapes.items():
            kv.push(key, random.normal(size=shape).astype(np.float32))
    return [value.tobytes() for value in kv.pull(list(shapes))]


@pytest.mark.parametrize("name", registered())
def test_the_number_of_servers_does_not_change_a_bit(name: str) -> None:
    expected = train(kvstore.create("local"), name)
    for servers in (1, 3):
        cluster = kvstore.LocalCluster(workers=1, servers=servers, type="dist_sync", bigarray_bound=10)
        assert cluster.run(lambda kv: train(kv, name)) == [expected]

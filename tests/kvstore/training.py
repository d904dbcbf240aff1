"""A script that trains with gradients that depend on the weights; run as a program it is one process of a job.

The gradients' magnitudes are far apart, so that every other order of summation gives other bits.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import kvstore

SHAPES = {"matrix": (40, 25), "row": (1, 7), "vector": (301,), "scalar": ()}
OPTIMIZERS = {
    "sgd": {"learning_rate": 0.05, "momentum": 0.9, "wd": 1e-3, "rescale_grad": 1 / 3},
    "adam": {"learning_rate": 0.02, "clip_gradient": 50.0},
}


def start(dtype: str) -> dict[str, Any]:
    rng = np.random.default_rng(7)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def gradient(name: str, weight: Any, rank: int, step: int) -> Any:
    rng = np.random.default_rng([len(name), rank, step])
    scale = 10.0 ** rng.integers(-3, 4)
    return np.asarray(scale * rng.standard_normal(weight.shape) + 0.1 * (rank + 1) * weight, weight.dtype)


def train(kv: Any, optimizer: str, dtype: str = "float32", steps: int = 12, before_push: Any = None) -> dict[str, Any]:
    """The weights after some steps; ``before_push(rank, step)`` may hold a worker up."""
    kv.set_optimizer(kvstore.optimizer.create(optimizer, **OPTIMIZERS[optimizer]))
    weights = start(dtype)
    kv.init(list(weights), list(weights.values()))
    for step in range(steps):
        grads = [gradient(name, weight, kv.rank, step) for name, weight in weights.items()]
        if before_push:
            before_push(kv.rank, step)
        kv.push(list(weights), grads)
        kv.pull(list(weights), out=list(weights.values()))
    return weights


def bits(weights: dict[str, Any]) -> bytes:
    return b"".join(weight.tobytes() for weight in weights.values())


if __name__ == "__main__":
    with kvstore.create("dist_sync", bigarray_bound=200) as store:
        trained = train(store, sys.argv[1])
        np.savez(f"{sys.argv[2]}/{store.rank}.npz", **trained)

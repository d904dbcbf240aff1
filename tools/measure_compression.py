#!/usr/bin/env python3
"""Ratio, accuracy and time of each codec: a small network on images of digits, trained by four workers in one process.

    python tools/measure_compression.py

Every worker has a Feedback for each key and the codes are decoded and summed as a server does; nothing is sent. The
ratio is that of all pushes of a run, and so includes the small keys; the accuracy is the mean over SEEDS, whose
standard deviation stands behind it; times are for one array of a million elements. Needs scikit-learn.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from kvstore.compression import Codec, Feedback, create

Array = NDArray[Any]

WORKERS, EPOCHS, BATCH, SEEDS = 4, 30, 64, 5
RATE, MOMENTUM, SIZES = 0.2, 0.5, (64, 128, 10)
ELEMENTS, REPEATS = 1_000_000, 50

CODECS: tuple[dict[str, Any], ...] = (
    {"type": "none"},
    {"type": "fp16"},
    {"type": "bf16"},
    {"type": "int8"},
    {"type": "int4"},
    {"type": "qsgd"},
    {"type": "terngrad"},
    {"type": "2bit", "threshold": 0.5},
    {"type": "1bit", "threshold": 0.5},
    {"type": "1bit", "threshold": 0.0},
    {"type": "sign"},
    {"type": "topk", "ratio": 0.01},
    {"type": "randomk", "ratio": 0.05},
    {"type": "randomk", "ratio": 0.01},
)


@dataclass
class Digits:
    """1797 images as rows of 64 pixels in [0, 1], with their labels; one in five is for the test."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


def load() -> Digits:
    pixels, labels = load_digits(return_X_y=True)
    test, train = np.split(np.random.default_rng(0).permutation(len(labels)), [len(labels) // 5])
    x = (pixels / 16).astype(np.float32)
    return Digits(x[train], labels[train], x[test], labels[test])


def gradients(weights: list[Array], x: Array, y: Array) -> list[Array]:
    """Of the cross entropy, summed over the samples: what is pushed; the optimizer divides by BATCH."""
    w1, b1, w2, b2 = weights
    hidden = np.maximum(x @ w1 + b1, 0)
    logits = hidden @ w2 + b2
    delta = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta /= delta.sum(axis=1, keepdims=True)
    delta[np.arange(len(y)), y] -= 1
    below = (delta @ w2.T) * (hidden > 0)
    return [x.T @ below, below.sum(axis=0), hidden.T @ delta, delta.sum(axis=0)]


def accuracy(weights: list[Array], digits: Digits) -> float:
    w1, b1, w2, b2 = weights
    logits = np.maximum(digits.test_x @ w1 + b1, 0) @ w2 + b2
    return float((logits.argmax(axis=1) == digits.test_y).mean())


def train(codec: Codec | None, digits: Digits, seed: int) -> tuple[float, int, int]:
    """The accuracy, and the bytes of all gradients before and after compression."""
    rng = np.random.default_rng(seed)
    weights: list[Array] = []
    for inputs, outputs in itertools.pairwise(SIZES):
        weights.append((rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)).astype(np.float32))
        weights.append(np.zeros(outputs, np.float32))
    velocities = [np.zeros_like(w) for w in weights]
    feedbacks = [[Feedback(w.shape) for w in weights] for _ in range(WORKERS)]
    raw = sent = number = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(digits.train_y))
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            number += 1
            sums = [np.zeros_like(w) for w in weights]
            for worker, mine in enumerate(np.array_split(batch, WORKERS)):
                grads = gradients(weights, digits.train_x[mine], digits.train_y[mine])
                for key, grad in enumerate(grads):
                    raw += grad.nbytes
                    if codec is not None:
                        salt = codec.salt_of(key, number, worker)
                        [code] = feedbacks[worker][key].encode(codec, grad, None, salt)
                        sent += sum(array.nbytes for array in code)
                        grad = codec.decode(code, grad.size, salt).reshape(grad.shape)
                    sums[key] += grad
            for weight, velocity, total in zip(weights, velocities, sums, strict=True):
                velocity *= MOMENTUM
                velocity -= RATE / BATCH * total
                weight += velocity
    return accuracy(weights, digits), raw, sent if codec is not None else raw


def nanoseconds(work: Callable[[], object]) -> float:
    """For each element; the best of REPEATS runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times) / ELEMENTS * 1e9


def speed(codec: Codec) -> tuple[float, float]:
    """Nanoseconds for each element of Feedback.encode and of decode."""
    grad = np.random.default_rng(0).standard_normal(ELEMENTS, np.float32)
    feedback = Feedback(grad.shape)
    [code] = feedback.encode(codec, grad, None, 1)
    feeding = nanoseconds(lambda: feedback.encode(codec, grad, None, 1))
    return feeding, nanoseconds(lambda: codec.decode(code, grad.size, 1))


def main() -> None:
    digits = load()
    print("| codec | ratio | accuracy | encode, ns | decode, ns |")
    print("| --- | --- | --- | --- | --- |")
    for params in CODECS:
        codec, _ = create(params)
        runs = [train(codec, digits, seed) for seed in range(SEEDS)]
        scores = [100 * score for score, _, _ in runs]
        _, raw, sent = runs[0]
        cost = "0 | 0" if codec is None else "{:.1f} | {:.1f}".format(*speed(codec))
        name = " ".join([params["type"], *(f"{k}={v}" for k, v in params.items() if k != "type")])
        spread = f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}"
        print(f"| {name} | {raw / sent:.1f} | {spread} | {cost} |", flush=True)


if __name__ == "__main__":
    main()

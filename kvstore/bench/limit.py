"""What memory allows: read every worker's bytes once, write the sum once, copy it out once for each worker."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 15  # floats: what is added up stays in the cache

Array = NDArray[np.float32]


def measure(floats: int, workers: int, rounds: int) -> list[float]:
    """Seconds of each round, with numpy on all cores at once, each of which has its share of the elements."""
    cores = len(os.sched_getaffinity(0))
    shares = [len(part) for part in np.array_split(np.empty(floats, np.int8), cores)]
    start, end = threading.Barrier(cores + 1), threading.Barrier(cores + 1)

    def work(share: int) -> None:
        pushed: list[Array] = [np.ones(share, np.float32) for _ in range(workers)]
        pulled: list[Array] = [np.zeros(share, np.float32) for _ in range(workers)]
        total = np.zeros(share, np.float32)
        for _ in range(1 + rounds):
            start.wait()
            _move(pushed, total, pulled)
            end.wait()

    threads = [threading.Thread(target=work, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    seconds = []
    for _ in range(1 + rounds):
        start.wait()
        begin = time.perf_counter()
        end.wait()
        seconds.append(time.perf_counter() - begin)
    for thread in threads:
        thread.join()
    return seconds[1:]


def _move(pushed: list[Array], total: Array, pulled: list[Array]) -> None:
    for lo in range(0, total.size, BLOCK):
        block: Any = total[lo : lo + BLOCK]
        if len(pushed) == 1:
            block[...] = pushed[0][lo : lo + BLOCK]
        else:
            np.add(pushed[0][lo : lo + BLOCK], pushed[1][lo : lo + BLOCK], out=block)
        for other in pushed[2:]:
            block += other[lo : lo + BLOCK]
    for out in pulled:
        out[...] = total

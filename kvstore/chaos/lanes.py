"""The oracle: every worker adds to a lane of its own, so a value tells whose push was lost or applied twice.

The k-th push of worker w of N adds 1 to element w, k to element N + w and k**2 mod ``PRIME`` to element 2N + w of every
key; a longer key repeats this. Pushes of a worker are applied in order, so a lane must be the sum of the first m of
them, and m lies between the pushes that were acknowledged and those that were attempted (Jepsen's counter check).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PRIME = 65_521  # sums of a million squares mod this are whole numbers in float64


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a lane: pushes that are missing and pushes that were applied too often, at least."""

    lost: int = 0
    doubled: int = 0
    text: str = ""


def width(workers: int) -> int:
    """Elements of a key: any multiple of it."""
    return 3 * workers


def contribution(workers: int, rank: int, number: int, size: int) -> Array:
    """What a worker pushes the ``number``-th time, for a key of ``size`` elements; numbers start at 1."""
    lanes = np.zeros((3, workers))
    lanes[:, rank] = 1, number, number * number % PRIME
    return np.resize(lanes, size)


def torn(value: Array, workers: int) -> bool:
    """Whether the repetitions in a value differ: then it is a mixture of two versions."""
    rows = value.reshape(-1, width(workers))
    return not bool((rows == rows[0]).all())


def count(value: Array, rank: int) -> int:
    """How many pushes of a worker are in a value."""
    return int(value[rank])


def judge(value: Array, workers: int, rank: int, acked: int, attempted: int) -> Verdict:
    """Check the lane of a worker in a value; an empty verdict if it is the sum of its first pushes."""
    found = tuple(int(number) for number in value[rank : width(workers) : workers])
    if acked <= found[0] <= attempted and found == sums(found[0]):
        return Verdict()
    where = f"worker {rank}: {found[0]} pushes are in, {acked} were acknowledged and {attempted} attempted"
    if found == sums(found[0]):
        return Verdict(max(0, acked - found[0]), max(0, found[0] - attempted), where)
    for total in range(acked, attempted + 1):
        wrong = tuple(a - b for a, b in zip(found, sums(total), strict=True))
        number = abs(wrong[1])
        if abs(wrong[0]) == 1 and wrong == tuple(wrong[0] * n for n in (1, number, number * number % PRIME)):
            what = "lost" if wrong[0] < 0 else "applied twice"
            return Verdict(int(wrong[0] < 0), int(wrong[0] > 0), f"{where}; push {number} was {what}")
    lost, doubled = max(acked - found[0], 0), max(found[0] - attempted, 0)
    return Verdict(lost or 1, doubled or int(not lost), f"{where}; the sums of their numbers do not fit: {found[1:]}")


@functools.lru_cache(4096)  # the lanes of all keys are near each other
def sums(total: int) -> tuple[int, int, int]:
    """The lane after this many pushes: their count, the sum of their numbers, that of the squares mod PRIME."""
    numbers = np.arange(1, total + 1, dtype=np.int64)
    return total, total * (total + 1) // 2, int((numbers * numbers % PRIME).sum())

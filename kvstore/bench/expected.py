"""What the store must hold after so many rounds, computed without it: a wrong result is never a fast one."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .peers.run import PERIOD, table

RATE, MOMENTUM, ADAM_RATE, THRESHOLD = 0.1, 0.9, 0.001, 0.5
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults
_AT_ONCE = 256 * PERIOD  # elements compared at once: little memory

Vector = NDArray[np.float64]


class WrongValue(Exception):
    """Raised when the store returned something else than it must."""


class Model:
    """The value of an array whose elements are ``table()`` again and again, except that the first is this round's mark.

    Worker r pushes ``scales[r]`` times that. One element of ``value`` for each of the table and one for the mark. In
    dist_async pushes are applied one by one, in whatever order: it takes equal scales and a constant mark.
    """

    def __init__(self, server: str, scales: Sequence[float], in_step: bool) -> None:
        self._server, self._scales, self._in_step = server, scales, in_step
        self._table = table().astype(np.float64)
        self.value: Vector = np.zeros(PERIOD + 1)
        self._residuals = [np.zeros(PERIOD + 1) for _ in scales]
        self._first, self._second = np.zeros(PERIOD + 1), np.zeros(PERIOD + 1)  # of momentum and Adam
        self._updates = 0

    def step(self, mark: float) -> None:
        """One round: every worker pushes once."""
        base = np.append(self._table, mark)
        pushes = [self._arrives(scale * base, rank) for rank, scale in enumerate(self._scales)]
        for contribution in [sum(pushes)] if self._in_step else pushes:
            self._apply(contribution)

    def _arrives(self, gradient: Vector, rank: int) -> Vector:
        if self._server != "2bit":
            return gradient
        residual = self._residuals[rank] + gradient
        sent = np.where(residual >= THRESHOLD, THRESHOLD, np.where(residual <= -THRESHOLD, -THRESHOLD, 0.0))
        self._residuals[rank] = residual - sent
        return sent

    def _apply(self, gradient: Any) -> None:
        self._updates += 1
        if self._server == "sgd":
            self.value -= RATE * gradient
        elif self._server == "mom":
            self._first = MOMENTUM * self._first - RATE * gradient
            self.value += self._first
        elif self._server == "adam":
            self._first = _BETA1 * self._first + (1 - _BETA1) * gradient
            self._second = _BETA2 * self._second + (1 - _BETA2) * gradient**2
            rate = ADAM_RATE * math.sqrt(1 - _BETA2**self._updates) / (1 - _BETA1**self._updates)
            self.value -= rate * self._first / (np.sqrt(self._second) + _EPSILON)
        else:
            self.value = np.array(gradient)

    def compare(self, arrays: Sequence[NDArray[Any]], whole: bool) -> None:
        """Raise WrongValue unless the arrays of all keys (or their first elements alone) are as they must be."""
        heads = np.array([array.reshape(-1)[0] for array in arrays])
        _judge("first elements by key", 0, heads, *_bounds(np.full(len(arrays), self.value[-1])))
        expected = functools.cache(self._expected)  # most arrays are as large as others
        for key, array in enumerate(arrays if whole else ()):
            flat = array.reshape(-1)
            for start in range(0, flat.size, _AT_ONCE):
                part = flat[start : start + _AT_ONCE]
                _judge(f"key {key}", start, part, *expected(part.size, start == 0))

    def _expected(self, size: int, first: bool) -> tuple[Vector, Vector]:
        """Of elements of an array, its first ones or others, from a whole number of tables on."""
        values = np.resize(self.value[:-1], size)
        if first:
            values[0] = self.value[-1]
        return _bounds(values)


def _bounds(expected: Vector) -> tuple[Vector, Vector]:
    """What is not below and not above what it must be."""
    tolerance = 1e-6 + 1e-4 * np.abs(expected)  # float32, and the rounding of a few dozen updates
    return expected - tolerance, expected + tolerance


def _judge(what: str, start: int, got: NDArray[Any], lowest: Vector, highest: Vector) -> None:
    right = (got >= lowest) & (got <= highest)  # NaN is neither
    if not right.all():
        at = int(right.argmin())
        raise WrongValue(f"{what}, element {start + at}: got {got[at]}, expected {(lowest[at] + highest[at]) / 2}")

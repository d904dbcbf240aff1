"""What the store must hold after so many rounds, computed without it: a wrong result is never a fast one."""

from __future__ import annotations

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

    def compare(self, key: int, got: NDArray[Any], whole: bool) -> None:
        """Raise WrongValue unless an array (or its first elements alone) is as it must be."""
        flat = got.reshape(-1)
        _compare(key, 0, flat[:1], self.value[-1:])
        for start in range(0, flat.size if whole else 0, _AT_ONCE):
            part = flat[start : start + _AT_ONCE]
            expected = np.resize(self.value[:-1], part.size)
            if start == 0:
                expected[0] = self.value[-1]
            _compare(key, start, part, expected)


def _compare(key: int, start: int, got: NDArray[Any], expected: NDArray[Any]) -> None:
    close = np.isclose(got, expected, rtol=1e-4, atol=1e-6)
    if not close.all():
        at = int(close.argmin())
        raise WrongValue(f"key {key}, element {start + at}: got {got[at]}, expected {expected[at]}")

"""Ftrl."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["Ftrl"]


@register
class Ftrl(Elementwise):
    """Follow the regularised leader, for sparse linear models (McMahan et al., 2013). lr 0.1::

        d = clip(g)
        z += d - (sqrt(n + d^2) - sqrt(n)) * w / lr
        n += d^2
        w = (sign(z) * lamda1 - z) / ((beta + sqrt(n)) / lr + wd)  if |z| > lamda1 else 0

    lamda1 is the weight of the L1 term, wd that of the L2 term. Where lr is 0, nothing changes.
    """

    lazy_update = True
    default_learning_rate: ClassVar[float] = 0.1

    def __init__(
        self, lamda1: float = 0.01, learning_rate: float | None = None, beta: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.lamda1 = number("lamda1", lamda1)
        self.beta = number("beta", beta)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"z": zeros(weight), "n": zeros(weight)}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        if at.lr == 0:
            return
        z, n = state["z"], state["n"]
        self._clip(g)
        z += g
        np.sqrt(n, out=tmp)
        np.square(g, out=g)
        n += g
        root = np.sqrt(n, out=g)
        np.subtract(root, tmp, out=tmp)
        tmp /= at.lr
        tmp *= w
        z -= tmp
        root += self.beta
        root /= at.lr
        root += at.wd
        np.clip(z, -self.lamda1, self.lamda1, out=tmp)
        tmp -= z  # sign(z) * lamda1 - z, or 0 where |z| <= lamda1
        w[...] = 0
        np.divide(tmp, root, out=w, where=tmp != 0)  # with beta 0, an element without gradients is 0 / 0

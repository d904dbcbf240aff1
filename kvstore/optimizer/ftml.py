"""FTML."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["FTML"]


@register
class FTML(Elementwise):
    """Follow the moving leader (Zheng & Kwok, 2017). lr 0.01::

        d = clip(g + wd * w)
        v = beta2 * v + (1 - beta2) * d^2
        new = (1 - beta1^t) / lr * (sqrt(v / (1 - beta2^t)) + epsilon)
        z = beta1 * z + (1 - beta1) * d - (new - beta1 * d_t) * w
        w = -z / new
        d_t = new

    t is the key's update count. Where lr is 0, nothing changes.
    """

    def __init__(self, beta1: float = 0.6, beta2: float = 0.999, epsilon: float = 1e-8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.beta1 = number("beta1", beta1)
        self.beta2 = number("beta2", beta2)
        self.epsilon = number("epsilon", epsilon)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"d_t": zeros(weight), "v": zeros(weight), "z": zeros(weight)}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        if at.lr == 0:
            return
        d_t, v, z = state["d_t"], state["v"], state["z"]
        self._add_scaled(g, at.wd, w, tmp)
        self._clip(g)
        v *= self.beta2
        np.square(g, out=tmp)
        tmp *= 1 - self.beta2
        v += tmp
        z *= self.beta1
        g *= 1 - self.beta1
        z += g
        new = np.sqrt(v, out=g)
        new /= math.sqrt(1 - self.beta2**at.count)
        new += self.epsilon
        new *= (1 - self.beta1**at.count) / at.lr
        np.multiply(d_t, self.beta1, out=tmp)
        np.subtract(new, tmp, out=tmp)
        tmp *= w
        z -= tmp
        np.divide(z, new, out=w)
        np.negative(w, out=w)
        d_t[...] = new

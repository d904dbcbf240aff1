"""Adam."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros
from .wire import number

__all__ = ["Adam"]


@register
class Adam(Elementwise):
    """Adaptive moments (Kingma & Ba, 2015). lr 0.001::

        d = clip(g + wd * w)
        mean = beta1 * mean + (1 - beta1) * d
        var = beta2 * var + (1 - beta2) * d^2
        w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * mean / (sqrt(var) + epsilon)

    t is the key's update count.
    """

    default_learning_rate: ClassVar[float] = 0.001

    def __init__(
        self,
        learning_rate: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta1 = number("beta1", beta1)
        self.beta2 = number("beta2", beta2)
        self.epsilon = number("epsilon", epsilon)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"mean": zeros(weight), "var": zeros(weight)}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        mean, var = state["mean"], state["var"]
        self._add_scaled(g, at.wd, w, tmp)
        self._clip(g)
        mean *= self.beta1
        self._add_scaled(mean, 1 - self.beta1, g, tmp)
        var *= self.beta2
        np.square(g, out=g)
        self._add_scaled(var, 1 - self.beta2, g, tmp)
        np.sqrt(var, out=tmp)
        tmp += self.epsilon
        np.divide(mean, tmp, out=tmp)
        tmp *= at.lr * math.sqrt(1 - self.beta2**at.count) / (1 - self.beta1**at.count)
        w -= tmp

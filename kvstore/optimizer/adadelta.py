"""AdaDelta."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["AdaDelta"]


@register
class AdaDelta(Elementwise):
    """Steps in the units of the weights, without a learning rate (Zeiler, 2012)::

        d = clip(g)
        acc_g = rho * acc_g + (1 - rho) * d^2
        delta = sqrt(acc_delta + epsilon) / sqrt(acc_g + epsilon) * d
        acc_delta = rho * acc_delta + (1 - rho) * delta^2
        w -= delta + wd * w

    As in MXNet 1.x, learning rate, schedule and lr_mult have no effect.
    """

    def __init__(self, rho: float = 0.9, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rho = number("rho", rho)
        self.epsilon = number("epsilon", epsilon)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"acc_g": zeros(weight), "acc_delta": zeros(weight)}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        acc_g, acc_delta = state["acc_g"], state["acc_delta"]
        self._clip(g)
        self._add_square(acc_g, g, tmp)
        np.add(acc_g, self.epsilon, out=tmp)
        np.sqrt(tmp, out=tmp)
        g /= tmp
        np.add(acc_delta, self.epsilon, out=tmp)
        np.sqrt(tmp, out=tmp)
        g *= tmp
        self._add_square(acc_delta, g, tmp)
        self._add_scaled(g, at.wd, w, tmp)
        w -= g

    def _add_square(self, mean: Array, term: Array, tmp: Array) -> None:
        """``mean = rho * mean + (1 - rho) * term^2``"""
        mean *= self.rho
        np.square(term, out=tmp)
        tmp *= 1 - self.rho
        mean += tmp

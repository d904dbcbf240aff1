"""RMSProp, plain and centered."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["RMSProp"]


@register
class RMSProp(Elementwise):
    """Rates from a decaying mean of squared gradients (Tieleman & Hinton, 2012). lr 0.001::

        d = clip(g + wd * w)
        n = gamma1 * n + (1 - gamma1) * d^2
        w -= lr * d / sqrt(n + epsilon)

    With ``centered`` (Graves, 2013) the variance takes the place of the mean square, with momentum gamma2::

        mean = gamma1 * mean + (1 - gamma1) * d
        delta = gamma2 * delta - lr * d / sqrt(n - mean^2 + epsilon)
        w += delta

    ``clip_weights``, if above 0, then limits each weight to [-clip_weights, clip_weights].
    """

    default_learning_rate: ClassVar[float] = 0.001

    def __init__(
        self,
        learning_rate: float | None = None,
        gamma1: float = 0.9,
        gamma2: float = 0.9,
        epsilon: float = 1e-8,
        centered: bool = False,
        clip_weights: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.gamma1 = number("gamma1", gamma1)
        self.gamma2 = number("gamma2", gamma2)
        self.epsilon = number("epsilon", epsilon)
        self.centered = bool(centered)
        self.clip_weights = None if clip_weights is None else number("clip_weights", clip_weights)

    def create_state(self, key: Key, weight: Weight) -> State:
        names = ("n", "mean", "delta") if self.centered else ("n",)
        return {name: zeros(weight) for name in names}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        n = state["n"]
        self._add_scaled(g, at.wd, w, tmp)
        self._clip(g)
        n *= self.gamma1
        np.square(g, out=tmp)
        tmp *= 1 - self.gamma1
        n += tmp
        if "delta" in state:
            self._move_centered(w, g, tmp, state, at.lr)
        else:
            np.add(n, self.epsilon, out=tmp)
            np.sqrt(tmp, out=tmp)
            g /= tmp
            g *= at.lr
            w -= g
        if self.clip_weights is not None and self.clip_weights > 0:
            np.clip(w, -self.clip_weights, self.clip_weights, out=w)

    def _move_centered(self, w: Array, d: Array, tmp: Array, state: State, lr: float) -> None:
        n, mean, delta = state["n"], state["mean"], state["delta"]
        mean *= self.gamma1
        self._add_scaled(mean, 1 - self.gamma1, d, tmp)
        np.square(mean, out=tmp)
        np.subtract(n, tmp, out=tmp)
        tmp += self.epsilon
        np.sqrt(tmp, out=tmp)
        d /= tmp
        d *= lr
        delta *= self.gamma2
        delta -= d
        w += delta

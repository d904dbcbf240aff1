"""Adam, and those of its kin that differ in a line: AdamW and AdaBelief."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["AdaBelief", "Adam", "AdamW", "Moments"]


class Moments(Elementwise):
    """Keeps decaying means of the gradient, ``mean``, and of its square, ``var``, by ``beta1`` and ``beta2``."""

    default_learning_rate: ClassVar[float] = 0.001

    def __init__(
        self, learning_rate: float | None = None, beta1: float = 0.9, beta2: float = 0.999, **kwargs: Any
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta1 = number("beta1", beta1)
        self.beta2 = number("beta2", beta2)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"mean": zeros(weight), "var": zeros(weight)}

    def _add_mean(self, d: Array, tmp: Array, state: State) -> None:
        """``mean = beta1 * mean + (1 - beta1) * d``"""
        mean = state["mean"]
        mean *= self.beta1
        self._add_scaled(mean, 1 - self.beta1, d, tmp)

    def _add_square(self, d: Array, state: State) -> None:
        """``var = beta2 * var + (1 - beta2) * d^2``; ``d`` is scratch afterwards."""
        var = state["var"]
        var *= self.beta2
        np.square(d, out=d)
        d *= 1 - self.beta2
        var += d

    def _corrected(self, at: Rates) -> float:
        """lr with the correction for means that begin at 0."""
        return at.lr * math.sqrt(1 - self.beta2**at.count) / (1 - self.beta1**at.count)


@register
class Adam(Moments):
    """Adaptive moments (Kingma & Ba, 2015). lr 0.001::

        d = clip(g + wd * w)
        mean = beta1 * mean + (1 - beta1) * d
        var = beta2 * var + (1 - beta2) * d^2
        w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * mean / (sqrt(var) + epsilon)

    t is the key's update count.
    """

    def __init__(
        self,
        learning_rate: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        lazy_update: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, **kwargs)
        self.epsilon = number("epsilon", epsilon)
        self.lazy_update = bool(lazy_update)

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        self._add_scaled(g, at.wd, w, tmp)
        self._clip(g)
        self._add_mean(g, tmp, state)
        self._add_square(g, state)
        np.sqrt(state["var"], out=tmp)
        tmp += self.epsilon
        np.divide(state["mean"], tmp, out=tmp)
        tmp *= self._corrected(at)
        w -= tmp


class _Corrigible(Moments):
    """``correct_bias``: False leaves lr as it is."""

    def __init__(
        self,
        learning_rate: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        correct_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, **kwargs)
        self.epsilon = number("epsilon", epsilon)
        self.correct_bias = bool(correct_bias)

    def _corrected(self, at: Rates) -> float:
        return super()._corrected(at) if self.correct_bias else at.lr


@register
class AdamW(_Corrigible):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019; as MXNet 2.0). lr 0.001::

        d = clip(g)
        mean = beta1 * mean + (1 - beta1) * d
        var = beta2 * var + (1 - beta2) * d^2
        w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * (mean / (sqrt(var) + epsilon) + wd * w)

    Without ``correct_bias`` the factor after lr is 1.
    """

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        self._clip(g)
        self._add_mean(g, tmp, state)
        self._add_square(g, state)
        np.sqrt(state["var"], out=g)
        g += self.epsilon
        np.divide(state["mean"], g, out=g)
        self._add_scaled(g, at.wd, w, tmp)
        g *= self._corrected(at)
        w -= g


@register
class AdaBelief(_Corrigible):
    """Adam that divides by the spread of the gradient about its mean (Zhuang et al., 2020; as MXNet 2.0). lr 0.001::

        d = clip(g + wd * w)
        mean = beta1 * mean + (1 - beta1) * d
        var = beta2 * var + (1 - beta2) * (d - mean)^2 + epsilon
        w -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * mean / (sqrt(var) + epsilon)

    Without ``correct_bias`` the factor after lr is 1.
    """

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        mean, var = state["mean"], state["var"]
        self._add_scaled(g, at.wd, w, tmp)
        self._clip(g)
        self._add_mean(g, tmp, state)
        g -= mean
        self._add_square(g, state)
        var += self.epsilon
        np.sqrt(var, out=tmp)
        tmp += self.epsilon
        np.divide(mean, tmp, out=tmp)
        tmp *= self._corrected(at)
        w -= tmp

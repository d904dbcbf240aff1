"""Adamax and Nadam: Adam with the largest gradient in place of the root, and with Nesterov's momentum."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .adam import Moments
from .base import Rates, State, register

__all__ = ["Adamax", "Nadam"]

_NOTHING = 1e-20  # a product below this does not change 1 - product, in any precision here


@register
class Adamax(Moments):
    """Adam by the infinity norm (Kingma & Ba, 2015, section 7). lr 0.002::

        d = clip(g + wd * w)
        mean = beta1 * mean + (1 - beta1) * d
        var = max(beta2 * var, |d|)
        w -= lr / (1 - beta1^t) * mean / var

    Elements that never had a gradient (var 0) stay as they are.
    """

    default_learning_rate: ClassVar[float] = 0.002

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        mean, var = state["mean"], state["var"]
        self._add_scaled(g, at.wd, w, tmp)
        self._clip(g)
        self._add_mean(g, tmp, state)
        var *= self.beta2
        np.absolute(g, out=g)
        np.maximum(var, g, out=var)
        tmp[...] = 0
        np.divide(mean, var, out=tmp, where=var != 0)
        tmp *= at.lr / (1 - self.beta1**at.count)
        w -= tmp


@register
class Nadam(Moments):
    """Adam with Nesterov's momentum, on a schedule (Dozat, 2016). lr 0.001::

        d = clip(g + wd * w)
        mean = beta1 * mean + (1 - beta1) * d
        var = beta2 * var + (1 - beta2) * d^2
        u(t) = beta1 * (1 - 0.96^(t * schedule_decay) / 2);  S(t) = u(1) * ... * u(t)
        bar = (1 - u(t)) * d / (1 - S(t)) + u(t+1) * mean / (1 - S(t+1))
        w -= lr * bar / (sqrt(var / (1 - beta2^t)) + epsilon)

    t is the key's update count; S leaves out those before begin_num_update. (MXNet multiplies one S for all keys, so
    that it depends on how many there are.)
    """

    def __init__(
        self,
        learning_rate: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        schedule_decay: float = 0.004,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, **kwargs)
        self.epsilon = number("epsilon", epsilon)
        self.schedule_decay = number("schedule_decay", schedule_decay)

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        mean, var = state["mean"], state["var"]
        self._add_scaled(g, at.wd, w, tmp)
        self._clip(g)
        self._add_mean(g, tmp, state)
        var *= self.beta2
        np.square(g, out=tmp)
        tmp *= 1 - self.beta2
        var += tmp
        product, now, then = self._product(at.count), self._momentum(at.count), self._momentum(at.count + 1)
        g *= (1 - now) / (1 - product)
        self._add_scaled(g, then / (1 - product * then), mean, tmp)
        np.divide(var, 1 - self.beta2**at.count, out=tmp)
        np.sqrt(tmp, out=tmp)
        tmp += self.epsilon
        g /= tmp
        g *= at.lr
        w -= g

    def _momentum(self, t: int) -> float:
        return float(self.beta1 * (1 - 0.5 * 0.96 ** (t * self.schedule_decay)))

    def _product(self, t: int) -> float:
        """S(t), from counts alone. Its factors are below beta1: it soon is nothing, and the rest is not multiplied."""
        product = 1.0
        for i in range(self.begin_num_update + 1, t + 1):
            product *= self._momentum(i)
            if product < _NOTHING:
                break
        return product

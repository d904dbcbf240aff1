"""LAMB and LANS: Adam with a step in proportion to each layer's norm, for large batches."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, Rates, State, Weight, register
from .elementwise import zeros
from .layerwise import LayerWise, norm

__all__ = ["LAMB", "LANS"]


class _Trust(LayerWise):
    """The moments, and the ratio of the weight's norm, kept to [lower_bound, upper_bound], to that of a step."""

    default_learning_rate: ClassVar[float] = 0.001

    def __init__(
        self,
        learning_rate: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        lower_bound: float | None = None,
        upper_bound: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta1 = number("beta1", beta1)
        self.beta2 = number("beta2", beta2)
        self.epsilon = number("epsilon", epsilon)
        self.lower_bound = None if lower_bound is None else number("lower_bound", lower_bound)
        self.upper_bound = None if upper_bound is None else number("upper_bound", upper_bound)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"mean": zeros(weight), "var": zeros(weight)}

    def _add_moments(self, d: Array, state: State) -> None:
        mean, var = state["mean"], state["var"]
        mean *= self.beta1
        mean += (1 - self.beta1) * d
        var *= self.beta2
        var += (1 - self.beta2) * np.square(d)

    def _ratio(self, w: Array, step: Array) -> float:
        """1 if either norm is 0."""
        size, length = norm(w), norm(step)
        if self.lower_bound is not None and self.lower_bound > 0:
            size = max(size, self.lower_bound)
        if self.upper_bound is not None and self.upper_bound > 0:
            size = min(size, self.upper_bound)
        return 1.0 if size == 0 or length == 0 else size / length


@register
class LAMB(_Trust):
    """Layer-wise adaptive moments (You et al., 2020). lr 0.001::

        d = clip(g)
        mean = beta1 * mean + (1 - beta1) * d
        var = beta2 * var + (1 - beta2) * d^2
        step = mean / (1 - beta1^t) / (sqrt(var / (1 - beta2^t)) + epsilon) + wd * w
        ratio = norm(w), kept to [lower_bound, upper_bound], / norm(step); 1 if either is 0
        w -= lr * ratio * step

    t is the key's update count; without ``bias_correction`` the divisors with t are 1. A bound of None or 0 is none.
    """

    def __init__(
        self,
        learning_rate: float | None = None,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-6,
        lower_bound: float | None = None,
        upper_bound: float | None = None,
        bias_correction: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, lower_bound, upper_bound, **kwargs)
        self.bias_correction = bool(bias_correction)

    def step(self, key: Key, w: Array, g: Array, state: State, at: Rates) -> None:
        self._rescale_and_clip(g)
        self._add_moments(g, state)
        first, second = 1.0, 1.0
        if self.bias_correction:
            first, second = 1 - self.beta1**at.count, 1 - self.beta2**at.count
        step = state["mean"] / first
        step /= np.sqrt(state["var"] / second) + self.epsilon
        step += at.wd * w
        step *= at.lr * self._ratio(w, step)
        w -= step


@register
class LANS(_Trust):
    """LAMB with normalised gradients and Nesterov's momentum (Zheng et al., 2020; as MXNet 2.0). lr 0.001::

        d = clip(g / norm(g))
        mean = beta1 * mean + (1 - beta1) * d
        var = beta2 * var + (1 - beta2) * d^2
        root = sqrt(var / (1 - beta2^t)) + epsilon
        m = mean / (1 - beta1^t) / root + wd * w
        n = d / root + wd * w
        w -= lr * (beta1 * ratio(m) * m + (1 - beta1) * ratio(n) * n)

    with the ratios of LAMB, both by the norm of the old w. A gradient of zeros stays one.
    """

    def step(self, key: Key, w: Array, g: Array, state: State, at: Rates) -> None:
        g *= float(self.rescale_grad)
        length = norm(g)
        if length != 0:
            g /= length
        self._clip(g)
        self._add_moments(g, state)
        root = np.sqrt(state["var"] / (1 - self.beta2**at.count))
        root += self.epsilon
        m = state["mean"] / (1 - self.beta1**at.count)
        m /= root
        m += at.wd * w
        g /= root
        g += at.wd * w
        m *= at.lr * self.beta1 * self._ratio(w, m)
        g *= at.lr * (1 - self.beta1) * self._ratio(w, g)
        m += g
        w -= m

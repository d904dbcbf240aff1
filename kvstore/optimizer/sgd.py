"""Stochastic gradient descent: SGD and NAG.

In the formulas of this package g is ``rescale_grad * gradient``, clip(x) limits x to [-clip_gradient, clip_gradient],
and lr and wd include the key's multipliers and the schedule.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["NAG", "SGD", "ccSGD"]


class _Momentum(Elementwise):
    """Keeps ``mom``, unless momentum is 0."""

    def __init__(self, momentum: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum = number("momentum", momentum)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"mom": zeros(weight)} if self.momentum else {}

    def _descend(self, w: Array, g: Array, tmp: Array, at: Rates) -> None:
        """One step without momentum."""
        self._add_scaled(g, at.wd, w, tmp)
        g *= at.lr
        w -= g


@register
class SGD(_Momentum):
    """Stochastic gradient descent with momentum. lr 0.01::

        d = clip(g) + wd * w
        mom = momentum * mom - lr * d
        w += mom

    With momentum 0 there is no state. (As MXNet 1.x; Polyak, 1964.)
    """

    def __init__(self, momentum: float = 0.0, lazy_update: bool = True, **kwargs: Any) -> None:
        super().__init__(momentum, **kwargs)
        self.lazy_update = bool(lazy_update)

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        self._clip(g)
        if "mom" not in state:
            self._descend(w, g, tmp, at)
            return
        mom = state["mom"]
        self._add_scaled(g, at.wd, w, tmp)
        g *= at.lr
        mom *= self.momentum
        mom -= g
        w += mom


@register
class ccSGD(SGD):
    """SGD, by a name that MXNet keeps for old scripts."""


@register
class NAG(_Momentum):
    """Nesterov's accelerated gradient. lr 0.01::

        mom *= momentum
        w += momentum * mom - (momentum + 1) * lr * (clip(g) + wd * w)
        mom -= lr * (clip(g) + wd * w)    # the new w

    With momentum 0 it is SGD. (As MXNet 1.x, whose in-place kernel reads the new w; Nesterov, 1983.)
    """

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        self._clip(g)
        if "mom" not in state:
            self._descend(w, g, tmp, at)
            return
        mom = state["mom"]
        mom *= self.momentum
        np.multiply(w, at.wd, out=tmp)
        tmp += g
        tmp *= (self.momentum + 1) * at.lr
        w -= tmp
        self._add_scaled(w, self.momentum, mom, tmp)
        self._add_scaled(g, at.wd, w, tmp)
        g *= at.lr
        mom -= g

"""AdaGrad."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["AdaGrad"]


@register
class AdaGrad(Elementwise):
    """Rates from the sum of squared gradients (Duchi et al., 2011). lr 0.01::

        d = clip(g)
        history += d^2
        w -= lr * (d / sqrt(history + eps) + wd * w)

    As in MXNet 1.x, weight decay is not part of the history.
    """

    lazy_update = True

    def __init__(self, eps: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.eps = number("eps", eps)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"history": zeros(weight)}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        history = state["history"]
        self._clip(g)
        np.square(g, out=tmp)
        history += tmp
        np.add(history, self.eps, out=tmp)
        np.sqrt(tmp, out=tmp)
        g /= tmp
        self._add_scaled(g, at.wd, w, tmp)
        g *= at.lr
        w -= g

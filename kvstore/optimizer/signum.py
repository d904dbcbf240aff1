"""Signum, and signSGD."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["Signum"]


@register
class Signum(Elementwise):
    """Steps of equal size by the sign of the momentum (Bernstein et al., 2018). lr 0.01::

        d = clip(g) + wd * w
        mom = momentum * mom - (1 - momentum) * d
        w = (1 - lr * wd_lh) * w + lr * sign(mom)

    wd_lh is decoupled weight decay. With momentum 0 (signSGD) there is no state, and all decay is decoupled::

        w = (1 - lr * (wd + wd_lh)) * w - lr * sign(g)
    """

    def __init__(
        self, learning_rate: float | None = None, momentum: float = 0.9, wd_lh: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = number("momentum", momentum)
        self.wd_lh = number("wd_lh", wd_lh)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"mom": zeros(weight)} if self.momentum else {}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        if "mom" in state:
            mom = state["mom"]
            self._clip(g)
            self._add_scaled(g, at.wd, w, tmp)
            mom *= self.momentum
            self._add_scaled(mom, self.momentum - 1, g, tmp)
            np.sign(mom, out=g)
            w *= 1 - at.lr * self.wd_lh
            g *= at.lr
        else:
            np.sign(g, out=g)
            w *= 1 - at.lr * (at.wd + self.wd_lh)
            g *= -at.lr
        w += g

"""DCASGD."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array, widen
from kvstore.bfloat16 import bfloat16
from pslite.dtypes import BFLOAT16

from .base import Key, State, Weight, register
from .elementwise import Elementwise, Rates, zeros

__all__ = ["DCASGD"]


@register
class DCASGD(Elementwise):
    """Asynchronous SGD that makes up for the delay of a gradient (Zheng et al., 2017). lr 0.01::

        d = clip(g)
        mom = momentum * mom - lr * (d + wd * w + lamda * d^2 * (w - previous))
        previous = w
        w += mom

    ``previous`` is the weight that the pushing worker's gradient was for, nearly: what its last push found. There is
    one for each worker, as in the paper (MXNet has one for all). With momentum 0 there is no ``mom``.
    """

    worker_slots: ClassVar[tuple[str, ...]] = ("previous",)

    def __init__(self, momentum: float = 0.0, lamda: float = 0.04, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum = number("momentum", momentum)
        self.lamda = number("lamda", lamda)

    def create_state(self, key: Key, weight: Weight) -> State:
        previous = widen(weight.bits, BFLOAT16) if isinstance(weight, bfloat16) else weight.copy()
        return {"mom": zeros(weight), "previous": previous} if self.momentum else {"previous": previous}

    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        previous = state["previous"]
        self._clip(g)
        np.subtract(w, previous, out=tmp)
        tmp *= g
        tmp *= self.lamda
        tmp += 1
        g *= tmp  # d + lamda * d^2 * (w - previous)
        self._add_scaled(g, at.wd, w, tmp)
        g *= -at.lr
        if "mom" in state:
            mom = state["mom"]
            mom *= self.momentum
            mom += g
            g = mom
        previous[...] = w
        w += g

"""GroupAdaGrad."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array
from pslite.errors import ConfigError

from .base import Key, Rates, State, Weight, register
from .layerwise import LayerWise, per_row

__all__ = ["GroupAdaGrad"]


@register
class GroupAdaGrad(LayerWise):
    """AdaGrad with one rate for each row, for embeddings (Duchi et al., 2011; MXNet's contrib). lr 0.01::

        d = clip(g)
        history[row] += mean of d[row]^2
        w -= lr * d / sqrt(history + eps)

    A row is ``w[i]``, in any number of dimensions. There is no weight decay: an update with wd is a ConfigError.
    """

    lazy_update = True

    def __init__(self, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.eps = number("eps", eps)

    def create_state(self, key: Key, weight: Weight) -> State:
        return {"history": per_row(weight)}

    def step(self, key: Key, w: Array, g: Array, state: State, at: Rates) -> None:
        if at.wd != 0:
            raise ConfigError(name="wd", value=at.wd, allowed="GroupAdaGrad has no weight decay; set wd=0")
        history = state["history"]
        self._rescale_and_clip(g)
        rows, length = len(g), math.prod(g.shape[1:])
        squares = np.square(g).reshape(rows, length)
        history += (squares.sum(axis=1) / max(length, 1)).reshape(history.shape)
        g *= at.lr
        g /= np.sqrt(history + self.eps)
        w -= g

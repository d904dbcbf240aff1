"""The driver of optimizers that need whole arrays, because of their norms, rows or random numbers."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np

from kvstore.arrays import BLOCK, Array, narrow, widen
from kvstore.bfloat16 import bfloat16
from pslite.dtypes import code_of

from .base import Key, Optimizer, Rates, State, Weight
from .elementwise import storage

__all__ = ["LayerWise", "norm", "per_row"]


class LayerWise(Optimizer):
    """An optimizer whose subclasses define ``step``, on whole arrays. Keys are not split over servers.

    float16 and bfloat16 weights, and float16 slots, are computed in float32 and rounded at the end of the update.
    Infinities and NaNs show in the weights, not as warnings.
    """

    @abstractmethod
    def step(self, key: Key, w: Array, g: Array, state: State, at: Rates) -> None:
        """Updates ``w`` and the arrays of ``state`` in place.

        w, g: float32 or float64, of the weight's shape, or (1,) for a weight without dimensions. ``g`` is a copy of
        the gradient as it was pushed, before rescale_grad; it is scratch.
        """

    def update(self, key: Key, weight: Weight, grad: Weight, state: State, count: int) -> None:
        """Raises DTypeError unless weight is of a real dtype, ShapeError unless grad is of its shape."""
        data, code, grads, grad_code = storage(key, weight, grad)
        at = self._rates(key, count)
        data = np.atleast_1d(data)
        w = widen(data, code)
        slots = {name: np.atleast_1d(slot) for name, slot in state.items()}
        wides = {name: widen(slot, code_of(slot.dtype)) for name, slot in slots.items()}
        with np.errstate(all="ignore"):
            g = np.array(widen(np.atleast_1d(grads), grad_code), w.dtype, order="C")
            self.step(key, w, g, wides, at)
            narrow(w, data, code)
            for name, slot in slots.items():
                narrow(wides[name], slot, code_of(slot.dtype))

    def _rescale_and_clip(self, g: Array) -> None:
        g *= float(self.rescale_grad)
        self._clip(g)


def norm(x: Array) -> float:
    """The L2 norm, summed in float64 and in a fixed order: the same input gives the same bits."""
    flat, total = x.reshape(-1), 0.0
    for low in range(0, flat.size, BLOCK):
        total += float(np.square(flat[low : low + BLOCK], dtype=np.float64).sum())
    return math.sqrt(total)


def per_row(weight: Weight) -> Array:
    """A slot with a zero for each row of a weight, in as many dimensions: (rows, 1, ...). float64 for float64."""
    rows = weight.shape[:1] + (1,) * (len(weight.shape) - 1)
    wide = not isinstance(weight, bfloat16) and weight.dtype == np.float64
    return np.zeros(rows, np.float64 if wide else np.float32)

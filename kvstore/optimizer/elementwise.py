"""The driver of optimizers that treat each element alone: blocks that stay in the cache, and precision."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from kvstore.arrays import BLOCK, Array, narrow, widen
from kvstore.bfloat16 import bfloat16
from pslite.dtypes import BFLOAT16, CODES, code_of
from pslite.errors import DTypeError, ShapeError

from .base import Key, Optimizer, Rates, State, Weight

__all__ = ["Elementwise", "Rates", "storage", "zeros"]

_REALS = ("float16", "bfloat16", "float32", "float64")
_CODES = tuple(CODES[name] for name in _REALS)


def zeros(weight: Weight) -> Array:
    """A slot of zeros for a weight: of its shape and dtype, float32 for bfloat16."""
    return np.zeros(weight.shape, np.float32 if isinstance(weight, bfloat16) else weight.dtype)


class Elementwise(Optimizer):
    """An optimizer whose subclasses define ``step``, on one block of a few arrays at a time.

    float16 and bfloat16 weights, and float16 slots, are computed in float32 and rounded at the end of the update.
    Infinities and NaNs show in the weights, not as warnings.
    """

    elementwise: ClassVar[bool] = True

    @abstractmethod
    def step(self, w: Array, g: Array, tmp: Array, state: State, at: Rates) -> None:
        """Updates ``w`` and the arrays of ``state`` in place.

        w, g, tmp, state[...]: 1-D, of one length, float32 or float64. ``g`` is the gradient after rescale_grad;
        it and ``tmp`` (arbitrary contents) are scratch.
        """

    def update(self, key: Key, weight: Weight, grad: Weight, state: State, count: int) -> None:
        """Raises DTypeError unless weight is of a real dtype, ShapeError unless grad is of its shape."""
        data, code, grads, grad_code = storage(key, weight, grad)
        at = self._rates(key, count)
        rescale = float(self.rescale_grad)
        w, g = data.reshape(-1), grads.reshape(-1)
        slots = {name: (slot.reshape(-1), code_of(slot.dtype)) for name, slot in state.items()}
        scratch = np.empty((2, min(w.size, BLOCK)), np.float64 if code == CODES["float64"] else np.float32)
        with np.errstate(all="ignore"):
            for low in range(0, w.size, BLOCK):
                block = slice(low, low + BLOCK)
                wide = widen(w[block], code)
                wides = {name: widen(slot[block], slot_code) for name, (slot, slot_code) in slots.items()}
                rescaled, tmp = scratch[:, : wide.size]
                np.multiply(widen(g[block], grad_code), rescale, out=rescaled, casting="same_kind")
                self.step(wide, rescaled, tmp, wides, at)
                narrow(wide, w[block], code)
                for name, (slot, slot_code) in slots.items():
                    narrow(wides[name], slot[block], slot_code)
        if not data.flags.c_contiguous:  # then w was a copy
            data[...] = w.reshape(data.shape)

    @staticmethod
    def _add_scaled(total: Array, scale: float, term: Array, tmp: Array) -> None:
        """``total += scale * term``, in place; ``tmp`` is scratch."""
        if scale != 0:
            np.multiply(term, scale, out=tmp)
            total += tmp


def storage(key: Key, weight: Weight, grad: Weight) -> tuple[Array, int, Array, int]:
    """The numpy arrays of a weight and its gradient, each with its code.

    Raises DTypeError unless both are real, ShapeError unless they are of one shape.
    """
    if weight.shape != grad.shape:
        raise ShapeError(key=str(key), got=list(grad.shape), expected=list(weight.shape))
    return *_storage(key, weight), *_storage(key, grad)


def _storage(key: Key, array: Weight) -> tuple[Array, int]:
    if isinstance(array, bfloat16):
        return array.bits, BFLOAT16
    code = code_of(array.dtype, key)
    if code not in _CODES:
        raise DTypeError(key=str(key), got=str(array.dtype), expected=", ".join(_REALS) + ", as optimizers need")
    return array, code

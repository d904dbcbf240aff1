"""The driver of optimizers that treat each element alone: blocks that stay in the cache, and precision."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from kvstore.arrays import BLOCK, LOW_PRECISION, Array, narrow, widen
from kvstore.bfloat16 import bfloat16
from kvstore.rows import Rows, RowSum, gather, scatter
from kvstore.sums import Sum
from pslite.dtypes import BFLOAT16, CODES, NAMES, code_of
from pslite.errors import DTypeError, ShapeError

from .base import Key, Optimizer, Rates, State, Weight

__all__ = ["Elementwise", "Rates", "storage", "zeros"]

_REALS = ("float16", "bfloat16", "float32", "float64")
_CODES = tuple(CODES[name] for name in _REALS)
_FLOAT32, _FLOAT64 = CODES["float32"], CODES["float64"]


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
        w = np.ascontiguousarray(data)
        self._move(w, w, code, Sum([np.asarray(grads)], grad_code), state, self._rates(key, count))
        if w is not data:
            data[...] = w.reshape(data.shape)

    def move(self, key: Key, old: Array, new: Array, code: int, received: Sum, state: State, count: int) -> None:
        """``new`` becomes what ``update_multi_precision`` makes of ``old``, maybe the same array: one pass over memory.

        old, new: C-contiguous, of the storage dtype of ``code``. Raises DTypeError unless that is a real dtype.
        """
        _check_real(key, code)
        self._move(old, new, code, received, state, self._rates(key, count))

    def move_rows(self, key: Key, table: Array, code: int, received: RowSum, state: State, count: int) -> None:
        """Updates the rows that were received, of ``table`` (as ``new`` is) and of the slots, a block at a time."""
        _check_real(key, code)
        at = self._rates(key, count)
        for ids, total in received.blocks():
            part = gather(table, ids)
            slots = {name: gather(slot, ids) for name, slot in state.items()}
            self._move(part, part, code, total, slots, at)
            scatter(Rows(ids, part), table)
            for name, slot in slots.items():
                scatter(Rows(ids, slot), state[name])

    def _move(self, old: Array, new: Array, code: int, received: Sum, state: State, at: Rates) -> None:
        rescale = float(self.rescale_grad)
        before, after = old.reshape(-1), new.reshape(-1)
        slots = {name: slot.reshape(-1) for name, slot in state.items()}
        master = slots.pop("master", None)
        narrows = code in LOW_PRECISION
        scratch = np.empty((2, min(after.size, BLOCK)), np.float64 if code == _FLOAT64 else np.float32)
        with np.errstate(all="ignore"):
            for low in range(0, after.size, BLOCK):
                high = min(low + BLOCK, after.size)
                g, tmp = scratch[:, : high - low]
                received.block(low, rescale, g)
                w = after[low:high]
                if master is not None:
                    w = master[low:high]
                elif narrows:
                    w = widen(before[low:high], code)
                elif new is not old:
                    np.copyto(w, before[low:high])
                self._step(w, g, tmp, {name: slot[low:high] for name, slot in slots.items()}, at)
                if narrows:
                    narrow(w, after[low:high], code)

    def _step(self, w: Array, g: Array, tmp: Array, slots: State, at: Rates) -> None:
        """``step``, with float16 slots in float32."""
        halves = [name for name, slot in slots.items() if slot.dtype == np.float16]
        if not halves:
            self.step(w, g, tmp, slots, at)
            return
        wides = slots | {name: slots[name].astype(np.float32) for name in halves}
        self.step(w, g, tmp, wides, at)
        for name in halves:
            slots[name][...] = wides[name]

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


def _check_real(key: Key, code: int) -> None:
    """Raises DTypeError unless an optimizer can compute with this dtype."""
    if code not in _CODES:
        raise DTypeError(key=str(key), got=NAMES[code], expected=", ".join(_REALS) + ", as optimizers need")


def _storage(key: Key, array: Weight) -> tuple[Array, int]:
    if isinstance(array, bfloat16):
        return array.bits, BFLOAT16
    code = code_of(array.dtype, key)
    _check_real(key, code)
    return array, code

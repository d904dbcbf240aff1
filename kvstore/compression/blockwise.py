"""The driver of codecs that code short stretches of an array alone: one pass over memory, in cached blocks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kvstore.arrays import BLOCK, Array
from kvstore.sums import Deferred

from .base import Codec, check, drop_nonfinite

__all__ = ["Blockwise", "Layout", "unpack"]

Layout = list[tuple[np.dtype[Any], int]]


class Blockwise(Codec):
    """A codec whose arrays are, one after the other, those of stretches of ``unit`` elements."""

    unit: int = 32

    @abstractmethod
    def layout(self, size: int) -> Layout:
        """Dtype and length of each array of the code of ``size`` elements; additive over multiples of ``unit``."""

    @abstractmethod
    def encode_block(self, values: Array, code: Sequence[Array], salt: int) -> None:
        """Writes the code of ``values`` (not changed) into ``code``, which is all zeros; numpy's warnings are off."""

    @abstractmethod
    def decode_block(self, code: Sequence[Array], out: Array) -> None:
        """Writes what ``code`` stands for into ``out``; numpy's warnings are off."""

    def round_trip(self, values: Array, code: Sequence[Array], salt: int, out: Array) -> None:
        """``encode_block``, and into ``out`` what ``decode_block`` makes of it. Overridden for speed only."""
        self.encode_block(values, code, salt)
        self.decode_block(code, out)

    def encode(self, values: Array, salt: int) -> list[Array]:
        code = self._zeros(values.size)
        with np.errstate(all="ignore"):
            for low, high, part in self._blocks(code, values.size):
                self.encode_block(values[low:high], part, salt + low)
        return code

    def decode(self, code: Sequence[Array], size: int, salt: int) -> Array:
        check(self, code, self.layout(size))
        out = np.empty(size, np.float32)
        with np.errstate(all="ignore"):
            for low, high, part in self._blocks(code, size):
                self.decode_block(part, out[low:high])
        return out

    def deferred(self, code: Sequence[Array], shape: tuple[int, ...], salt: int) -> Array | Deferred:
        if not self.trusted or BLOCK % self.unit:
            return super().deferred(code, shape, salt)
        check(self, code, self.layout(math.prod(shape)))
        return _Deferred(self, code, shape)

    def part(self, code: Sequence[Array], low: int, high: int) -> list[Array]:
        """The code of the elements from ``low``, a multiple of ``unit``, to ``high``."""
        ends = zip(self.layout(low), self.layout(high), strict=True)
        return [array[a:b] for array, ((_, a), (_, b)) in zip(code, ends, strict=True)]

    def feed(self, residual: Array, grad: Array, salt: int) -> list[Array]:
        code = self._zeros(residual.size)
        scratch = np.empty(min(residual.size, self._step()), np.float32)
        with np.errstate(all="ignore"):
            for low, high, part in self._blocks(code, residual.size):
                rest, emitted = residual[low:high], scratch[: high - low]
                rest += grad[low:high]
                self.round_trip(rest, part, salt + low, emitted)
                rest -= emitted
                drop_nonfinite(rest)
        return code

    def _zeros(self, size: int) -> list[Array]:
        return [np.zeros(length, dtype) for dtype, length in self.layout(size)]

    def _step(self) -> int:
        return max(1, BLOCK // self.unit) * self.unit

    def _blocks(self, code: Sequence[Array], size: int) -> Iterator[tuple[int, int, list[Array]]]:
        """(first, end, the code's part) of each block."""
        for low in range(0, size, self._step()):
            high = min(low + self._step(), size)
            yield low, high, self.part(code, low, high)


class _Deferred:
    """What a code stands for: decoded where it is added, it is never in memory whole."""

    def __init__(self, codec: Blockwise, code: Sequence[Array], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self._codec = codec
        self._code = code

    def block(self, low: int, out: Array) -> None:
        self._codec.decode_block(self._codec.part(self._code, low, low + out.size), out)


def unpack(table: Array, code: Array, out: Array) -> None:
    """Writes the row of ``table`` (256, n) for each byte of ``code`` into ``out``, which may end within a row."""
    per_byte = table.shape[1]
    whole = out.size // per_byte
    rows = out[: whole * per_byte].reshape(whole, per_byte)
    np.take(table, code[:whole], axis=0, out=rows, mode="clip")  # "raise" would go by a buffer; a byte is in range
    rest = out.size - whole * per_byte
    if rest:
        out[-rest:] = table[code[whole], :rest]

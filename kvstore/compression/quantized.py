"""A few levels for each element, and a float32 scale for each block of elements."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import integer
from kvstore.arrays import Array
from pslite.errors import ConfigError

from .base import register
from .blockwise import Blockwise, Layout, unpack

__all__ = ["QSGD", "Int4", "Int8", "Quantized", "TernGrad"]

_TINY = np.float32(np.finfo(np.float32).tiny)  # below it a scale is too coarse to divide by


class Quantized(Blockwise):
    """Value = scale of the block * level, a whole number within +-``limit``.

    The code is the scales (float32) and the levels: int8 for 8 ``bits``; for 4 or 2 bits the numbers ``level + limit``
    in bytes, the first element in the most significant bits. A block with NaN or infinity arrives as NaN.
    """

    def __init__(self, block: int, limit: int, bits: int) -> None:
        self.block = integer("block", block, 1)
        self._limit, self._per_byte = limit, 8 // bits
        self.unit = self.block * self._per_byte
        self._shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
        digits = (np.arange(256, dtype=np.uint8)[:, None] >> self._shifts) & (2**bits - 1)
        self._table = digits.astype(np.float32) - limit

    @abstractmethod
    def quantize(self, rows: Array, largest: Array, salt: int) -> tuple[Array, Array]:
        """The scale of each row of ``rows`` (n, block) and its levels, new float32 arrays.

        largest: (n,), the greatest absolute values, all finite. Scales must be finite and not below 0.
        """

    def layout(self, size: int) -> Layout:
        levels = np.int8 if self._per_byte == 1 else np.uint8
        return [(np.dtype(np.float32), -(-size // self.block)), (np.dtype(levels), -(-size // self._per_byte))]

    def encode_block(self, values: Array, code: Sequence[Array], salt: int) -> None:
        levels = np.empty(values.size, np.float32)
        first = 0
        for part, rows in zip(self._rows(levels), self._rows(values), strict=True):
            largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
            finite = np.isfinite(largest)
            if not finite.all():
                rows, largest = np.where(finite[:, None], rows, 0), np.where(finite, largest, 0)
            scales, part[...] = self.quantize(rows, largest, salt + first)
            code[0][first : first + len(rows)] = np.where(finite, scales, np.nan)
            first += len(rows)
        self._pack(levels, code[1])

    def decode_block(self, code: Sequence[Array], out: Array) -> None:
        if self._per_byte == 1:
            out[...] = code[1]
        else:
            unpack(self._table, code[1], out)
        first = 0
        for rows in self._rows(out):
            rows *= code[0][first : first + len(rows), None]
            first += len(rows)

    def _pack(self, levels: Array, out: Array) -> None:
        if self._per_byte == 1:
            out[...] = levels
            return
        digits = np.zeros(out.size * self._per_byte, np.uint8)
        np.add(levels, self._limit, out=digits[: levels.size], casting="unsafe")
        for shift, column in zip(self._shifts, digits.reshape(-1, self._per_byte).T, strict=True):
            out |= column << shift

    def _rows(self, array: Array) -> list[Array]:
        """Views of the whole blocks (n, block), and of the shorter last one (1, rest)."""
        whole = array.size - array.size % self.block
        parts = [array[:whole].reshape(-1, self.block), array[whole:].reshape(1, -1)]
        return [part for part in parts if part.size]


class _Rounded(Quantized):
    """Levels to nearest, ties to even; the largest element of a block has the highest level."""

    pulls: ClassVar[bool] = True

    def quantize(self, rows: Array, largest: Array, salt: int) -> tuple[Array, Array]:
        scales = _scales(largest, self._limit)
        levels = rows / _divisors(scales)
        return scales, np.rint(levels, out=levels)


@register("int8")
class Int8(_Rounded):
    """-127 to 127 times a scale for each ``block`` of elements (block-wise quantization, Dettmers et al. 2022)."""

    def __init__(self, block: int = 256) -> None:
        super().__init__(block, limit=127, bits=8)


@register("int4")
class Int4(_Rounded):
    """-7 to 7 times a scale for each ``block`` of elements, two elements in a byte."""

    def __init__(self, block: int = 256) -> None:
        super().__init__(block, limit=7, bits=4)


class _Stochastic(Quantized):
    """Levels are rounded up or down at random, up with the probability that makes them right on average.

    The papers use the largest element for the scale, too, so that the values are right on average. With error feedback
    the sum over pushes is right anyway, but the error must be smaller than what was coded, or residuals outgrow the
    gradients. So the scale is the one with the least squared error for the levels that were drawn (the rescaled
    estimators of Koloskova et al. 2019).
    """

    def __init__(self, block: int, limit: int, bits: int, seed: int) -> None:
        super().__init__(block, limit, bits)
        self.seed = integer("seed", seed)

    def quantize(self, rows: Array, largest: Array, salt: int) -> tuple[Array, Array]:
        steps = self._steps(rows, largest)
        exact = rows / _divisors(steps)
        levels = _uniform(salt, rows.size).reshape(rows.shape)
        levels += exact
        np.floor(levels, out=levels)
        np.clip(levels, -self._limit, self._limit, out=levels)
        squares = np.einsum("ij,ij->i", levels, levels)
        fit = np.einsum("ij,ij->i", exact, levels) / np.maximum(squares, 1)
        return np.minimum(steps * np.maximum(fit, 0), _scales(_MAX, self._limit)), levels

    def _steps(self, rows: Array, largest: Array) -> Array:
        return _scales(largest, self._limit)


@register("terngrad")
class TernGrad(_Stochastic):
    """-1, 0 or 1 times a scale for each ``block`` of elements (Wen et al. 2017), four elements in a byte.

    An element becomes +-1 with the probability ``|element| / bound``; the bound is the largest element, and at most 2.5
    root mean squares. The paper has one scale for each layer, and the standard deviation.
    """

    def __init__(self, block: int = 256, seed: int = 0) -> None:
        super().__init__(block, limit=1, bits=2, seed=seed)

    def _steps(self, rows: Array, largest: Array) -> Array:
        steps = _scales(largest, self._limit)
        relative = rows / _divisors(steps)  # squares of the elements themselves might overflow
        mean_square = np.einsum("ij,ij->i", relative, relative) / np.float32(rows.shape[1])
        bounds: Array = np.minimum(steps, steps * np.float32(2.5) * np.sqrt(mean_square))
        return bounds


@register("qsgd")
class QSGD(_Stochastic):
    """-levels to levels times a scale for each ``block`` of elements (Alistarh et al. 2017, with the largest element as
    norm): 2 bits for 1 level, 4 for up to 7, 8 for up to 127."""

    def __init__(self, levels: int = 7, block: int = 256, seed: int = 0) -> None:
        self.levels = integer("levels", levels, 1)
        if self.levels > 127:
            raise ConfigError(name="levels", value=self.levels, allowed="give an integer from 1 to 127")
        super().__init__(block, self.levels, 2 if self.levels == 1 else 4 if self.levels <= 7 else 8, seed)


_MAX = np.array(np.finfo(np.float32).max)


def _scales(largest: Array, limit: int) -> Array:
    """largest / limit, such that scale * limit does not overflow; 0 if there is no normal number for it."""
    scales: Array = np.minimum(largest / np.float32(limit), np.nextafter(_MAX / np.float32(limit), np.float32(0)))
    return np.where(scales < _TINY, np.float32(0), scales)


def _divisors(scales: Array) -> Array:
    """The scales as a column; 1 for a scale of 0, whose elements are all as good as 0."""
    return np.where(scales > 0, scales, np.float32(1))[:, None]


def _uniform(salt: int, size: int) -> Array:
    """``size`` float32 numbers between 0 and 1, 16 bits of each at random."""
    words: Any = np.random.SFC64(salt).random_raw(-(-size // 4))
    numbers: Array = words.view(np.uint16)[:size].astype(np.float32)
    numbers *= np.float32(2**-16)
    numbers += np.float32(2**-17)
    return numbers

"""MXNet's codecs: one or two bits for each element, by comparison with a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from kvstore.arguments import number
from kvstore.arrays import Array
from pslite.errors import ConfigError

from .base import register
from .blockwise import Blockwise, Layout, unpack

__all__ = ["OneBit", "TwoBit"]

_BYTES = np.arange(256, dtype=np.uint8)
_BITS = np.unpackbits(_BYTES[:, None], axis=1)  # (256, 8), most significant first
# A little-endian word with a 2-bit code in each byte, times this: in the highest byte the codes follow one another.
_GATHER = np.uint32(2**30 + 2**20 + 2**10 + 1)


def _finite(value: object, least: float, allowed: str) -> float:
    """``value`` as a float that float32 holds, too, and that is above ``least`` there."""
    threshold = number("threshold", value)
    with np.errstate(over="ignore", under="ignore"):
        narrow = float(np.float32(threshold))
    if not (math.isfinite(narrow) and narrow > least):
        raise ConfigError(name="threshold", value=threshold, allowed=allowed)
    return threshold


@register("1bit")
class OneBit(Blockwise):
    """A set bit is +1, a clear one -1: set where the residual is greater than ``threshold`` (MXNet 2.0's '1bit').

    The code is 4-byte words, ``ceil(size / 32)``, as bytes; the first element is the most significant bit of the
    first byte, unused bits are 0. NaN is not greater. A zero gradient emits, too: give it a small learning rate.
    """

    elementwise: ClassVar[bool] = True
    _signs: ClassVar[Array] = _BITS.astype(np.float32) * 2 - 1

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = _finite(threshold, -math.inf, "give a finite number")

    def layout(self, size: int) -> Layout:
        return [(np.dtype(np.uint8), -(-size // 32) * 4)]

    def encode_block(self, values: Array, code: Sequence[Array], salt: int) -> None:
        bits = np.packbits(values > np.float32(self.threshold))
        code[0][: bits.size] = bits

    def decode_block(self, code: Sequence[Array], out: Array) -> None:
        unpack(self._signs, code[0], out)


@register("2bit")
class TwoBit(Blockwise):
    """+threshold where the residual is at least that, -threshold where it is at most that, else 0 (MXNet's '2bit').

    The code is 4-byte words, ``ceil(size / 16)``, as bytes; the first element is in the most significant bits of the
    first byte, unused bits are 0. 11 is +threshold, 10 is -threshold, 00 and 01 are 0. NaN is 0.
    """

    elementwise: ClassVar[bool] = True

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = _finite(threshold, 0.0, "give a finite number greater than 0 (in float32)")
        values = np.array([0, 0, -self.threshold, self.threshold], np.float32)
        self._table = values[(_BYTES[:, None] >> np.array([6, 4, 2, 0], np.uint8)) & 3]

    def layout(self, size: int) -> Layout:
        return [(np.dtype(np.uint8), -(-size // 16) * 4)]

    def encode_block(self, values: Array, code: Sequence[Array], salt: int) -> None:
        self._pack(*self._compare(values), code[0])

    def round_trip(self, values: Array, code: Sequence[Array], salt: int, out: Array) -> None:
        above, below = self._compare(values)
        self._pack(above, below, code[0])
        out[...] = np.subtract(above, below, dtype=np.int8)
        out *= np.float32(self.threshold)

    def _compare(self, values: Array) -> tuple[Array, Array]:
        """1 where the value is at least the threshold, and where it is at most minus the threshold."""
        threshold = np.float32(self.threshold)
        return (values >= threshold).view(np.int8), (values <= -threshold).view(np.int8)

    @staticmethod
    def _pack(above: Array, below: Array, code: Array) -> None:
        pairs = np.empty(code.size * 4, np.int8)
        own = pairs[: above.size]
        np.add(above, below, out=own)  # never both
        own += own
        own += above
        pairs[above.size :] = 0
        words = pairs.view("<u4")
        words *= _GATHER
        words >>= 24
        code[...] = words

    def decode_block(self, code: Sequence[Array], out: Array) -> None:
        unpack(self._table, code[0], out)

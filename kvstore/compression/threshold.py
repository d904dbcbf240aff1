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
_PAIRS = np.packbits(np.repeat(_BITS, 2, axis=1), axis=1)  # (256, 2): each bit doubled
# For a byte of eight bits the two bytes of eight 2-bit codes; as uint16, for "or" does not mind the order of bytes.
_POSITIVE = np.ascontiguousarray(_PAIRS).view(np.uint16).ravel()  # 11
_NEGATIVE = np.ascontiguousarray(_PAIRS & 0b10101010).view(np.uint16).ravel()  # 10


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
        threshold = np.float32(self.threshold)
        pairs = np.take(_POSITIVE, np.packbits(values >= threshold), mode="clip")  # a byte is in range
        pairs |= np.take(_NEGATIVE, np.packbits(values <= -threshold), mode="clip")
        code[0][: pairs.nbytes] = pairs.view(np.uint8)

    def decode_block(self, code: Sequence[Array], out: Array) -> None:
        unpack(self._table, code[0], out)

"""Sixteen bits for each element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from kvstore.arrays import Array
from kvstore.bfloat16 import from_float32, to_float32

from .base import register
from .blockwise import Blockwise, Layout

__all__ = ["BFloat16", "Float16"]

_LARGEST = np.float16(65504)
_INFINITE = 0x7F80  # bfloat16's bits, without the sign


@register("fp16", "float16")
class Float16(Blockwise):
    """IEEE half precision, to nearest even. Finite numbers stay finite, within +-65504; NaN and infinity pass."""

    elementwise: ClassVar[bool] = True
    pulls: ClassVar[bool] = True

    def layout(self, size: int) -> Layout:
        return [(np.dtype(np.float16), size)]

    def encode_block(self, values: Array, code: Sequence[Array], salt: int) -> None:
        halves = code[0]
        halves[...] = values
        if not np.abs(values).max() <= _LARGEST:  # NaN, too
            overflown = np.isinf(halves) & np.isfinite(values)
            halves[overflown] = np.copysign(_LARGEST, values[overflown])

    def decode_block(self, code: Sequence[Array], out: Array) -> None:
        out[...] = code[0]


@register("bf16", "bfloat16")
class BFloat16(Blockwise):
    """The upper half of a float32, to nearest even, as uint16. Finite numbers stay finite; NaN and infinity pass."""

    elementwise: ClassVar[bool] = True
    pulls: ClassVar[bool] = True

    def layout(self, size: int) -> Layout:
        return [(np.dtype(np.uint16), size)]

    def encode_block(self, values: Array, code: Sequence[Array], salt: int) -> None:
        bits = from_float32(values)
        infinite = (bits & 0x7FFF) == _INFINITE
        if infinite.any():
            bits[infinite & np.isfinite(values)] -= 1
        code[0][...] = bits

    def decode_block(self, code: Sequence[Array], out: Array) -> None:
        out[...] = to_float32(code[0])

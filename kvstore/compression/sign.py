"""One bit for each element and one scale for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvstore.arrays import BLOCK, Array

from .base import Codec, check, register
from .blockwise import unpack

__all__ = ["Sign"]

_SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1


@register("sign", "onebit")
class Sign(Codec):
    """Signs times the mean absolute value (1-bit SGD, Seide et al. 2014; EF-SignSGD, Karimireddy et al. 2019).

    The code is the mean (float32) and a bit for each element, eight in a byte, the first one most significant: set
    for elements of at least 0. NaN or infinity makes the mean, and so the whole array, NaN or infinite.
    """

    def encode(self, values: Array, salt: int) -> list[Array]:
        bits = np.empty(-(-values.size // 8), np.uint8)
        total = 0.0
        with np.errstate(all="ignore"):
            for low in range(0, values.size, BLOCK):
                block = values[low : low + BLOCK]
                total += float(np.abs(block).sum(dtype=np.float64))
                bits[low // 8 : -(-(low + block.size) // 8)] = np.packbits(block >= 0)
            return [np.array([total / max(1, values.size)]).astype(np.float32), bits]

    def decode(self, code: Sequence[Array], size: int, salt: int) -> Array:
        check(self, code, [(np.dtype(np.float32), 1), (np.dtype(np.uint8), -(-size // 8))])
        out = np.empty(size, np.float32)
        with np.errstate(invalid="ignore"):  # a signalling NaN may come from the network
            table = _SIGNS * code[0]
        for low in range(0, size, BLOCK):
            unpack(table, code[1][low // 8 : (low + BLOCK) // 8], out[low : low + BLOCK])
        return out

"""Error feedback: what a code leaves out is added to the next gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvstore.arrays import Array

from .base import Codec

__all__ = ["Feedback"]


class Feedback:
    """The residual of one stream of gradients: of a key on a worker, or of a key on one device.

    What all codes so far decode to, plus ``residual``, is the sum of all gradients, up to the rounding of float32
    (Seide et al. 2014; Karimireddy et al. 2019). NaN and infinity are not kept: such an element starts again at 0.
    Not thread-safe: the owner's lock covers it.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.residual: Array = np.zeros(shape, np.float32)

    def encode(self, codec: Codec, grad: Array, cuts: Sequence[tuple[int, int]] | None, salt: int) -> list[list[Array]]:
        """One code for each piece of ``grad`` (float32, of the residual's shape).

        cuts: rows ``first`` to ``end`` of each piece along the first dimension, or None for the whole; several only
        if the codec is elementwise.
        """
        assert grad.dtype == np.float32 and grad.shape == self.residual.shape
        assert codec.elementwise or cuts is None or len(cuts) == 1, "its code needs the whole array"
        residual, flat = self.residual.reshape(-1), grad.reshape(-1)
        if cuts is None:
            return [codec.feed(residual, flat, salt)]
        row = grad.size // max(1, grad.shape[0])
        pieces = [slice(first * row, end * row) for first, end in cuts]
        return [codec.feed(residual[piece], flat[piece], salt) for piece in pieces]

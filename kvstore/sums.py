"""The sum of what workers pushed, which is taken where it is needed: whole, or a block at a time in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pslite.dtypes import storage

from .arrays import LOW_PRECISION, Array, accumulate, add_up, narrow, widen

__all__ = ["Sum"]


class Sum:
    """The sum of one or more arrays of one shape and dtype, with the bits of ``accumulate``; it keeps the arrays only.

    ``wide``: float16 and bfloat16 are not rounded, the sum is float32.
    """

    __slots__ = ("_flat", "_rounds", "arrays", "code", "wide")

    def __init__(self, arrays: Sequence[Array], code: int, wide: bool = False) -> None:
        self.arrays = arrays
        self.code = code
        self.wide = wide
        self._rounds = code in LOW_PRECISION and not wide and len(arrays) > 1
        self._flat = [array.reshape(-1) for array in arrays]

    def whole(self) -> Array:
        """The sum in a new array."""
        return accumulate(self.arrays, self.code, wide=self.wide)

    def view(self) -> Array:
        """The sum, to be read only: what was pushed itself if it is all there is."""
        alone = len(self.arrays) == 1 and not (self.wide and self.code in LOW_PRECISION)
        return self.arrays[0] if alone else self.whole()

    def into(self, out: Array) -> None:
        """Writes the sum into ``out``, of the storage dtype."""
        accumulate(self.arrays, self.code, out)

    def block(self, low: int, high: int, scale: float, out: Array) -> None:
        """Writes ``scale`` times the sum of the flattened elements from ``low`` to ``high`` into ``out``.

        ``out`` is float32 for float16 and bfloat16. numpy's warnings are the caller's affair.
        """
        terms = [flat[low:high] for flat in self._flat]
        if len(terms) == 1:
            term = widen(terms[0], self.code)
            if scale == 1:
                np.copyto(out, term, casting="same_kind")
            else:
                np.multiply(term, scale, out=out, casting="same_kind")
            return
        add_up(terms, self.code, out)
        if self._rounds:
            rounded = np.empty(out.shape, storage(self.code))
            narrow(out, rounded, self.code)
            out[...] = widen(rounded, self.code)
        if scale != 1:
            np.multiply(out, scale, out=out)

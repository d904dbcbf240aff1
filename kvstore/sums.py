"""The sum of what workers pushed, which is taken where it is needed: whole, or a block at a time in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from pslite.dtypes import storage

from .arrays import BLOCK, LOW_PRECISION, Array, accumulate, add_up, narrow, widen

__all__ = ["Deferred", "Sum"]


class Deferred(Protocol):
    """A float32 array that is made when it is needed, a block at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def block(self, low: int, out: Array) -> None:
        """Writes the flattened elements from ``low``, a multiple of BLOCK, into ``out``: BLOCK of them, or the rest."""


class Sum:
    """The sum of one or more arrays of one shape and dtype, with the bits of ``accumulate``; it keeps the arrays only.

    ``wide``: float16 and bfloat16 are not rounded, the sum is float32.
    """

    __slots__ = ("_arrays", "_code", "_flat", "_scratch", "_terms", "_wide")

    def __init__(self, terms: Sequence[Array | Deferred], code: int, wide: bool = False) -> None:
        self._code, self._wide = code, wide
        self._arrays = [term for term in terms if isinstance(term, np.ndarray)]
        self._terms = terms
        self._flat: list[Array | Deferred] = []  # the terms as ``block`` takes them, from its first call on
        self._scratch: Array | None = None  # for deferred terms but the first

    def whole(self) -> Array:
        """The sum in a new array."""
        if len(self._arrays) == len(self._terms):
            return accumulate(self._arrays, self._code, wide=self._wide)
        out = np.empty(self._terms[0].shape, storage(self._code))
        self.into(out)
        return out

    def view(self) -> Array:
        """The sum, to be read only: what was pushed itself if it is all there is."""
        alone = len(self._terms) == len(self._arrays) == 1 and not (self._wide and self._code in LOW_PRECISION)
        return self._arrays[0] if alone else self.whole()

    def into(self, out: Array) -> None:
        """Writes the sum into ``out``, of the storage dtype."""
        if len(self._arrays) == len(self._terms):
            accumulate(self._arrays, self._code, out)
            return
        flat = out.reshape(-1)
        with np.errstate(all="ignore"):
            for low in range(0, flat.size, BLOCK):
                self.block(low, 1, flat[low : low + BLOCK])

    def block(self, low: int, scale: float, out: Array) -> None:
        """Writes ``scale`` times the sum into ``out``: of the flattened elements from ``low``, a multiple of BLOCK, to
        ``low + BLOCK`` or the end.

        ``out`` is float32 for float16 and bfloat16. numpy's warnings are the caller's affair.
        """
        if len(self._terms) == 1:
            [term] = self._parts(low, out)
            if scale != 1:
                np.multiply(term, scale, out=out, casting="same_kind")
            elif term is not out:
                np.copyto(out, term, casting="same_kind")
            return
        add_up(self._parts(low, out), self._code, out)
        if self._code in LOW_PRECISION and not self._wide:
            rounded = np.empty(out.shape, storage(self._code))
            narrow(out, rounded, self._code)
            out[...] = widen(rounded, self._code)
        if scale != 1:
            np.multiply(out, scale, out=out)

    def _parts(self, low: int, out: Array) -> Iterator[Array]:
        """The block of each term, good until the next is asked for; that of a first deferred one is in ``out``."""
        if not self._flat:
            self._flat = [term.reshape(-1) if isinstance(term, np.ndarray) else term for term in self._terms]
        for index, term in enumerate(self._flat):
            if isinstance(term, np.ndarray):
                yield widen(term[low : low + out.size], self._code)
                continue
            if index and self._scratch is None:
                self._scratch = np.empty(BLOCK, np.float32)
            part = self._scratch[: out.size] if index and self._scratch is not None else out
            term.block(low, part)
            yield part

"""A small share of the elements, exactly; the others wait in the residual."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from kvstore.arguments import integer, number
from kvstore.arrays import BLOCK, Array
from pslite.errors import ConfigError, ProtocolError

from .base import Codec, check, drop_nonfinite, register

__all__ = ["RandomK", "Selection", "TopK"]

_SAMPLES = 1 << 14
_VALUES = np.dtype(np.float32)


class Selection(Codec):
    """Sends ``ratio`` of the elements, at least one; the last array of the code are their values, in float32."""

    def __init__(self, ratio: float) -> None:
        self.ratio = number("ratio", ratio)
        if not 0 < self.ratio <= 1:
            raise ConfigError(name="ratio", value=self.ratio, allowed="give a number above 0, at most 1")

    @abstractmethod
    def indices(self, code: Sequence[Array], size: int, salt: int) -> Array:
        """The ascending indices of what was sent; raises ProtocolError for a malformed code."""

    def decode(self, code: Sequence[Array], size: int, salt: int) -> Array:
        indices = self.indices(code, size, salt)
        out = np.zeros(size, np.float32)
        out[indices] = code[-1]
        return out

    def feed(self, residual: Array, grad: Array, salt: int) -> list[Array]:
        with np.errstate(all="ignore"):
            residual += grad
        code = self.encode(residual, salt)
        residual[self.indices(code, residual.size, salt)] = 0
        drop_nonfinite(residual)
        return code

    def _count(self, size: int) -> int:
        return min(size, max(1, round(self.ratio * size)))


@register("topk")
class TopK(Selection):
    """The elements with the largest absolute values; of equals the first ones (Aji and Heafield 2017).

    The code is indices, ascending, in uint32 (int64 above 2**32 elements), and values. NaN and infinity are largest.
    """

    def __init__(self, ratio: float = 0.01) -> None:
        super().__init__(ratio)

    def encode(self, values: Array, salt: int) -> list[Array]:
        indices = _largest(values, self._count(values.size))
        return [indices.astype(_index_dtype(values.size)), values[indices]]

    def indices(self, code: Sequence[Array], size: int, salt: int) -> Array:
        count = self._count(size)
        check(self, code, [(_index_dtype(size), count), (_VALUES, count)])
        indices: Array = code[0]
        ascending = bool((indices[1:] > indices[:-1]).all())
        if count and not (ascending and indices[0] >= 0 and indices[-1] < size):
            raise ProtocolError(f"malformed code of a TopK: indices must ascend, from 0 to below {size}")
        return indices


@register("randomk")
class RandomK(Selection):
    """One element at random of each of ``ratio * size`` equal stretches of the array (random-k of Stich et al. 2018).

    Only values are sent: both ends compute the indices from the salt, all workers the same in a round.
    """

    shared: ClassVar[bool] = True

    def __init__(self, ratio: float = 0.01, seed: int = 0) -> None:
        super().__init__(ratio)
        self.seed = integer("seed", seed)

    def encode(self, values: Array, salt: int) -> list[Array]:
        return [values[self._drawn(values.size, salt)]]

    def indices(self, code: Sequence[Array], size: int, salt: int) -> Array:
        check(self, code, [(_VALUES, self._count(size))])
        return self._drawn(size, salt)

    def _drawn(self, size: int, salt: int) -> Array:
        """The raw words of a generator are the same in all versions of numpy, other than the numbers made of them."""
        count = self._count(size)
        starts = np.arange(count + 1) * size // max(1, count)
        words: Any = np.random.SFC64(salt).random_raw(count)
        widths = np.diff(starts).astype(np.uint64)
        drawn: Array = starts[:-1] + (words % widths).astype(np.int64)
        return drawn


def _index_dtype(size: int) -> np.dtype[Any]:
    return np.dtype(np.uint32 if size <= 2**32 else np.int64)


def _largest(values: Array, count: int) -> Array:
    """The ascending indices of the ``count`` largest absolute values, of equals the first."""
    candidates: Array = _at_least(values, _guess(values, count))
    if candidates.size < count:
        candidates = np.arange(values.size)
    sizes = _sizes(values[candidates])
    if sizes.size == count:
        return candidates
    last = np.partition(sizes, sizes.size - count)[sizes.size - count]
    chosen = sizes > last
    equals = np.flatnonzero(sizes == last)
    chosen[equals[: count - np.count_nonzero(chosen)]] = True
    largest: Array = candidates[chosen]
    return largest


def _guess(values: Array, count: int) -> float:
    """A size that some more than ``count`` elements should have, by a sample."""
    sample = _sizes(values[:: max(1, values.size // _SAMPLES)])
    rank = int(sample.size * min(1.0, 1.3 * count / max(1, values.size))) + 32
    return 0.0 if rank >= sample.size else float(np.partition(sample, sample.size - rank)[sample.size - rank])


def _at_least(values: Array, least: float) -> Array:
    """The ascending indices of elements of at least this size, and of NaN."""
    limit = np.float32(least)
    blocks = ((low, values[low : low + BLOCK]) for low in range(0, values.size, BLOCK))
    found = [np.flatnonzero(~(np.abs(block) < limit)) + low for low, block in blocks]
    return np.concatenate([np.empty(0, np.intp), *found])


def _sizes(values: Array) -> Array:
    """Absolute values, infinity for NaN."""
    sizes: Array = np.abs(values)
    sizes[np.isnan(sizes)] = np.inf
    return sizes

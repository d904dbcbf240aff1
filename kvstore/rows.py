"""Some rows of an array: what a row-sparse push carries, and what a row-sparse pull returns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pslite.dtypes import BFLOAT16, CODES, storage
from pslite.errors import DTypeError, RowIndexError, ShapeError
from pslite.memory import PLAIN, Memory

from .arrays import BLOCK, Array, Tensor, accumulate, narrow, read, widen
from .pages import lazy_zeros
from .sums import Deferred, Sum

__all__ = [
    "Content",
    "Ids",
    "Received",
    "RowSum",
    "Rows",
    "as_dense",
    "checked_ids",
    "dense",
    "gather",
    "merge",
    "nonzero_rows",
    "read_ids",
    "row_numbers",
    "rows_with_bits",
    "scatter",
    "union",
    "wanted_ids",
]

Ids = npt.NDArray[np.int64]

_BLOCK = 4 * BLOCK


@dataclass(slots=True, eq=False)
class Rows:
    """``ids``: int64, ascending and unique; ``data``: one row for each, shape (len(ids), *row), storage dtype."""

    ids: Ids
    data: Array

    @property
    def nbytes(self) -> int:
        return self.ids.nbytes + self.data.nbytes

    def between(self, first: int, end: int) -> Rows:
        """The rows from ``first`` to ``end``, counted from ``first``; data is a view."""
        low, high = np.searchsorted(self.ids, (first, end))
        return Rows(self.ids[low:high] - first, self.data[low:high])


Content = Array | Rows
"""What a push brings for a key: the whole array, or some rows of it."""

Received = Content | Deferred
"""What is there of it where it is applied: an array may be decoded only then."""


def checked_ids(ids: Array, count: int, rows: int, key: object) -> Ids:
    """``ids`` of ``count`` rows as they are; raises unless they are int64, ascending, unique, and below ``rows``."""
    if ids.dtype != np.int64 or ids.ndim != 1:
        raise DTypeError(key=str(key), got=f"{ids.dtype} row ids of shape {ids.shape}", expected="1-D int64")
    if ids.size != count:
        raise ShapeError(key=str(key), got=[count], expected=[ids.size])
    if not _ascending(ids):
        raise ShapeError(key=str(key), got=["row ids that are not ascending and unique"], expected=[ids.size])
    _check_range(ids, rows, key)
    return ids


def wanted_ids(row_ids: Any, rows: int, key: object) -> Ids:
    """Row ids of any shape and real dtype as ascending, unique int64; fractions are cut off.

    Raises RowIndexError for an id outside of 0 to rows - 1, DTypeError for what is not real numbers.
    """
    ids = row_numbers(row_ids, rows, key)
    return ids if _ascending(ids) else union([ids])


def row_numbers(row_ids: Any, rows: int, key: object) -> Ids:
    """Row ids as 1-D int64 in the order given; raises as ``wanted_ids`` does."""
    values = read_ids(row_ids, key)
    if values.code == CODES["bool"]:
        raise DTypeError(key=str(key), got="bool row ids", expected="integers or floats")
    data = widen(values.data, values.code).reshape(-1)
    if data.dtype == np.float32:
        data = data.astype(np.float64)  # holds any number of rows exactly
    inside = (data > -1) & (data < rows)  # NaN is not; compared before the cast, which would wrap
    if data.size and (rows == 0 or not bool(inside.all())):  # -0.5 is row 0, which an empty table does not have
        raise RowIndexError(key=str(key), got=str(data[~inside][0] if rows else data[0]), rows=rows)
    return data.astype(np.int64)


def read_ids(row_ids: Any, key: object) -> Tensor:
    """An array of numbers, or a list of them; raises DTypeError for anything else."""
    if not isinstance(row_ids, (list, tuple)):
        return read(row_ids, key)
    try:
        return read(np.asarray(row_ids) if len(row_ids) else np.empty(0, np.int64), key)
    except ValueError as error:  # lists of different lengths
        raise DTypeError(key=str(key), got=f"row ids {row_ids!r:.80}", expected="integers or floats") from error


def _check_range(ids: Ids, rows: int, key: object) -> None:
    if ids.size and (ids[0] < 0 or ids[-1] >= rows):
        got = int(ids[0]) if ids[0] < 0 else int(ids[-1])
        raise RowIndexError(key=str(key), got=str(got), rows=rows)


def _ascending(ids: Ids) -> bool:
    return bool((ids[1:] > ids[:-1]).all())


def union(parts: Sequence[Ids]) -> Ids:
    """All ids, ascending, each once."""
    ids = np.sort(np.concatenate(parts), kind="stable")  # which merges what is in order already; np.unique would not
    first = np.ones(ids.size, np.bool_)
    np.not_equal(ids[1:], ids[:-1], out=first[1:])
    return ids[first]


def merge(parts: Sequence[Rows], code: int, wide: bool = False) -> Rows:
    """The union of the rows; a row that several parts have is summed from left to right, as ``accumulate`` does.

    ``wide``: float16 and bfloat16 stay float32, not rounded. The result shares no memory with the parts.
    """
    first, *others = parts
    if all(np.array_equal(part.ids, first.ids) for part in others):
        return Rows(first.ids.copy(), accumulate([part.data for part in parts], code, wide=wide))
    ids = union([part.ids for part in parts])
    add = np.logical_or if code == CODES["bool"] else np.add
    width = widen(np.empty(0, storage(code)), code).dtype
    total = np.full((len(ids), *first.data.shape[1:]), -0.0, width)  # not 0.0: -0.0 + x is x, also for x = -0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for part in parts:
            at, data = np.searchsorted(ids, part.ids), widen(part.data, code)
            scatter(Rows(at, data if part is first else add(gather(total, at), data)), total)
    if wide or total.dtype == storage(code):
        return Rows(ids, total)
    data = np.empty(total.shape, storage(code))
    with np.errstate(over="ignore"):  # infinity is a result
        narrow(total, data, code)
    return Rows(ids, data)


@dataclass(frozen=True, slots=True, eq=False)
class RowSum:
    """The sum of the rows that workers pushed, as ``merge`` has it, which is taken where it is needed."""

    parts: Sequence[Rows]
    code: int
    wide: bool

    def whole(self) -> Rows:
        """All of it."""
        return merge(self.parts, self.code, self.wide)

    def blocks(self) -> Iterator[tuple[Ids, Sum]]:
        """All of it in blocks of a few rows, with their ids, which ascend; no row is in two of them."""
        first, *others = self.parts
        step = max(1, _BLOCK // max(1, math.prod(first.data.shape[1:])))
        if all(np.array_equal(part.ids, first.ids) for part in others):
            for low in range(0, len(first.ids), step):
                block = slice(low, low + step)
                yield first.ids[block], Sum([part.data[block] for part in self.parts], self.code, self.wide)
            return
        for part, (own, met) in zip(self.parts, _shares([part.ids for part in self.parts]), strict=True):
            for low in range(0, len(own), step):
                at = own[low : low + step]
                yield part.ids[at], self._sum(part, at, met)

    def _sum(self, part: Rows, at: Ids, met: Sequence[tuple[int, Ids, Ids]]) -> Sum:
        """Of the rows of this part at ``at``, with what later parts have of them."""
        total = widen(gather(part.data, at), self.code)
        add = np.logical_or if self.code == CODES["bool"] else np.add
        with np.errstate(over="ignore", invalid="ignore"):
            for later, here, there in met:
                low, high = np.searchsorted(here, (at[0], at[-1] + 1))
                to = np.searchsorted(at, here[low:high])
                theirs = widen(gather(self.parts[later].data, there[low:high]), self.code)
                scatter(Rows(to, add(gather(total, to), theirs)), total)
        if total.dtype == storage(self.code):
            return Sum([total], self.code)
        if self.wide:
            return Sum([total], CODES["float32"])
        data = np.empty(total.shape, storage(self.code))
        with np.errstate(over="ignore"):  # infinity is a result
            narrow(total, data, self.code)
        return Sum([data], self.code)


def _shares(parts: Sequence[Ids]) -> Iterator[tuple[Ids, list[tuple[int, Ids, Ids]]]]:
    """For each part where it has ids that no earlier one has, and with which later parts it shares some of those:
    (number of the part, where they are here, where they are there)."""
    ids = np.concatenate(parts)
    order = np.argsort(ids, kind="stable")  # merges what is in order; of equal ids that of the earliest part is first
    ordered = ids[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    before = again - 1
    before[1:][before[1:] == again[:-1]] = 0  # of more than two equal ids
    owner, later = order[np.maximum.accumulate(before)], order[again]
    owned = np.ones(ids.size, np.bool_)
    owned[later] = False
    ends = list(itertools.pairwise(itertools.accumulate(map(len, parts), initial=0)))
    for number, (first, end) in enumerate(ends):
        mine = (owner >= first) & (owner < end)
        here, there = owner[mine] - first, later[mine]
        met = []
        for other, (low, high) in enumerate(ends[number + 1 :], number + 1):
            theirs = (there >= low) & (there < high)
            if theirs.any():
                met.append((other, here[theirs], there[theirs] - low))
        yield np.flatnonzero(owned[first:end]), met


def dense(rows: Rows, shape: tuple[int, ...]) -> Array:
    """The whole array, zero where there is no row."""
    whole = lazy_zeros(shape, rows.data.dtype)
    scatter(rows, whole)
    return whole


def scatter(rows: Rows, out: Array) -> None:
    """Writes the rows into their places."""
    ids, data = rows.ids, rows.data
    row = data.itemsize * math.prod(data.shape[1:])
    alike = out.dtype == data.dtype and out.shape[1:] == data.shape[1:]
    if row > data.itemsize and len(ids) and alike and out.flags.c_contiguous and data.flags.c_contiguous:
        item = f"V{row}"  # a row as one item, copied at once: numpy takes three times as long for a row's elements
        out.reshape(-1).view(item)[ids] = data.reshape(-1).view(item)
    else:
        out[ids] = data


def gather(array: Array, ids: Ids, memory: Memory = PLAIN) -> Array:
    """Copies of some rows, in an array of ``memory``; half of the time that ``array[ids]`` takes."""
    if memory is PLAIN:
        return np.take(array, ids, axis=0)
    out = memory.empty((len(ids), *array.shape[1:]), array.dtype)
    return np.take(array, ids, axis=0, out=out, mode="clip")  # "raise" would go by a buffer; ids are known to be right


def as_dense(content: Content, shape: tuple[int, ...]) -> Array:
    """A push's content as a whole array."""
    return dense(content, shape) if isinstance(content, Rows) else content


def rows_with_bits(arrays: Sequence[Array]) -> Ids:
    """The rows in which any bit of any of these arrays, all with as many rows, is set: minus zero has one."""
    rows = len(arrays[0]) if arrays else 0
    found = np.zeros(rows, np.bool_)
    for array in arrays:
        step = max(1, BLOCK * rows // max(1, array.size))  # rows: a mask of the whole array would be large
        for low in range(0, rows if array.size else 0, step):
            block = np.ascontiguousarray(array[low : low + step])
            row = block.nbytes // len(block)
            bits = block.reshape(-1).view(np.uint64 if row % 8 == 0 else np.uint8).reshape(len(block), -1)
            found[low : low + step] |= np.bitwise_or.reduce(bits, axis=1) != 0
    return np.flatnonzero(found).astype(np.int64, copy=False)


def nonzero_rows(tensor: Tensor) -> Rows:
    """The rows of an array in which anything is not zero."""
    bits = tensor.data & 0x7FFF if tensor.code == BFLOAT16 else tensor.data  # minus zero is zero
    ids: Ids = np.flatnonzero(bits.any(axis=tuple(range(1, bits.ndim)))).astype(np.int64)
    return Rows(ids, tensor.data[ids])

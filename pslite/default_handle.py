"""KVServerDefaultHandle: adds what is pushed, returns the sum. Vectors of floats, any number of values per key."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError, UnknownKeyError
from .kv_pairs import Array, KVPairs
from .kv_server import KVMeta, KVServer


class _Table:
    """The keys that have ``width`` values each: ascending keys, and one row of values for each."""

    def __init__(self, width: int, dtype: np.dtype[Any]) -> None:
        self.keys: NDArray[np.uint64] = np.empty(0, np.uint64)
        self.rows: Array = np.empty((0, width), dtype)

    def find(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where the keys are or would be inserted, and which of them are there."""
        if self.keys.size == keys.size and np.array_equal(self.keys, keys):
            return np.arange(keys.size), np.ones(keys.size, np.bool_)
        at = np.searchsorted(self.keys, keys)
        there = np.zeros(keys.size, np.bool_)
        inside = at < self.keys.size
        there[inside] = self.keys[at[inside]] == keys[inside]
        return at, there

    def add(self, keys: NDArray[np.uint64], rows: Array) -> None:
        at, there = self.find(keys)
        if there.all():
            if keys.size == self.keys.size:
                self.rows += rows
            else:
                self.rows[at] += rows
            return
        self.rows[at[there]] += rows[there]
        self.keys = np.insert(self.keys, at[~there], keys[~there])
        self.rows = np.insert(self.rows, at[~there], rows[~there], axis=0)


class KVServerDefaultHandle:
    """The handle of ps-lite's tests and examples: ``store[key] += vals`` on push, ``store[key]`` on pull.

    A key's number of values is fixed by its first push (ShapeError later); a pull of a key that was never pushed is an
    UnknownKeyError. Keys that differ in length may be mixed, with ``lens``.
    """

    def __init__(self, dtype: Any = np.float32) -> None:
        self._dtype = np.dtype(dtype)
        self._tables: dict[int, _Table] = {}  # by number of values; leading thread only

    def __call__(self, meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        if meta.push:
            assert isinstance(pairs.vals, np.ndarray)
            lengths = _by_length(pairs)
            for width, where in lengths:
                self._check(pairs.keys[where], width)
            for width, where in lengths:
                table = self._tables.setdefault(width, _Table(width, self._dtype))
                table.add(pairs.keys[where], _rows(pairs, where, width))
        server.response(meta, self._pull(pairs.keys) if meta.pull else None)

    def _check(self, keys: NDArray[np.uint64], width: int) -> None:
        for other, table in self._tables.items():
            there = table.find(keys)[1] if other != width else np.zeros(1, np.bool_)
            if there.any():
                key = int(keys[there.argmax()])
                raise ShapeError(key=str(key), got=[width], expected=[other])

    def _pull(self, keys: NDArray[np.uint64]) -> KVPairs:
        if len(self._tables) == 1:
            table = next(iter(self._tables.values()))
            at, there = table.find(keys)
            if there.all():
                whole = keys.size == table.keys.size
                return KVPairs(keys, (table.rows.copy() if whole else table.rows[at]).reshape(-1))
        lens = np.zeros(keys.size, np.int64)
        found: list[Array | None] = [None] * keys.size
        for width, table in self._tables.items():
            at, there = table.find(keys)
            lens[there] = width
            for index in np.flatnonzero(there).tolist():
                found[index] = table.rows[at[index]]
        for index, row in enumerate(found):
            if row is None:
                raise UnknownKeyError(key=str(keys[index]))
        parts = [row for row in found if row is not None]
        return KVPairs(keys, np.concatenate([np.empty(0, self._dtype), *parts]), lens)


def _by_length(pairs: KVPairs) -> list[tuple[int, Any]]:
    """Each number of values that occurs, with the indices of the keys that have it."""
    count = len(pairs.keys)
    if count == 0:
        return []
    if pairs.lens is None:
        return [(len(pairs.vals) // count, slice(None))]
    return [(int(width), np.flatnonzero(pairs.lens == width)) for width in np.unique(pairs.lens)]


def _rows(pairs: KVPairs, where: Any, width: int) -> Array:
    assert isinstance(pairs.vals, np.ndarray)
    if pairs.lens is None:
        return pairs.vals.reshape(len(pairs.keys), width)
    starts = np.concatenate([[0], np.cumsum(pairs.lens)])[:-1][where]
    rows: Array = pairs.vals[starts[:, None] + np.arange(width)]
    return rows

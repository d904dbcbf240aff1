"""What a backup has of another server: its records, and copies of its arrays. A state machine without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgpack
import numpy as np

from kvstore.arrays import Array
from kvstore.pages import lazy_zeros
from kvstore.rows import Rows, scatter
from pslite.errors import KeeperError
from pslite.memory import Memory

from .bundle import NOTHING
from .reopening import Found, Journal, Wanted, reopen
from .replicating import ALL, OTHERS_ZERO

_SETTLED = {"rule", "state", "settings"}  # kinds of records that leave each array its place


class Contents(Protocol):
    """What a server begins with."""

    def open(self, memory: Memory) -> Found:
        """All of it, as values of this memory; to be called once. Raises KeeperError if it is damaged."""


class Replica(Contents):
    """Takes in the changes of a server, in their order, each at once or not at all."""

    def __init__(self) -> None:
        self._journal = Journal()
        self._arrays: dict[tuple[int, int], Array] = {}  # by place

    def take(self, change: Sequence[Array]) -> None:
        """A change, as ``Replicated`` tells it; its arrays are copied."""
        anew, records, told = msgpack.unpackb(change[0].tobytes(), strict_map_key=False)
        if anew:
            self._journal = Journal()
        for record in records:
            self._journal.read(*record)
        arrays = iter(change[1:])
        for entry, number, how, shape in told:
            if how == ALL:
                self._copy((entry, number), next(arrays))
            else:
                self._write((entry, number), Rows(next(arrays), next(arrays)), shape, how == OTHERS_ZERO)
        if any(record[0] not in _SETTLED for record in records):
            self._drop()

    def _copy(self, place: tuple[int, int], array: Array) -> None:
        own = self._arrays.get(place, NOTHING)
        if own.shape != array.shape or own.dtype != array.dtype:
            own = self._arrays[place] = np.empty(array.shape, array.dtype)
        np.copyto(own, array)

    def _write(self, place: tuple[int, int], rows: Rows, shape: Sequence[int], others_zero: bool) -> None:
        if others_zero:
            self._arrays[place] = lazy_zeros(tuple(shape), rows.data.dtype)
        scatter(rows, self._arrays[place])

    def _drop(self) -> None:
        """Forget the arrays that no entry has any more."""
        named = {tuple(place) for place, *_ in self._journal.places() if place is not None}
        self._arrays = {place: array for place, array in self._arrays.items() if place in named}

    def open(self, memory: Memory) -> Found:
        return reopen(self._journal, self._reopen, memory)

    def _reopen(self, wanted: Wanted) -> list[Array]:
        arrays, self._arrays = self._arrays, {}  # they are the new server's: it may write to those that nobody reads
        found = [arrays[place] for place, _, _ in wanted]
        for array, (_, shape, dtype) in zip(found, wanted, strict=True):
            if array.shape != shape or array.dtype != dtype:
                reason = f"an array is {array.dtype} {array.shape}, and should be {dtype} {shape}"
                raise KeeperError(what="going on from a replica", reason=reason)
        return found

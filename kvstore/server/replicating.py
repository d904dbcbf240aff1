"""What a server tells its backup: each change of a key as a record, with the arrays that it replaces.

Arrays that a record names do not change before the backup has them: a dense value has two, its slots are copied before
an update, and of tables the rows that were written are copied. A place is the id of an entry and which of its arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import numpy as np

from kvstore.arrays import Array
from kvstore.pages import lazy_zeros
from kvstore.rows import Ids, gather, rows_with_bits, union
from kvstore.value import Value
from pslite.dtypes import code_of
from pslite.memory import Memory

from .statelog import Contents, StateLog, is_table

ALL, SOME_ROWS, OTHERS_ZERO = range(3)  # what is told of an array: all of it, or ids and rows
_MANY_RULES = 1000  # from which on the records begin anew, without those that are not in force any more


class Replicated(StateLog):
    """Tells every change to ``ship``, with its number, as arrays, the first of which says what the others are."""

    def __init__(self, memory: Memory, ship: Callable[[int, list[Array]], None]) -> None:
        super().__init__(memory)
        self._ship = ship
        self._told: list[tuple[int, int, int, tuple[int, ...]]] = []  # of arrays in the next one: place, how, shape
        self._arrays: list[Array] = []  # to go with it
        self._overwritten: dict[int, list[Ids]] = {}  # rows, by the identity of the table; since the last change
        self._made_before = 0  # rules, when the records began

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return lazy_zeros(shape, dtype)

    def overwriting(self, arrays: Sequence[Array], ids: Ids) -> None:
        for array in arrays:
            self._overwritten.setdefault(id(array), []).append(ids)

    def _own(self, value: Value) -> None:
        """They are told from wherever they are."""

    def _places(self, id: int, value: Value, arrays: Sequence[Array]) -> list[Contents]:
        before = self._held.get(id, [])
        for number, array in enumerate(arrays):
            if array.size:
                known = number < len(before) and before[number] is array
                self._tell(id, number, array, known, is_table(value, array))
        return [
            [[id, number] if array.size else None, array.shape, code_of(array.dtype)]
            for number, array in enumerate(arrays)
        ]

    def _tell(self, entry: int, number: int, array: Array, known: bool, table: bool) -> None:
        """Note what of an array the next change has to bring; ``known``: the backup has it, as it was last."""
        overwritten = self._overwritten.get(id(array))
        if known and not overwritten:
            return
        if known or table:
            ids = union(overwritten) if known and overwritten else rows_with_bits([array])
            self._told.append((entry, number, SOME_ROWS if known else OTHERS_ZERO, array.shape))
            self._arrays += [ids, gather(array, ids, self.memory)]
        else:
            self._told.append((entry, number, ALL, array.shape))
            self._arrays.append(array)

    def _write(self, records: Sequence[Contents]) -> None:
        self._send(False, records)
        if self._made - self._made_before > _MANY_RULES:
            self._rewrite()

    def _replace(self, records: Sequence[Contents]) -> None:
        self._made_before = self._made
        self._send(True, records)

    def _send(self, anew: bool, records: Sequence[Contents]) -> None:
        told, arrays = self._told, self._arrays
        self._told, self._arrays, self._overwritten = [], [], {}
        self.told += 1
        what = np.frombuffer(msgpack.packb([anew, records, told]), np.uint8)
        self._ship(self.told, [what, *arrays])


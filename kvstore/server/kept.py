"""What a server's successor goes on with: its keys as they were committed last, in memory that outlives the process.

Nothing that was committed is overwritten before the next commit. Values have two arrays anyway; slots that are changed
in place are copies; of rows that are overwritten the journal has the old contents first. A commit is the record of an
entry in the journal, of which ``statelog.py`` says what it has. One kind is written here only:

    undo      [old arrays, row ids, [array, ...]]: an update has begun; any later record says that it ended
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

from kvstore.arrays import Array
from kvstore.rows import Ids, Rows, gather, rows_with_bits, scatter
from kvstore.value import Value
from pslite.dtypes import code_of
from pslite.errors import KeeperError
from pslite.memory import KeptMemory

from .bundle import NOTHING
from .reopening import Found, Journal, reopen
from .statelog import Contents, StateLog, is_table


class Kept(StateLog):
    """Commits what a store has to a journal. Used on the postoffice's leading thread only."""

    memory: KeptMemory

    def __init__(self, memory: KeptMemory) -> None:
        super().__init__(memory)
        self._old: list[Array] = []  # contents of rows that are being overwritten

    def found(self) -> Found | None:
        """What the predecessor had; None if it had nothing. Raises KeeperError if that makes no sense."""
        records = self.memory.found()
        if not records:
            return None
        journal = Journal()
        try:
            for record in records:
                journal.read(*msgpack.unpackb(record, strict_map_key=False))
        except (ValueError, TypeError, LookupError, AssertionError) as error:
            raise KeeperError(what="reading the predecessor's journal", reason=f"{error!r:.200}") from error
        return reopen(journal, self.memory.reopen, self.memory, self)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self.memory.zeros(shape, dtype)

    def overwriting(self, arrays: Sequence[Array], ids: Ids) -> None:
        known = [array for array in arrays if self.memory.holds(array)]
        if not known or not ids.size:
            return
        where = self._copy(ids)
        old = [gather(array, ids, self.memory) for array in known]
        self._old = [where, *old]
        pairs = [[self._place(array), self._place(rows)] for array, rows in zip(known, old, strict=True)]
        self._commit(["undo", self._place(where), pairs])

    def _write(self, records: Sequence[Contents]) -> None:
        undo = [record for record in records if record[0] == "undo"]
        if not self.memory.commit([msgpack.packb(record) for record in records]):
            self._rewrite(undo)
        if not undo:
            self._old = []

    def _replace(self, records: Sequence[Contents]) -> None:
        self.memory.rewrite([msgpack.packb(record) for record in records])

    def _own(self, value: Value) -> None:
        if value.data is not NOTHING:
            value.data = self._kept(value.data, value.spec.sparse)
        for name, slot in value.state.items():
            value.state[name] = self._kept(slot, is_table(value, slot))

    def _kept(self, array: Array, table: bool) -> Array:
        if not array.size or self.memory.holds(array):
            return array
        if not table:
            return self._copy(array)
        kept = self.memory.zeros(array.shape, array.dtype)
        ids = rows_with_bits([array])
        scatter(Rows(ids, gather(array, ids)), kept)
        return kept

    def _places(self, id: int, value: Value, arrays: Sequence[Array]) -> list[Contents]:
        return [self._place(array) for array in arrays]

    def _place(self, array: Array) -> Contents:
        place = self.memory.place(array) if array.size else None
        return [place, array.shape, code_of(array.dtype)]

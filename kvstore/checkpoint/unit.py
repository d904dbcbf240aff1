"""Everything that is saved of a key, or of a piece of it: value, optimizer slots, counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvstore.arrays import Array
from kvstore.rows import Ids, Rows
from pslite.errors import CheckpointError

VALUE = "value"
SENT = "sent"  # what compressed pulls have left out
PULLED = "pulled"  # what a compressed pull of this version has given to workers: it is to give it again
IDS = "ids"
SLOT = "slot/"  # and the slot's name


@dataclass(slots=True, eq=False)
class Unit:
    """``arrays``: by name, each with the key's rows first (or the rows of ``ids``, if the others are zero)."""

    arrays: dict[str, Array] = field(default_factory=dict)
    ids: Ids | None = None
    version: int = 0
    count: int = 0  # updates that the optimizer has made

    def cut(self, first: int, end: int) -> Unit:
        """The unit of some rows of the key."""
        part = Unit(version=self.version, count=self.count)
        if self.ids is None:
            part.arrays = {name: array[first:end] for name, array in self.arrays.items()}
            return part
        for name, array in self.arrays.items():
            rows = Rows(self.ids, array).between(first, end)
            part.arrays[name], part.ids = rows.data, rows.ids
        return part


def join(key: object, parts: Sequence[tuple[int, Unit]]) -> Unit:
    """A key's unit from those of its pieces, each with its first row, in order."""
    if len(parts) == 1:
        return parts[0][1]
    units = [unit for _, unit in parts]
    first = units[0]
    if any(set(unit.arrays) != set(first.arrays) or unit.count != first.count for unit in units):
        raise CheckpointError(path=f"key {key!r}", reason="its pieces are not of the same update: let pushes end first")
    whole = Unit(version=min(u.version for u in units), count=first.count)
    whole.arrays = {name: np.concatenate([unit.arrays[name] for unit in units]) for name in first.arrays}
    if first.ids is not None:
        whole.ids = np.concatenate([start + unit.ids for start, unit in parts if unit.ids is not None])
    return whole

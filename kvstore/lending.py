"""Users' arrays that servers read where they are, while a push of them is not done."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pslite.memory import Memory

from .arrays import Array
from .keys import Group, Key
from .records import Record
from .rows import Content

Finish = Callable[[list[Any]], Any]


class Lending:
    """Arrays from ``kv.empty`` are lent to the store from their push on: read-only. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lent: dict[int, tuple[Array, list[Key]]] = {}  # by id: an array, and the keys that it is pushed for

    def lend(self, lent: Sequence[tuple[Array, Key]], finish: Finish | None) -> Finish:
        """A push of these arrays, each for its key, begins; returns what gives them back at its end."""
        with self._lock:
            for array, key in lent:
                if id(array) in self._lent:
                    self._lent[id(array)][1].append(key)
                elif array.flags.writeable:  # else it is read-only by the user's wish, and stays so
                    array.flags.writeable = False
                    self._lent[id(array)] = array, [key]

        def done(parts: list[Any]) -> Any:
            self._give_back(lent)
            return None if finish is None else finish(parts)

        return done

    def _give_back(self, pairs: Sequence[tuple[Array, Key]]) -> None:
        with self._lock:
            for array, key in pairs:
                lent = self._lent.get(id(array))
                if lent is not None:
                    lent[1].remove(key)
                    if not lent[1]:
                        del self._lent[id(array)]
                        array.flags.writeable = True

    def reclaim(self, outs: Sequence[Group]) -> None:
        """These arrays are to be filled with keys' values, which come when all pushes of their key are done."""
        if not self._lent:
            return
        with self._lock:
            for g in outs:
                for out in g.arrays:
                    lent = self._lent.get(id(out))
                    if lent is not None and set(lent[1]) == {g.key}:
                        lent[0].flags.writeable = True


def lendable(
    memory: Memory, records: Sequence[Record], contents: Sequence[Sequence[Content]], outs: Sequence[Group]
) -> list[tuple[Array, Key]]:
    """What a call need not copy: arrays from ``kv.empty``, one for a key, into which no other key is pulled."""
    found = [
        (content[0], record.key)
        for record, content in zip(records, contents, strict=True)
        if len(content) == 1 and isinstance(content[0], np.ndarray) and memory.holds(content[0])
    ]
    if not found or not outs:
        return found
    times = Counter(id(_root(out)) for g in outs for out in g.arrays)
    own = {g.key: g.arrays for g in outs}
    return [(array, key) for array, key in found if times[id(array)] == sum(out is array for out in own[key])]


def _root(array: object) -> object:
    """The array that an array is a view of, or itself."""
    while isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray):
        array = array.base
    return array

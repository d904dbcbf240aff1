"""Users' arrays that servers read where they are, while a push of them is not done."""

from __future__ import annotations

import threading
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from pslite.memory import Memory

from .arrays import Array, in_memory
from .bfloat16 import bfloat16
from .keys import Group, Key
from .records import Record
from .rows import Content


@dataclass(slots=True, eq=False)
class Loan:
    """An array that is pushed for a key."""

    array: Array
    key: Key


class Lending:
    """Arrays from ``kv.empty`` are lent to the store from their push on: read-only. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loans: dict[Key, list[Loan]] = {}  # those that are not given back, by key
        self._times: Counter[int] = Counter()  # how many of them there are of an array, by its id
        self._made: WeakValueDictionary[int, Array] = WeakValueDictionary()  # arrays from ``empty``, by id

    def empty(self, memory: Memory, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array that may be lent, if others can read this memory, else an ordinary one."""
        array = memory.empty(shape, dtype)
        if memory.holds(array):
            array = array.view()  # numpy makes an array writable again only if it is a view of one that is
            self._made[id(array)] = array
        return array

    def made(self, array: Array) -> bool:
        """Whether this very array, not a view of it, came from ``empty``."""
        return self._made.get(id(array)) is array

    def lend(self, pairs: Iterable[tuple[Array, Key]]) -> list[Loan]:
        """A push of these arrays, each for its key, begins."""
        loans = []
        with self._lock:
            for array, key in pairs:
                if id(array) not in self._times:
                    if not array.flags.writeable:  # by the user's wish: it stays so
                        continue
                    array.flags.writeable = False
                self._times[id(array)] += 1
                loans.append(Loan(array, key))
                self._loans.setdefault(key, []).append(loans[-1])
        return loans

    def of(self, keys: Iterable[Key]) -> list[Loan]:
        """What is lent for these keys: a pull that begins now ends after all those pushes."""
        if not self._loans:
            return []
        with self._lock:
            return [loan for key in keys for loan in self._loans.get(key, ())]

    def give_back(self, loans: Iterable[Loan]) -> None:
        """Nobody reads these any more; those given back before are passed over."""
        with self._lock:
            for loan in loans:
                own = self._loans.get(loan.key, [])
                if loan not in own:
                    continue
                own.remove(loan)
                if not own:
                    del self._loans[loan.key]
                self._times[id(loan.array)] -= 1
                if not self._times[id(loan.array)]:
                    del self._times[id(loan.array)]
                    loan.array.flags.writeable = True

    def reclaim(self, outs: Sequence[Group]) -> list[Array]:
        """These arrays are to be filled with keys' values, which come when all pushes of their key are done: those that
        are lent for no other key are writable from now on. Returns them."""
        if not self._loans:
            return []
        found = []
        with self._lock:
            for g in outs:
                for out in g.arrays:
                    array = out.bits if isinstance(out, bfloat16) else out
                    times = sum(loan.array is array for loan in self._loans.get(g.key, ()))
                    if times and times == self._times[id(array)] and not array.flags.writeable:
                        array.flags.writeable = True
                        found.append(array)
        return found

    def protect(self, arrays: Iterable[Array]) -> None:
        """They are not filled after all: what is still lent is read-only again."""
        with self._lock:
            for array in arrays:
                if id(array) in self._times:
                    array.flags.writeable = False


def lendable(
    lending: Lending, records: Sequence[Record], contents: Sequence[Sequence[Content]], outs: Sequence[Group]
) -> list[tuple[Array, Key]]:
    """What a call need not copy: arrays from ``kv.empty``, one for a key, over which no other value is pulled."""
    found = [
        (content[0], record.key)
        for record, content in zip(records, contents, strict=True)
        if len(content) == 1 and isinstance(content[0], np.ndarray) and lending.made(content[0])
    ]
    if not found or not outs:
        return found
    taken = _overwritten(found, outs)
    return [(array, key) for array, key in found if id(array) not in taken]


def _overwritten(found: Sequence[tuple[Array, Key]], outs: Sequence[Group]) -> set[int]:
    """The ids of those arrays over which comes something else than the new value of the key they are pushed for, each
    element of it over its own."""
    keys: dict[int, set[Key]] = {}
    for array, key in found:
        keys.setdefault(id(array), set()).add(key)
    arrays = {_address(array): array for array, _ in found}
    starts = sorted(arrays)
    taken = set()
    for g in outs:
        for out in g.arrays:
            view = in_memory(out, g.key)
            index = 0 if view is None else bisect(starts, _address(view))
            if view is None or not index:
                continue
            array = arrays[starts[index - 1]]
            same = _address(view) == _address(array) and view.dtype == array.dtype and view.flags.c_contiguous
            if np.may_share_memory(view, array) and not (same and keys[id(array)] == {g.key}):
                taken.add(id(array))
    return taken


def _address(array: Array) -> int:
    """Of its first element."""
    address: int = array.__array_interface__["data"][0]
    return address

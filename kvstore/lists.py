"""Calls with lists of keys: small arrays travel behind each other as one, and no step is made for each of them twice.

What a list of keys comes to is found once: which of its keys travel together (``Part``), which as arrays of their own
(``Loads``), and which are to be looked at in each call. The arrays of a call must be plain and exactly as at init; any
others are left to the general path, which says what is wrong with them.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from pslite import KVPairs
from pslite.dtypes import BFLOAT16, storage
from pslite.errors import ProtocolError
from pslite.memory import PACK_BELOW

from .arrays import Array
from .keys import Key
from .ledger import PULL, PULL_RAW, PUSH, PUSH_RAW, PUSHES, VERSION, Ledger
from .loads import Loads
from .records import Record

FEWEST = 8  # keys that are worth a part of their own; more than one
LONGEST = 1024 * 1024  # bytes of a part: servers work on it while the next is made
MOST_KEYS = 65_536  # of a part
KEPT = 262_144  # keys of all lists whose plans are kept


class Part:
    """Keys of one dtype on one server that travel together, in the order of their keys on the wire."""

    def __init__(self, places: Sequence[int], records: Sequence[Record]) -> None:
        self.places = list(places)  # in the call's list
        self._pick = itemgetter(*self.places)
        self._first = self.places == list(range(len(places)))  # those of the list, if it has no more
        self.dtype = storage(records[0].spec.code)
        self.wires = np.array([record.pieces[0].wire for record in records], np.uint64)
        self.at = np.array([record.at for record in records], np.intp)
        self.shapes = [record.spec.shape for record in records]
        sizes = [math.prod(shape) for shape in self.shapes]
        self.nbytes = np.array(sizes) * self.dtype.itemsize
        self._is_1d = all(len(shape) == 1 for shape in self.shapes)
        self._flat = np.empty(sum(sizes), self.dtype)  # what arrays are copied to and from; used under the store's lock
        self._came = np.empty_like(self._flat)  # the same for answers; used on the leading thread
        bounds = list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))
        self._to, self._from = (
            [flat[low:high].reshape(shape) for (low, high), shape in zip(bounds, self.shapes, strict=True)]
            for flat in (self._flat, self._came)
        )

    def of(self, arrays: Sequence[Any]) -> Sequence[Any]:
        """This part of a call's arrays."""
        if self._first and len(arrays) == len(self.places):
            return arrays
        found: Sequence[Any] = self._pick(arrays)
        return found

    def takes(self, arrays: Sequence[Any], out: bool) -> bool:
        """Whether these are plain arrays of the keys' shapes and dtype, ``out``: that may be written to."""
        mine = self.of(arrays)
        return (
            set(map(type, mine)) == {np.ndarray}
            and [array.dtype for array in mine].count(self.dtype) == len(mine)
            and [array.shape for array in mine] == self.shapes
            and not (out and [array.flags.writeable for array in mine].count(True) < len(mine))
        )

    def joined(self, arrays: Sequence[Array]) -> Array:
        """A copy of the arrays, behind each other."""
        if self._is_1d:
            return np.concatenate(self.of(arrays), axis=None)
        for own, array in zip(self._to, self.of(arrays), strict=True):
            own[...] = array
        flat: Array = self._flat.copy()
        return flat

    def pushed(self, arrays: Sequence[Array], ledger: Ledger) -> KVPairs:
        """What is pushed of a call's arrays, and counted."""
        ledger.push(self.at)
        ledger.count(PUSH, self.at, self.nbytes)
        ledger.count(PUSH_RAW, self.at, self.nbytes)
        versions, rounds = ledger.column(VERSION, self.at), ledger.column(PUSHES, self.at)
        return KVPairs(self.wires, self.joined(arrays), versions=versions, rounds=rounds)

    def wanted(self) -> KVPairs:
        """A pull of all."""
        return KVPairs(self.wires, [])

    def fill(self, outs: Sequence[Array], values: Array) -> None:
        """Write an answer into the caller's arrays."""
        self._came[...] = values
        for out, value in zip(self.of(outs), self._from, strict=True):
            out[...] = value


class KeyList:
    """What a list of keys comes to. Nothing of it changes."""

    def __init__(self, records: Sequence[Record], starts: Sequence[int], at_once: int) -> None:
        groups: dict[tuple[int, int], list[int]] = {}
        for place, record in enumerate(records):
            if is_small(record):
                server = bisect_right(starts, record.pieces[0].wire)
                groups.setdefault((server, record.spec.code), []).append(place)
        self.parts: list[Part] = []
        for group in groups.values():
            group.sort(key=lambda place: records[place].pieces[0].wire)
            self.parts += [Part(cut, [records[place] for place in cut]) for cut in _cuts(group, records)]
        self.at = np.array([record.at for record in records], np.intp)
        self.keys = [record.key for record in records]
        self._layouts = [(record.spec.shape, record.dtype) for record in records]
        self.bundled = (  # the keys that travel together, and their places in the ledger
            [records[place].key for part in self.parts for place in part.places],
            np.concatenate([part.at for part in self.parts]) if self.parts else self.at[:0],
        )
        together = {place for part in self.parts for place in part.places}
        self.apart = [place for place in range(len(records)) if place not in together]
        own = [place for place in self.apart if at_once and is_plain(records[place])]
        self.loads = Loads(own, records, starts, at_once) if own else None
        self.rest = sorted({*self.apart}.difference(own))  # to be looked at in each call, as ``apart`` without loads
        self._in_order = len(self.parts) == 1 and self.parts[0].places == list(range(len(records)))

    def takes(self, arrays: Any, out: bool = False) -> bool:
        """Whether these are one plain array for each key that travels with others."""
        if not isinstance(arrays, (list, tuple)) or len(arrays) != len(self.keys):
            return False
        if out and not self._in_order and len(set(map(id, arrays))) < len(arrays):
            return False  # the last of the keys that share an array is to be in it
        return all(part.takes(arrays, out) for part in self.parts)

    def loads_for(self, values: Any, outs: Any) -> Loads | None:
        """The loads, if a call's arrays fit them; either may be None."""
        loads = self.loads
        if loads is None or (values is not None and not loads.takes(values)):
            return None
        return loads if outs is None or loads.takes(outs, out=True) else None

    def apart_from(self, loads: Loads | None) -> list[int]:
        """The places of the keys that are in no part, and not in these loads."""
        return self.apart if loads is None else self.rest

    def fresh(self) -> list[Array]:
        """New arrays, for a pull without outs."""
        return [np.empty(shape, dtype) for shape, dtype in self._layouts]


class Answers:
    """The answers of a pull of a list, as they come; all runs on the leading thread."""

    def __init__(self, parts: Sequence[Part], outs: Sequence[Array], ledger: Ledger, result: Any = None) -> None:
        self._parts = {int(part.wires[0]): part for part in parts}
        self._outs, self._ledger, self._result = outs, ledger, result

    def take(self, answer: KVPairs) -> None:
        """Put a part where it belongs; does no harm if it is done again."""
        part = self._parts.get(int(answer.keys[0]) if len(answer.keys) else -1)
        values = answer.vals
        if part is None or not isinstance(values, np.ndarray) or answer.versions is None:
            raise ProtocolError("an answer of values that were not asked for")
        if values.size != part.nbytes.sum() // part.dtype.itemsize or answer.versions.shape != part.at.shape:
            raise ProtocolError(f"{values.size} values came for {len(part.at)} keys")
        part.fill(self._outs, values)
        self._ledger.set(VERSION, part.at, answer.versions)

    def finish(self, _: object) -> Any:
        """What the call returns, when all is there."""
        for part in self._parts.values():
            self._ledger.count(PULL, part.at, part.nbytes)
            self._ledger.count(PULL_RAW, part.at, part.nbytes)
        return self._result


class Plans:
    """The plans of the lists that were used last. Thread-safe: what is lost is made again."""

    def __init__(self, ranges: Sequence[tuple[int, int]], at_once: int) -> None:
        """``at_once``: bytes of large values in a message to a server; 0 if they are cut otherwise."""
        self._starts = [first for first, _ in ranges]
        self._at_once = at_once
        self._plans: dict[tuple[Key, ...], KeyList | None] = {}  # replaced when they are too long
        self._keys = 0  # of all of them

    def of(self, keys: Sequence[Key], records: Mapping[Key, Record], kind: type | None) -> KeyList | None:
        """The plan of a list of keys; all must be of type ``kind``."""
        if len(keys) < FEWEST or set(map(type, keys)) != {kind}:
            return None
        name, plans = tuple(keys), self._plans
        if name in plans:
            return plans[name]
        mine = [records[key] for key in name if key in records]
        if len(mine) < len(name) or len(set(name)) < len(name):
            return None
        plan = KeyList(mine, self._starts, self._at_once)
        found = plan if plan.parts or plan.loads is not None else None
        self._keys += len(name)
        if self._keys <= KEPT:
            plans[name] = found
        else:
            self._plans, self._keys = {name: found}, len(name)
        return found


def is_plain(record: Record) -> bool:
    """Whether numpy's own arrays have its values, or rows of them."""
    return not record.flat and not record.spec.sparse and record.spec.code != BFLOAT16


def is_small(record: Record) -> bool:
    return record.whole and is_plain(record) and record.spec.nbytes < PACK_BELOW


def _cuts(places: list[int], records: Sequence[Record]) -> Iterator[list[int]]:
    """Parts of a group, none too large, and none too small to be worth it."""
    cut: list[int] = []
    size = 0
    for place in places:
        if size > LONGEST or len(cut) == MOST_KEYS:
            yield cut
            cut, size = [], 0
        cut.append(place)
        size += records[place].spec.nbytes
    if len(cut) >= FEWEST:
        yield cut

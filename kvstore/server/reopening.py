"""How a server makes its keys of what its predecessor has said; ``statelog.py`` says what records there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstore.arrays import Array
from kvstore.rows import Rows, scatter
from kvstore.rules import OptimizerRule, Rule, from_wire
from kvstore.spec import Place, Spec
from kvstore.value import Keeping, Value
from pslite.dtypes import storage
from pslite.errors import KeeperError
from pslite.memory import PLAIN, Memory

from .bundle import NOTHING, Bundle
from .entry import Entry, Number
from .statelog import Contents, without_arrays

Wanted = Sequence[tuple[tuple[int, int], tuple[int, ...], Any]]
"""Places of arrays, with their shapes and dtypes."""


class Rules:
    """The rules of records, made when they are asked for."""

    def __init__(self) -> None:
        self.wires: dict[int, tuple[int, Any]] = {}  # by number: the first of the series, and its wire
        self._made: dict[int, Rule | None] = {0: None}

    def get(self, number: int) -> Rule | None:
        """The rule of this number; one that continues others has their slots and counts."""
        if number not in self._made:
            first, wire = self.wires[number]
            if first == number:
                self._made[number] = from_wire(wire)
            else:
                base = self.get(first)
                assert isinstance(base, OptimizerRule)
                self._made[number] = base.changed(wire[1])
        return self._made[number]


@dataclass(slots=True, eq=False)
class Found:
    """What a predecessor had."""

    rules: Rules
    entries: dict[int, Entry] = field(default_factory=dict)  # by key on the wire
    bundles: dict[bytes, Bundle] = field(default_factory=dict)
    settings: Any = None  # what ``Settings.from_kept`` takes
    parked: dict[tuple[int, int, int], Rule | None] = field(default_factory=dict)  # by rank, key and number: its rule


class _Arrays:
    """The arrays that records name, by their places; all are asked for at once."""

    def __init__(self) -> None:
        self._wanted: dict[tuple[int, int], tuple[tuple[int, ...], Any]] = {}
        self._arrays: dict[tuple[int, int], Array] = {}

    def want(self, contents: Contents) -> None:
        if contents[0] is not None:
            self._wanted[tuple(contents[0])] = tuple(contents[1]), storage(contents[2])

    def find(self, reopen: Callable[[Wanted], list[Array]]) -> None:
        wanted = [(place, shape, dtype) for place, (shape, dtype) in self._wanted.items()]
        self._arrays = dict(zip(self._wanted, reopen(wanted), strict=True))

    def get(self, contents: Contents | None) -> Array:
        if contents is None:
            return NOTHING
        if contents[0] is None:
            return np.empty(tuple(contents[1]), storage(contents[2]))
        return self._arrays[tuple(contents[0])]


class Journal:
    """What records say in the end."""

    def __init__(self) -> None:
        self.rules = Rules()
        self.keys: dict[int, Contents] = {}  # by key on the wire
        self.bundles: dict[int, Contents] = {}
        self.states: dict[int, Contents] = {}  # of both
        self.settings: Contents | None = None
        self.undo: Contents | None = None

    def read(self, kind: str, *record: Any) -> None:
        """Take in the next record."""
        if kind != "rule":
            self.undo = None
        if kind == "rule":
            number, first, wire = record
            self.rules.wires[number] = first, wire
        elif kind == "new":
            self.keys.update((about[0], about) for about in record[0])
            self.states.update((about[0], about[-1]) for about in record[0])
        elif kind == "state":
            self.states[record[0]] = record[1]
        elif kind == "bundle":
            self.bundles[record[0]], self.states[record[0]] = list(record), record[-1]
            for wire in np.frombuffer(record[1], np.uint64).tolist():
                self.states[wire] = without_arrays(self.states[wire])
        elif kind == "end":
            bundle = self.bundles.pop(record[0])
            del self.states[record[0]]
            self.states.update(zip(np.frombuffer(bundle[1], np.uint64).tolist(), record[1], strict=True))
        elif kind == "forgotten":
            for wire in record[0]:
                del self.keys[wire], self.states[wire]
        elif kind == "settings":
            self.settings = list(record)
        else:
            assert kind == "undo", kind
            self.undo = list(record)

    def places(self) -> Iterator[Contents]:
        """Of all arrays that entries have now: place, shape, dtype code."""
        for state in self.states.values():
            if state[4] is not None:
                yield state[4]
            yield from (slot for _, *slot in state[5])


def reopen(
    journal: Journal, arrays: Callable[[Wanted], list[Array]], memory: Memory = PLAIN, kept: Keeping | None = None
) -> Found:
    """What the predecessor had, as values of this memory; ``arrays`` finds those that the records name.

    Raises KeeperError if that makes no sense.
    """
    try:
        return _Reopened(journal, arrays, memory, kept).found
    except (ValueError, TypeError, LookupError, AssertionError) as error:
        raise KeeperError(what="going on from the predecessor's journal", reason=f"{error!r:.200}") from error


class _Reopened:
    """Entries made of a journal."""

    def __init__(
        self, journal: Journal, arrays: Callable[[Wanted], list[Array]], memory: Memory, kept: Keeping | None
    ) -> None:
        self._rules, self._memory, self._kept, self._arrays = journal.rules, memory, kept, _Arrays()
        for contents in journal.places():
            self._arrays.want(contents)
        if journal.undo is not None:
            for contents in (journal.undo[0], *(place for pair in journal.undo[1] for place in pair)):
                self._arrays.want(contents)
        self._arrays.find(arrays)
        if journal.undo is not None:
            ids, pairs = journal.undo
            for array, old in pairs:
                scatter(Rows(self._arrays.get(ids), self._arrays.get(old)), self._arrays.get(array))
        self.found = found = Found(self._rules)
        for wire, (_, about, split, place, _) in journal.keys.items():
            found.entries[wire] = self._entry(about, split, place, journal.states[wire])
        for id, bundle in journal.bundles.items():
            made = self._bundle(bundle, journal.states[id])
            found.bundles[made.id] = made
        assert journal.settings is not None, "a journal begins with the settings"
        found.settings, parked = journal.settings
        found.parked = {(r, wire, number): self._rules.get(rule) for r, wire, number, rule in parked}

    def _value(self, spec: Spec, state: Contents) -> Value:
        version, count, _, rule, data, slots, _ = state
        value = Value(spec, self._arrays.get(data), self._memory, version, kept=self._kept)
        value.count, value.rule = count, self._rules.get(rule)
        value.state = {name: self._arrays.get(slot) for name, *slot in slots}
        return value

    def _entry(self, about: Contents, split: bool, place: Contents | None, state: Contents) -> Entry:
        key, shape, code, sparse = about
        where = None if place is None else Place(place[0], tuple(place[1]), place[2])
        value = self._value(Spec(key, tuple(shape), code, sparse), state)
        return Entry(value, split, rounds=state[2], taken=dict(state[6]), applied=dict(state[6]), place=where)

    def _bundle(self, bundle: Contents, state: Contents) -> Bundle:
        _, keys, versions, begun, bases, _ = bundle
        members = [self.found.entries[wire] for wire in np.frombuffer(keys, np.uint64).tolist()]
        first = members[0].value.spec
        [_, [size], _] = state[4]
        value = self._value(Spec(first.key, (size,), first.code), state)
        applied: dict[int, Number] = {
            rank: _numbers(bases.get(rank), grown, len(members)) for rank, grown in state[6].items()
        }
        made = Bundle(
            value, False, rounds=state[2], taken=dict(applied), applied=applied, id=keys, members=members,
            versions=np.frombuffer(versions, np.uint64).copy(), begun=begun,
        )  # fmt: skip
        for entry in members:
            entry.bundle = made
        return made


def _numbers(base: bytes | None, grown: int | bytes, keys: int) -> Number:
    """The inverse of what ``statelog.py`` says of numbers."""
    if isinstance(grown, bytes):
        return np.array(np.frombuffer(grown, np.uint64))
    before = np.zeros(keys, np.uint64) if base is None else np.frombuffer(base, np.uint64)
    numbers: Number = before + np.uint64(grown)
    return numbers

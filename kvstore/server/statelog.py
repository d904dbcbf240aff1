"""What a server's store says of itself, as records, so that another server can go on with its keys.

A record of an entry says where its arrays are, its counts, and which pushes of each worker are in it. So a round is
there with everything that belongs to it, or not at all. Records are lists of what msgpack has, the last one of an entry
counts:

    rule      [number, number of the first of its series, wire]; before what names it
    new       [[wire, spec, split, place, state], ...]
    state     [id, state]; the id of a key is its wire, that of a bundle is below zero
    bundle    [id, keys, versions, begun, {rank: numbers}, state]
    end       [id, states of its keys]: the bundle is no more
    forgotten [wires]: these keys are no more
    settings  what ``Settings.to_kept`` says, and the rules of pushes that came before them

``kept.py`` writes them to memory that outlives the process, ``replicating.py`` tells them to another server, and
``reopening.py`` makes entries of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import Array
from kvstore.optimizer.base import State
from kvstore.rows import Ids
from kvstore.rules import Rule, wire_of
from kvstore.value import Value
from pslite.errors import PSError
from pslite.memory import Memory

from .bundle import NOTHING, Bundle
from .entry import Entry, Number
from .settings import Settings

_AT_ONCE = 1000  # keys in one record

Contents = list[Any]
"""Plain data, as msgpack has it."""


class StateLog(ABC):
    """Makes the records of a store. Used on the postoffice's leading thread only."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.told = 0  # changes of which a successor knows only when somebody has acknowledged them
        self._settings: Settings
        self._parked: Callable[[], Iterable[tuple[int, int, int, Rule | None]]]
        self._ids: dict[Entry, int] = {}  # of everything that is committed
        self._about: dict[int, Contents] = {}  # by id: the record that made it, but for its state
        self._states: dict[int, Contents] = {}  # by id, as committed last
        self._held: dict[int, list[Array]] = {}  # by id: the arrays that its state names, which must stay
        self._bases: dict[int, dict[int, NDArray[np.uint64]]] = {}  # of bundles: numbers by rank as they were at first
        self._said: Contents = []  # the record of the settings
        self._bundles = 0  # so far
        self._rules: WeakKeyDictionary[Rule, int] = WeakKeyDictionary()  # their numbers
        self._wires: dict[int, Contents] = {}  # by number: the record of a rule
        self._made = 0  # numbers of rules so far
        self._new_rules: list[Contents] = []  # records that the next commit is to have

    # -- what the store says ------------------------------------------------------------------------------------------

    def begin(
        self, entries: dict[int, Entry], bundles: Iterable[Bundle], settings: Settings,
        parked: Callable[[], Iterable[tuple[int, int, int, Rule | None]]]
    ) -> None:  # fmt: skip
        """Begin with all that there is; ``parked``: pushes with the rules of before the settings."""
        self._settings, self._parked = settings, parked
        for wire, entry in entries.items():
            self._note(entry, wire)
        for bundle in bundles:
            self._note_bundle(bundle)
        self._said = self._settings_now()
        self._rewrite()

    def created(self, entries: dict[int, Entry]) -> None:
        """There are new keys."""
        for wire, entry in entries.items():
            self._note(entry, wire)
        self._commit(["new", [[*self._about[wire], self._states[wire]] for wire in entries]])

    def applied(self, entry: Entry) -> PSError | None:
        """A round of an entry is over, or it was changed in another way; returns why that cannot be told."""
        id = self._ids[entry]
        try:
            before = self._take(id, entry)
            self._commit(["state", id, self._states[id]])
        except PSError as error:
            return error
        del before
        return None

    def bundled(self, bundle: Bundle) -> None:
        """Keys have become a bundle."""
        id = self._note_bundle(bundle)
        before = [self._held.pop(self._ids[entry]) for entry in bundle.members]
        for entry in bundle.members:
            wire = self._ids[entry]
            self._states[wire] = without_arrays(self._states[wire])
        self._commit([*self._about[id], self._states[id]])
        del before

    def ended(self, bundle: Bundle) -> None:
        """A bundle has become keys again."""
        id = self._ids.pop(bundle)
        before = self._held.pop(id)
        del self._about[id], self._states[id], self._bases[id]
        for entry in bundle.members:
            self._take(self._ids[entry], entry)
        self._commit(["end", id, [self._states[self._ids[entry]] for entry in bundle.members]])
        del before

    def forgotten(self, entries: Iterable[Entry]) -> None:
        """These keys are no more."""
        wires = [self._ids.pop(entry) for entry in entries]
        before = [self._held.pop(wire) for wire in wires]
        for wire in wires:
            del self._about[wire], self._states[wire]
        self._commit(["forgotten", wires])
        del before

    def set(self) -> None:
        """The settings may have changed."""
        self._said = self._settings_now()
        self._commit(self._said)

    # -- of a value that is changed -----------------------------------------------------------------------------------

    def copied(self, state: State) -> State:
        return {name: self._copy(slot) for name, slot in state.items()}

    @abstractmethod
    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """See ``Keeping``, as for the next one."""

    @abstractmethod
    def overwriting(self, arrays: Sequence[Array], ids: Ids) -> None: ...

    def _copy(self, array: Array) -> Array:
        copy = self.memory.empty(array.shape, array.dtype)
        np.copyto(copy, array)
        return copy

    # -- where records and arrays go ----------------------------------------------------------------------------------

    @abstractmethod
    def _own(self, value: Value) -> None:
        """Have all arrays of a value where they can be told from."""

    @abstractmethod
    def _places(self, id: int, value: Value, arrays: Sequence[Array]) -> list[Contents]:
        """Where a successor finds each of the arrays that an entry has now: place, shape, dtype code."""

    @abstractmethod
    def _write(self, records: Sequence[Contents]) -> None:
        """These records are to count, all or none."""

    @abstractmethod
    def _replace(self, records: Sequence[Contents]) -> None:
        """These stand for all that were written before."""

    # -- records ------------------------------------------------------------------------------------------------------

    def _note(self, entry: Entry, wire: int) -> None:
        spec, place = entry.value.spec, entry.place
        where = None if place is None else [place.first, place.shape, place.flat]
        self._ids[entry] = wire
        self._about[wire] = [wire, [spec.key, spec.shape, spec.code, spec.sparse], entry.split, where]
        self._take(wire, entry)

    def _note_bundle(self, bundle: Bundle) -> int:
        self._bundles += 1
        id = self._ids[bundle] = -self._bundles
        self._bases[id] = {rank: bundle.each(numbers).copy() for rank, numbers in bundle.applied.items()}
        bases = {rank: numbers.tobytes() for rank, numbers in self._bases[id].items()}
        self._about[id] = ["bundle", id, bundle.id, bundle.versions.tobytes(), bundle.begun, bases]
        self._take(id, bundle)
        return id

    def _take(self, id: int, entry: Entry) -> list[Array]:
        """Note the state of an entry for the next commit; returns the arrays of the last one, which stay until then."""
        value = entry.value
        self._own(value)
        self._states[id] = self._state(id, entry)
        before = self._held.get(id, [])
        self._held[id] = [value.data, *value.state.values()]
        return before

    def _commit(self, record: Contents) -> None:
        """Have a record count, with the rules that it names."""
        records, self._new_rules = [*self._new_rules, record], []
        self._write(records)

    def _rewrite(self, last: Sequence[Contents] = ()) -> None:
        """Begin anew with what was committed last, and a record that is no part of that."""
        self._new_rules = []
        _, settings, parked = self._said
        used = {settings["rule"], settings["resumed"], *settings["changed"].values(), *(push[-1] for push in parked)}
        used |= {state[3] for state in self._states.values()} | set(self._rules.values())
        used |= {self._wires[number][2] for number in used - {0}}
        self._wires = {number: self._wires[number] for number in sorted(used - {0})}
        keys = [id for id in self._about if id >= 0]
        records = list(self._wires.values())
        for at in range(0, len(keys), _AT_ONCE):
            records += [["new", [[*self._about[id], self._states[id]] for id in keys[at : at + _AT_ONCE]]]]
        records += [[*about, self._states[id]] for id, about in self._about.items() if id < 0]
        self._replace([*records, self._said, *last])

    def _state(self, id: int, entry: Entry) -> Contents:
        value = entry.value
        own = [] if value.data is NOTHING else [value.data]
        places = iter(self._places(id, value, [*own, *value.state.values()]))
        data = next(places) if own else None
        slots = [[name, *next(places)] for name in value.state]
        applied: dict[int, Any] = dict(entry.applied)
        if (bases := self._bases.get(id)) is not None:
            applied = {rank: _since(bases.get(rank), numbers, entry.keys) for rank, numbers in applied.items()}
        return [value.version, value.count, entry.rounds, self._rule(value.rule), data, slots, applied]

    def _rule(self, rule: Rule | None) -> int:
        """The number of a rule, 0 for none; the next commit says which it is."""
        if rule is None:
            return 0
        number = self._rules.get(rule)
        if number is None:
            self._made = number = self._made + 1
            first = next((self._wires[n][2] for other, n in self._rules.items() if rule.continues(other)), number)
            self._rules[rule] = number
            self._wires[number] = ["rule", number, first, wire_of(rule)]
            self._new_rules.append(self._wires[number])
        return number

    def _settings_now(self) -> Contents:
        parked = [[*push, self._rule(rule)] for *push, rule in self._parked()]
        return ["settings", self._settings.to_kept(self._rule), parked]


def is_table(value: Value, array: Array) -> bool:
    """Whether an array of a value is changed row by row."""
    return value.spec.sparse and array.shape[:1] == value.spec.shape[:1]


def without_arrays(state: Contents) -> Contents:
    """The state of a key whose arrays a bundle has."""
    return [*state[:4], None, [], {}]


def _since(base: NDArray[np.uint64] | None, numbers: Number, keys: int) -> int | bytes:
    """Numbers of a bundle's keys: how much they all have grown, or if that differs the numbers."""
    now = numbers if isinstance(numbers, np.ndarray) else np.full(keys, numbers, np.uint64)
    grown = now if base is None else now - base
    return int(grown[0]) if bool((grown == grown[0]).all()) else now.tobytes()

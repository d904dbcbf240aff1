"""Small keys that are pushed and pulled together: one array, one queue per rank, no step for each key.

A bundle stands for its keys while requests name all of them. It has their values behind each other in one array, the
optimizer's slots likewise, and is an entry like that of a single key. As soon as anything else is asked of one of its
keys it ends: each key gets its part of the arrays, and of everything that waits. So the results are those of single
keys, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import Array
from kvstore.checkpoint.unit import Unit
from kvstore.keys import Key
from kvstore.rules import Rule
from kvstore.spec import Spec
from kvstore.value import Value

from .entry import Contribution, Entry, Number
from .ticket import Ticket

NOTHING = np.empty(0)  # the value of a key while a bundle has it


@dataclass(slots=True, eq=False, kw_only=True)
class Bundle(Entry):
    """The entry of several keys, in the order of their keys on the wire."""

    id: bytes  # its keys on the wire
    members: list[Entry]
    versions: NDArray[np.uint64]  # of the members' values when they were put together; ``value`` counts from there on
    begun: int  # rounds of the first member at that time
    fitting: dict[int, Rule] = field(default_factory=dict)  # by rank: the last rule found to update all keys alike

    @property
    def keys(self) -> int:
        return len(self.members)

    @property
    def version(self) -> NDArray[np.uint64]:
        now: NDArray[np.uint64] = self.versions + np.uint64(self.value.version)
        return now

    @staticmethod
    def of(id: bytes, members: Sequence[Entry]) -> Bundle | None:
        """Put entries together, unless they differ in what one update would have to do, or something waits for one."""
        values = [entry.value for entry in members]
        first = values[0]
        if any(queue for entry in members for queue in entry.queues.values()) or not _alike(first, values):
            return None
        spec = Spec(first.spec.key, (sum(math.prod(v.spec.shape) for v in values),), first.spec.code)
        state = {name: _joined([v.state[name] for v in values]) for name in first.state}
        value = Value(spec, NOTHING, first.memory, state=state, count=first.count, rule=first.rule, kept=first.kept)
        value.replace(_joined([v.data for v in values]))
        versions = np.array([v.version for v in values], np.uint64)
        begun = members[0].rounds
        taken, applied = _columns([entry.taken for entry in members]), _columns([entry.applied for entry in members])
        bundle = Bundle(
            value, False, rounds=begun, taken=taken, applied=applied, id=id, members=list(members), versions=versions,
            begun=begun,
        )  # fmt: skip
        for entry in members:
            entry.bundle = bundle
            entry.value.data, entry.value.spare, entry.value.state = NOTHING, None, {}
        return bundle

    def updates_alike(self, rank: int, rule: Rule | None) -> bool:
        """Whether the rule of this worker's contributions does to all keys at once what it would do to each."""
        if rule is None or self.fitting.get(rank) is rule:
            return True
        if not alike(rule, [entry.value.spec.key for entry in self.members]):
            return False
        self.fitting[rank] = rule
        return True

    def end(self) -> list[Ticket]:
        """Give each key its part of the values and the slots, and of everything that waits; returns whose that was."""
        data, state = self.parts(self.value.data), {n: self.parts(slot) for n, slot in self.value.state.items()}
        versions = self.version.tolist()
        taken = {rank: self.each(numbers) for rank, numbers in self.taken.items()}
        applied = {rank: self.each(numbers) for rank, numbers in self.applied.items()}
        for i, entry in enumerate(self.members):
            value, entry.bundle = entry.value, None
            value.replace(data[i])
            value.version = versions[i]
            value.state = {name: slots[i] for name, slots in state.items()}
            value.count, value.rule = self.value.count, self.value.rule
            entry.rounds += self.rounds - self.begun
            entry.taken = {rank: int(numbers[i]) for rank, numbers in taken.items()}
            entry.applied = {rank: int(numbers[i]) for rank, numbers in applied.items()}
        for rank, queue in self.queues.items():
            for whole in queue:
                self._hand_out(rank, whole)
        return [whole.ticket for queue in self.queues.values() for whole in queue]

    def _hand_out(self, rank: int, whole: Contribution) -> None:
        assert whole.content is None or isinstance(whole.content, np.ndarray), "a bundle has whole values"
        contents = [None] * self.keys if whole.content is None else self.parts(whole.content)
        places, numbers = whole.ticket.per_key(self.keys), self.each(whole.number)
        for i, (entry, content, (ticket, index)) in enumerate(zip(self.members, contents, places, strict=True)):
            entry.add(rank, Contribution(ticket, index, content, None, whole.rule, int(numbers[i]), whole.past))

    def each(self, number: Number) -> NDArray[np.uint64]:
        """A number of every key."""
        return np.broadcast_to(np.asarray(number, np.uint64), (self.keys,))

    def units(self, whole: Unit) -> dict[int, Unit]:
        """Each key's part of what there is to save of all, as views, by key on the wire."""
        parts = {name: self.parts(array) for name, array in whole.arrays.items()}
        units = {}
        for i, (wire, version) in enumerate(zip(np.frombuffer(self.id, np.uint64), self.version, strict=True)):
            units[int(wire)] = Unit({name: own[i] for name, own in parts.items()}, None, int(version), whole.count)
        return units

    def parts(self, flat: Array) -> list[Array]:
        """Each key's part of an array, as a view."""
        return split(flat, [entry.value.spec.shape for entry in self.members])


def alike(rule: Rule | None, keys: Sequence[Key]) -> bool:
    """Whether a rule may update these keys as one array."""
    return rule is None or (rule.splits and rule.trusted and rule.alike(keys))


def split(flat: Array, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    """Views of the arrays that lie behind each other in one."""
    parts, low = [], 0
    for shape in shapes:
        high = low + math.prod(shape)
        parts.append(flat[low:high].reshape(shape))
        low = high
    return parts


def _columns(tables: Sequence[dict[int, Number]]) -> dict[int, Number]:
    """Numbers by rank, of each of several keys."""
    ranks = {rank for table in tables for rank in table}
    return {rank: np.array([table.get(rank, 0) for table in tables], np.uint64) for rank in ranks}


def _joined(arrays: list[Array]) -> Array:
    return np.concatenate([array.reshape(-1) for array in arrays])


def _alike(first: Value, values: list[Value]) -> bool:
    """Whether all values are dense, of one dtype, and were updated alike."""
    slots = {name: slot.dtype for name, slot in first.state.items()}
    return all(
        v.spec.code == first.spec.code
        and not v.spec.sparse
        and v.rule is first.rule
        and v.count == first.count
        and {name: slot.dtype for name, slot in v.state.items()} == slots
        and all(slot.shape == v.spec.shape for slot in v.state.values())
        for v in values
    )

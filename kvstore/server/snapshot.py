"""What a server has, key by key, to be written while training goes on. A state machine without I/O.

Each key is taken at one moment, between two rounds. Its value is not copied, for a dense one never changes in place
while somebody holds it; slots and tables do, and are copied. So a slice takes as long as its copies.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvstore.checkpoint.job import Saved
from kvstore.checkpoint.unit import SLOT, VALUE, Unit
from kvstore.rows import gather
from kvstore.rules import Rule, wire_of
from kvstore.spec import Place
from kvstore.value import Value
from pslite.errors import CheckpointError

from .bundle import Bundle
from .entry import Entry
from .store import Store

COST_OF_A_KEY = 32 * 1024  # bytes that could be copied in the time that a key takes besides


class Snapshot:
    """The keys that are there when it begins. The server's thread takes them, some at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._order = store.keys()[::-1]  # the next one last
        self._left = set(self._order)
        self._kind = _kind(store.settings.rule)
        self.settings = store.settings.to_wire()

    def take(self, limit: int) -> list[Saved]:
        """The next keys, of about so many bytes; none in the end. Raises CheckpointError if it cannot be whole."""
        if _kind(self._store.settings.rule) != self._kind:
            raise CheckpointError(path="", reason="the optimizer or updater was replaced meanwhile")
        taken: list[Saved] = []
        while self._order and limit > 0:
            wire = self._order.pop()
            if wire not in self._left:
                continue  # it was in a bundle with another one
            if wire not in self._store:
                raise CheckpointError(path="", reason="a key was removed meanwhile: who made it was lost")
            for saved in self._saved(wire):
                self._left.discard(saved.wire)
                taken.append(saved)
                limit -= saved.nbytes + COST_OF_A_KEY
        return taken

    def _saved(self, wire: int) -> Iterator[Saved]:
        """A key, and those of its bundle that are not taken yet."""
        rule = self._store.settings.rule
        whole = self._store.whole(wire)
        unit = _copied(whole.value, unit_of(whole.value, rule))
        if not isinstance(whole, Bundle):
            yield _described(wire, whole, unit, whole.rounds)
            return
        members = zip(whole.units(unit).items(), whole.members, strict=True)
        for (other, own), entry in members:
            if other in self._left:
                yield _described(other, entry, own, entry.rounds + whole.rounds - whole.begun)


def unit_of(value: Value, rule: Rule | None) -> Unit:
    """What there is to save of a value if its next update is under this rule. The value stays as it is."""
    unit = value.unit(True, None)
    if value.rule is None or rule is None or value.rule is rule:
        return unit
    if not rule.continues(value.rule):
        unit.arrays = {name: array for name, array in unit.arrays.items() if not name.startswith(SLOT)}
        unit.count = 0
    elif not rule.has_slots_of(value.rule):
        for name, slot in rule.create_state(value.spec, value.data).items():
            unit.arrays.setdefault(SLOT + name, slot if unit.ids is None else gather(slot, unit.ids))
    return unit


def _copied(value: Value, unit: Unit) -> Unit:
    """With memory of its own for all that changes in place."""
    if unit.ids is None:
        held = None if value.spec.sparse else VALUE
        unit.arrays = {name: array if name == held else array.copy() for name, array in unit.arrays.items()}
    return unit


def _described(wire: int, entry: Entry, unit: Unit, rounds: int) -> Saved:
    spec = entry.value.spec
    return Saved(wire, spec, entry.place or Place(0, spec.shape), unit, {"split": entry.split, "rounds": rounds})


def _kind(rule: Rule | None) -> object:
    """What must be the same for all keys of a checkpoint: the optimizer's class, or the updater."""
    wire = wire_of(rule)
    return wire[1][0] if wire[0] == "optimizer" else wire

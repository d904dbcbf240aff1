"""A key's value with everything that belongs to it, and how pushes change it: the same on servers and in local stores.

A dense value is never changed in place: an update writes into the other of its two arrays, because readers may still
hold the last one. Both come from a ``Memory``. A row-sparse value is a table that is changed in place, row by row;
readers get copies of rows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from pslite.dtypes import CODES, storage
from pslite.errors import CheckpointError
from pslite.memory import PLAIN, Memory

from .arrays import Array
from .checkpoint.unit import PULLED, SENT, SLOT, VALUE, Unit
from .compression import Codec, Feedback
from .optimizer.base import State
from .pages import in_small_pages, lazy_zeros
from .rows import Content, Ids, Received, Rows, RowSum, dense, gather, rows_with_bits, scatter, union
from .rules import Change, Rule
from .spec import Spec
from .sums import Sum

_FLOAT32 = CODES["float32"]


class Keeping(Protocol):
    """Has a value outlive this process. Nothing that was committed changes before the next commit, but by undoing."""

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new table."""

    def copied(self, state: State) -> State:
        """Slots to be changed in place."""

    def overwriting(self, arrays: Sequence[Array], ids: Ids) -> None:
        """These rows of arrays are going to be overwritten: until the next commit they can be undone."""


@dataclass(slots=True, eq=False)
class Value:
    """One unit: what a server or a local store keeps for a key. Its owner's lock or thread guards it."""

    spec: Spec
    data: Array  # an array of ``memory``, as is ``spare``; or a table
    memory: Memory = PLAIN
    version: int = 0  # changes of the value
    state: State = field(default_factory=dict)  # the optimizer's slots
    count: int = 0  # updates that the rule has made of this key
    rule: Rule | None = None  # whose slots and count these are
    spare: Array | None = None  # the last value but one: the next is written there if nobody in this process reads it
    sent: Feedback | None = None  # of compressed pulls: what all of them have left out so far
    code: tuple[int, Codec | None, list[Array]] | None = None  # the last one sent: version, codec (None: it is decoded)
    filled: Ids | None = None  # of a table: the other rows are zero. None: any may be something else
    kept: Keeping | None = None  # None: it ends with this process

    @staticmethod
    def create(spec: Spec, content: Content, memory: Memory = PLAIN, kept: Keeping | None = None) -> Value:
        """A new value, a copy; a row-sparse one has these rows, is zero elsewhere, and never in ``memory``."""
        spec.check(content, spec.code)
        value = Value(spec, np.empty(0), memory, kept=kept)
        if isinstance(content, Rows):
            value.data, value.filled = value._table(), content.ids.copy()
            scatter(content, value.data)
            return value
        value.data = value._new()
        np.copyto(value.data, content)
        return value

    def read(self, ids: Ids | None = None, memory: Memory = PLAIN) -> Array:
        """The whole value, or copies of some rows in this memory."""
        if ids is not None:
            return gather(self.data, ids, memory)
        return self.data.copy() if self.spec.sparse else self.data

    @property
    def can_be_coded(self) -> bool:
        """Whether pulls may get a codec's form of the value."""
        return self.spec.code == _FLOAT32 and not self.spec.sparse

    def coded(self, codec: Codec) -> tuple[Codec | None, list[Array]]:
        """This version, compressed; all who pull it get the same. The codec is None if the array is as it arrives."""
        if self.code is None or self.code[0] != self.version or self.code[1] not in (codec, None):
            self.sent = self.sent or Feedback(self.spec.shape)
            salt = codec.salt_of(self.spec.key, self.version, 0)
            [arrays] = self.sent.encode(codec, self.data, None, salt)
            self.code = self.version, codec, arrays
        return self.code[1:]

    # -- on disk ------------------------------------------------------------------------------------------------------

    def unit(self, with_value: bool, rule: Rule | None) -> Unit:
        """Everything to be saved of this key, or its optimizer's part of it; views of the arrays, copies of rows.

        ``rule``: in force for the next update.
        """
        if self.rule is not None and rule is not None and self.rule is not rule:
            self._adopt(rule)  # as the next update would: the slots are to be those of the optimizer that is saved
        arrays = {SLOT + name: slot for name, slot in self.state.items()}
        if with_value:
            arrays[VALUE] = self.data
            if self.sent is not None:
                arrays[SENT] = self.sent.residual
            if self.code is not None and self.code[0] == self.version:
                arrays[PULLED] = self._decoded(*self.code)
        unit = Unit(arrays, version=self.version, count=self.count)
        if self.spec.sparse and all(array.shape[:1] == self.spec.shape[:1] for array in arrays.values()):
            known = self.filled if list(arrays) == [VALUE] else None
            unit.ids = rows_with_bits(list(arrays.values())) if known is None else known
            unit.arrays = {name: gather(array, unit.ids) for name, array in arrays.items()}
        return unit

    def _decoded(self, version: int, codec: Codec | None, arrays: list[Array]) -> Array:
        if codec is None:
            return arrays[0]
        salt = codec.salt_of(self.spec.key, version, 0)
        return codec.decode(arrays, self.data.size, salt).reshape(self.spec.shape)

    def restore(self, unit: Unit, rule: Rule | None) -> None:
        """Become what was saved; ``rule`` is whose slots they are. Raises CheckpointError, and changes nothing."""
        check_unit(self.spec, unit, rule)
        self.state = {}  # first: there is not always memory for two tables
        if VALUE in unit.arrays:
            self.code = self.sent = None
            self._become(unit.arrays[VALUE], unit.ids)
        others = {name: array for name, array in unit.arrays.items() if name != VALUE}
        arrays = {name: _whole(array, unit.ids, self.spec.shape) for name, array in others.items()}
        self.state = {name.removeprefix(SLOT): array for name, array in arrays.items() if name.startswith(SLOT)}
        self.count, self.rule = unit.count, rule if unit.count or self.state else None
        if VALUE in unit.arrays:
            self.version = unit.version
            self.filled = unit.ids if not self.state else None
            if SENT in arrays:
                self.sent = Feedback(self.spec.shape)
                self.sent.residual[...] = arrays[SENT]
            if PULLED in arrays:
                self.code = self.version, None, [arrays[PULLED]]

    def _become(self, data: Array, ids: Ids | None) -> None:
        if self.spec.sparse:
            self.data = np.empty(0)
            self.data = _whole(data, ids, self.spec.shape)
        else:
            self.replace(data if ids is None else _whole(data, ids, self.spec.shape))

    def replace(self, data: Array) -> None:
        """Become these numbers, of a dense value; the rest stays."""
        np.copyto(self._target(), data)
        self._swap()

    # -- a round ------------------------------------------------------------------------------------------------------

    def apply(self, contents: Sequence[Received], rule: Rule | None, rank: int = 0) -> None:
        """Contributions in rank order become the new value; an error, of user code, leaves everything as it was.

        ``rank``: the lowest of the contributing workers.
        """
        received = self._received(contents, rule is not None and rule.widens(self.spec.code))
        if rule is None:
            self._assign(received)
        else:
            self._update(received, rule, rank)
        self.version += 1

    def _received(self, contents: Sequence[Received], wide: bool) -> Sum | RowSum:
        """What all have pushed together: rows if all are rows."""
        rows = [content for content in contents if isinstance(content, Rows)]
        if len(rows) == len(contents):
            return RowSum(rows, self.spec.code, wide)
        terms = [dense(content, self.spec.shape) if isinstance(content, Rows) else content for content in contents]
        return Sum(terms, self.spec.code, wide)

    def _assign(self, received: Sum | RowSum) -> None:
        if self.spec.sparse:
            assert isinstance(received, RowSum)
            self._assign_rows(received.whole())
            return
        target = self._target()
        if isinstance(received, RowSum):
            target[...] = 0
            scatter(received.whole(), target)
        else:
            received.into(target)
        self._swap()

    def _assign_rows(self, rows: Rows) -> None:
        """What the table holds is these rows and nothing else; costs as much as the rows there were and are."""
        if self.filled is None:
            self.data = np.empty(0)  # first: there is not always memory for two tables
            self.data = self._table()
        else:
            if self.kept is not None:
                self.kept.overwriting([self.data], union([self.filled, rows.ids]))
            self.data[self.filled] = 0
        self.filled = rows.ids
        scatter(rows, self.data)

    def _update(self, received: Sum | RowSum, rule: Rule, rank: int) -> None:
        if self.rule is not rule:
            self._adopt(rule)
        if isinstance(received, Sum):
            self._update_all(received, rule, rank)
        elif not rule.by_rows(self.spec.sparse):
            self._update_all(self._sum(dense(received.whole(), self.spec.shape), rule), rule, rank)
        elif rule.streams:
            self._update_all(received, rule, rank)
        else:
            self._update_rows(received.whole(), rule, rank)
        self.filled = None
        self.count += 1

    def _sum(self, merged: Array, rule: Rule) -> Sum:
        """Rows that are summed already."""
        return Sum([merged], _FLOAT32 if rule.widens(self.spec.code) else self.spec.code)

    def _update_all(self, received: Sum | RowSum, rule: Rule, rank: int) -> None:
        in_place = self.spec.sparse and rule.trusted
        state = self.state
        if self.kept is not None:
            state = self._prepared(received, in_place)
        elif not rule.trusted:
            state = {name: slot.copy() for name, slot in state.items()}
        target = self.data if in_place else self._target()
        rule.apply(Change(self.spec, received, self.data, target, state, self.count + 1, rank))
        self.state = state
        if not in_place:
            self._swap()

    def _prepared(self, received: Sum | RowSum, in_place: bool) -> State:
        """The slots to be changed in an update of a value that is kept."""
        assert self.kept is not None
        if in_place and isinstance(received, RowSum):
            self.kept.overwriting([self.data, *self.state.values()], union([rows.ids for rows in received.parts]))
            return self.state
        if in_place:
            self.kept.overwriting([self.data], np.arange(len(self.data)))
        return self.kept.copied(self.state)

    def _update_rows(self, rows: Rows, rule: Rule, rank: int) -> None:
        """Update only these rows, and only their part of the state, on copies."""
        ids = rows.ids
        part = gather(self.data, ids)
        state = {name: gather(slot, ids) for name, slot in self.state.items()}
        rule.apply(Change(self.spec, self._sum(rows.data, rule), part, part, state, self.count + 1, rank, ids))
        target = self.data
        if not self.spec.sparse:
            target = self._target()
            np.copyto(target, self.data)
        if self.kept is not None and self.spec.sparse:
            self.kept.overwriting([target, *self.state.values()], ids)
        elif self.kept is not None:
            self.state = self.kept.copied(self.state)
        scatter(Rows(ids, part), target)
        for name, slot in state.items():
            scatter(Rows(ids, slot), self.state[name])
        if not self.spec.sparse:
            self._swap()

    def _adopt(self, rule: Rule) -> None:
        """Start with another rule: afresh, or with the slots that there are if only hyper-parameters have changed."""
        if self.rule is None or not rule.continues(self.rule):
            self.state, self.count = self._slots(rule), 0
        elif not rule.has_slots_of(self.rule):
            self.state = self._slots(rule) | self.state
        self.rule = rule

    def _slots(self, rule: Rule) -> State:
        slots = rule.create_state(self.spec, self.data)
        return {name: in_small_pages(slot) for name, slot in slots.items()} if self.spec.sparse else slots

    def _target(self) -> Array:
        """``spare``, to write the next value into, or a new one if a reply still reads it; then ``_swap``."""
        spare, self.spare = self.spare, None
        if spare is not None and sys.getrefcount(spare) == _ALONE:
            self.memory.renew(spare)
        else:
            spare = self._new()
        self.spare = spare  # also if the update fails: a value has two arrays, not more
        return spare

    def _swap(self) -> None:
        assert self.spare is not None, "nothing was written"
        self.data, self.spare = self.spare, self.data

    def _table(self) -> Array:
        """Zeros for a row-sparse value."""
        zeros = lazy_zeros if self.kept is None else self.kept.zeros
        return zeros(self.spec.shape, storage(self.spec.code))

    def _new(self) -> Array:
        array = self.memory.empty(self.spec.shape, storage(self.spec.code))
        assert not isinstance(array.base, np.ndarray), "its views would refer to its base, and could not be counted"
        return array


def check_unit(spec: Spec, unit: Unit, rule: Rule | None) -> None:
    """Raise CheckpointError unless a key, or a piece of one, can become what a unit says under a rule."""
    rows = spec.shape if unit.ids is None else (len(unit.ids), *spec.shape[1:])
    data = unit.arrays.get(VALUE)
    if data is not None and (data.shape != rows or data.dtype != storage(spec.code)):
        reason = f"{data.dtype} {data.shape} was saved, the key is of shape {spec.shape}"
        raise CheckpointError(path=f"the value of key {spec.key!r}", reason=reason)
    state = {name.removeprefix(SLOT): array for name, array in unit.arrays.items() if name.startswith(SLOT)}
    if not state and not unit.count:
        return
    where = f"the states of key {spec.key!r}"
    if rule is None:
        raise CheckpointError(path=where, reason="no optimizer or updater is set: call kv.set_optimizer first")
    one = replace(spec, shape=(1, *spec.shape[1:])) if rule.splits and spec.shape else spec  # slots have the key's rows
    expected = rule.create_state(one, np.zeros(one.shape, storage(spec.code)))
    for name in [*expected, *(name for name in state if name not in expected)]:
        slot, base = state.get(name), expected.get(name.split("@")[0])
        shape, dtype = (rows, slot.dtype if slot is not None else None) if base is None else (base.shape, base.dtype)
        if base is not None and shape and (one is not spec or unit.ids is not None):
            shape = (*rows[:1], *shape[1:])
        if slot is None or slot.shape != shape or slot.dtype != dtype:
            found = "missing" if slot is None else f"{slot.dtype} {slot.shape}"
            raise CheckpointError(path=where, reason=f"slot {name!r} is {found}; {rule.what} has {dtype} {shape}")


def _whole(array: Array, ids: Ids | None, shape: tuple[int, ...]) -> Array:
    """A saved array, writable and in memory of its own; zero in the rows that were not saved."""
    if ids is None:
        return np.array(array)
    return dense(Rows(ids, array), (shape[0], *array.shape[1:]))


def _references_of_a_local() -> int:
    """What getrefcount says of an object that one local name holds: it depends on the interpreter's version."""
    local = object()
    return sys.getrefcount(local)


_ALONE = _references_of_a_local()

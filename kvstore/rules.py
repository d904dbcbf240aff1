"""How what is pushed changes what is stored: an optimizer, an updater function, or nothing (assign)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pslite.dtypes import BFLOAT16, CODES
from pslite.errors import ConfigError

from .arrays import LOW_PRECISION, Array, narrow, typed, widen
from .keys import Key
from .optimizer.base import Optimizer, State
from .optimizer.elementwise import Elementwise
from .rows import Ids, Rows, RowSum
from .sparse import RowSparseArray
from .spec import Spec
from .sums import Sum

Updater = Callable[[Key, Any, Any], None]
"""``fn(key, received, stored)`` changes ``stored`` in place."""

_RATES = (  # hyper-parameters that no slot depends on
    "learning_rate", "lr_scheduler", "lr_mult", "wd", "wd_mult", "rescale_grad", "clip_gradient", "begin_num_update",
    "param_dict", "param_idx2name", "lazy_update",
)  # fmt: skip

_UPDATERS: dict[str, Updater] = {}  # by registered name; grows when updater() decorates a function


def updater(name: str) -> Callable[[Updater], Updater]:
    """Register ``fn(key, received, stored)`` so that ``kv.set_updater`` can name it to servers; a decorator.

    Put it above ``kvstore.serve()`` and ``create()``: servers run the script up to that line.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(name="updater", value=f"{name!r:.80}", allowed="give a name: @kvstore.updater('name')")

    def decorate(fn: Updater) -> Updater:
        _UPDATERS[name] = fn
        return fn

    return decorate


def name_of_updater(fn: Updater | str) -> str:
    """The name under which an updater is registered; raises ConfigError if it is not."""
    for name, known in _UPDATERS.items():
        if fn == name or fn is known:
            return name
    shown = fn if isinstance(fn, str) else getattr(fn, "__name__", repr(fn))
    remedy = f"decorate it with @kvstore.updater('name') above create() and serve(); known are {sorted(_UPDATERS)}"
    raise ConfigError(name="updater", value=shown, allowed=remedy)


@dataclass(slots=True, eq=False)
class Change:
    """One update of a key: ``new`` and ``state`` are to be changed, in place; of a part of the rows, if ``ids``."""

    spec: Spec
    received: (
        Sum | RowSum
    )  # of what was pushed, float32 for float16 and bfloat16 if the rule widens; rows if it streams
    old: Array  # the value so far
    new: Array  # the same array, or one of arbitrary contents that becomes the value
    state: State
    count: int  # 1 at the first update
    rank: int  # the lowest of the workers that pushed
    ids: Ids | None = None

    def summed(self) -> Sum:
        """What was received, for a rule that does not stream: rows come as an array beside their ``ids``."""
        assert isinstance(self.received, Sum)
        return self.received

    def stored(self) -> Array:
        """``new`` as users change it: at first it is the value so far."""
        if self.new is not self.old:
            np.copyto(self.new, self.old)
        return self.new


class Rule(Protocol):
    """How what is pushed changes a value. ``trusted``: it cannot fail half way."""

    what: str
    splits: bool  # whether a piece of an array may be updated without the rest
    trusted: bool
    streams: bool  # whether it takes rows as a RowSum, and updates them in the whole array and the whole slots

    def to_wire(self) -> list[Any]:
        """``["optimizer", wire]`` or ``["updater", name]``: what travels to the servers, and into checkpoints."""

    def create_state(self, spec: Spec, value: Array) -> State: ...

    def apply(self, change: Change) -> None: ...

    def alike(self, keys: Sequence[Key]) -> bool:
        """Whether the updates of all these keys differ in their arrays only."""

    def by_rows(self, sparse: bool) -> bool:
        """Whether pushed rows update these rows only, of a row-sparse or a dense value."""

    def widens(self, code: int) -> bool:
        """Whether sums of this dtype come as float32, not rounded."""

    def continues(self, other: Rule) -> bool:
        """Whether the other's slots and counts go on under this rule."""

    def has_slots_of(self, other: Rule) -> bool:
        """Whether this rule's slots are those of the other, which it continues."""


@dataclass(frozen=True, slots=True, eq=False)
class _Series:
    """An optimizer as it was set, with all its later changes: one object for all rules that it makes."""

    wire: list[Any] | None


class OptimizerRule:
    """An optimizer, with slots for every key.

    With ``multi_precision``, float16 and bfloat16 keys have a slot ``master``, the float32 weight that is updated; the
    value is that, rounded. Slots named in ``worker_slots`` exist once per worker, as ``name@rank``.
    Raises ConfigError for what is no optimizer.
    """

    def __init__(self, optimizer: Optimizer, series: _Series | None = None) -> None:
        if not isinstance(optimizer, Optimizer):
            remedy = "give an optimizer: kvstore.optimizer.create('sgd', learning_rate=0.1)"
            raise ConfigError(name="optimizer", value=f"{optimizer!r:.80}", allowed=remedy)
        self.optimizer = optimizer
        self.what = f"the optimizer {type(optimizer).__name__}"
        self.splits = optimizer.elementwise
        self.trusted = type(optimizer).__module__.startswith("kvstore.")
        self.streams = self.trusted and isinstance(optimizer, Elementwise)
        self._wire = _wire_of(optimizer)  # its hyper-parameters as they were when this rule was made
        self._series = _Series(self._wire) if series is None else series

    def refreshed(self) -> OptimizerRule:
        """This rule, or the one that follows it if the optimizer was changed."""
        return self if _wire_of(self.optimizer) == self._wire else OptimizerRule(self.optimizer, self._series)

    def followed_by(self, optimizer: Optimizer) -> OptimizerRule:
        """The rule of an optimizer that is set now: one equal to what was set before changes nothing."""
        new = OptimizerRule(optimizer)
        again = new._wire is not None and new._wire == self._series.wire
        return OptimizerRule(optimizer, self._series) if again else new

    def to_wire(self) -> list[Any]:
        return ["optimizer", self.optimizer.to_wire()]

    def changed(self, wire: Any) -> OptimizerRule:
        """This rule with other hyper-parameters; raises ConfigError if they are of another optimizer."""
        optimizer = Optimizer.from_wire(wire)
        if type(optimizer) is not type(self.optimizer):
            remedy = f"call set_optimizer on every worker to replace {type(self.optimizer).__name__}"
            raise ConfigError(name="optimizer", value=type(optimizer).__name__, allowed=remedy)
        return OptimizerRule(optimizer, self._series)

    def create_state(self, spec: Spec, value: Array) -> State:
        return self.optimizer.create_state_multi_precision(spec.key, typed(value, spec.code))

    def apply(self, change: Change) -> None:
        key, code = change.spec.key, change.spec.code
        state = self._of_worker(change.state, change.rank)
        if self.streams:
            assert isinstance(self.optimizer, Elementwise)
            if isinstance(change.received, Sum):
                self.optimizer.move(key, change.old, change.new, code, change.received, state, change.count)
            else:
                self.optimizer.move_rows(key, change.stored(), code, change.received, state, change.count)
            return
        own = change.summed().view() if self.trusted else change.summed().whole()  # users may write to it
        received = own if self.widens(code) else typed(own, code)
        self.optimizer.update_multi_precision(key, typed(change.stored(), code), received, state, change.count)

    def _of_worker(self, state: State, rank: int) -> State:
        """The slots that this update works on."""
        if not self.optimizer.worker_slots:
            return state
        mine = {name: slot for name, slot in state.items() if "@" not in name}
        for name in self.optimizer.worker_slots:
            own = f"{name}@{rank}"
            if own not in state:
                state[own] = state[name].copy()
            mine[name] = state[own]
        return mine

    def alike(self, keys: Sequence[Key]) -> bool:
        return self.optimizer.treats_alike(keys)

    def by_rows(self, sparse: bool) -> bool:
        return self.optimizer.lazy_update and not self.optimizer.worker_slots

    def widens(self, code: int) -> bool:
        return self.optimizer.multi_precision and code in LOW_PRECISION

    def continues(self, other: Rule) -> bool:
        return isinstance(other, OptimizerRule) and other._series is self._series

    def has_slots_of(self, other: Rule) -> bool:
        assert isinstance(other, OptimizerRule)
        if self._wire is None or other._wire is None:
            return False
        mine, theirs = self._wire[1], other._wire[1]
        return all(mine[name] == theirs[name] for name in mine if name not in _RATES)


class UpdaterRule:
    """A user's function; bfloat16 values are handed to it as float32, rows as RowSparseArrays."""

    splits = False
    trusted = False
    streams = False

    def __init__(self, fn: Updater, name: str) -> None:
        self._fn = fn
        self._name = name
        self.what = f"the updater {name!r}"

    def to_wire(self) -> list[Any]:
        return ["updater", self._name]

    def create_state(self, spec: Spec, value: Array) -> State:
        return {}

    def apply(self, change: Change) -> None:
        code = change.spec.code
        data, received = change.stored(), change.summed().whole()
        stored = widen(data, code) if code == BFLOAT16 else data
        received = widen(received, code) if code == BFLOAT16 else received
        if change.ids is None:
            self._fn(change.spec.key, received, stored)
        else:
            self._on_rows(change, received, stored)
        if code == BFLOAT16:
            narrow(stored, data, code)

    def _on_rows(self, change: Change, received: Array, stored: Array) -> None:
        assert change.ids is not None
        code = CODES["float32"] if change.spec.code == BFLOAT16 else change.spec.code
        rows = RowSparseArray(Rows(change.ids.copy(), stored), code, change.spec.shape)
        self._fn(change.spec.key, RowSparseArray(Rows(change.ids.copy(), received), code, change.spec.shape), rows)
        if not np.array_equal(rows.indices, change.ids):
            raise ConfigError(name=self.what, value="other rows", allowed="change the rows that were received only")
        stored[...] = rows.data

    def alike(self, keys: Sequence[Key]) -> bool:
        return False

    def by_rows(self, sparse: bool) -> bool:
        return sparse

    def widens(self, code: int) -> bool:
        return False

    def continues(self, other: Rule) -> bool:
        return other is self

    def has_slots_of(self, other: Rule) -> bool:
        return True


def _wire_of(optimizer: Optimizer) -> list[Any] | None:
    """The optimizer as it would travel; None for one that cannot, which a local store may still use."""
    try:
        return optimizer.to_wire()
    except ConfigError:
        return None


def updater_named(name: str) -> UpdaterRule:
    """The registered updater; raises ConfigError if there is none."""
    name = name_of_updater(name)
    return UpdaterRule(_UPDATERS[name], name)


ASSIGN = ["assign"]  # the wire of no rule: what is pushed replaces what is stored


def from_wire(wire: Any) -> Rule | None:
    """The rule that ``to_wire`` described, of registered names only; raises ConfigError."""
    if wire == ASSIGN:
        return None
    if isinstance(wire, list) and len(wire) == 2 and wire[0] == "optimizer":
        return OptimizerRule(Optimizer.from_wire(wire[1]))
    if isinstance(wire, list) and len(wire) == 2 and wire[0] == "updater":
        return updater_named(str(wire[1]))
    raise ConfigError(name="rule", value=f"{wire!r:.100}", allowed="an optimizer, an updater or assign")


def continuing(before: Rule | None, rule: Rule | None) -> Rule | None:
    """The rule to be set after a restart, whose slots and counts are those of the rule that was in force before.

    Its hyper-parameters count. Raises ConfigError for an optimizer of another class, or another updater.
    """
    if before is None or rule is None:
        return rule
    if isinstance(before, OptimizerRule) and states_of(before) == states_of(rule):
        return before.changed(rule.to_wire()[1])
    if before.to_wire() == rule.to_wire():
        return before
    raise ConfigError(name="rule", value=rule.what, allowed=f"the checkpoint was made with {before.what}")


def checked_states(rule: Rule | None) -> None:
    """Raise unless the rule has states to save."""
    if not isinstance(rule, OptimizerRule):
        got = "no updater" if rule is None else rule.what
        raise ConfigError(name="rule", value=got, allowed="only an optimizer has states: call set_optimizer first")


def wire_of(rule: Rule | None) -> list[Any]:
    """What ``from_wire`` makes the rule of."""
    return ASSIGN if rule is None else rule.to_wire()


def states_of(rule: Rule | None) -> str | None:
    """The name of the optimizer whose slots a store has."""
    return str(rule.to_wire()[1][0]) if isinstance(rule, OptimizerRule) else None


def resumed(mine: Rule | None, wire: Any, states: str | None = None) -> Rule | None:
    """The rule to go on with after a checkpoint's was loaded.

    ``wire`` is None if the checkpoint has none; then ``states`` still says which optimizer's slots it has.

    An optimizer of the same class takes over the saved hyper-parameters, as a new one. Raises ConfigError.
    """
    if wire is None and states is not None and mine is not None and states_of(mine) != states:
        allowed = f"the states are those of the optimizer {states!r}"
        raise ConfigError(name="optimizer", value=mine.what, allowed=allowed)
    if wire is None or wire == ASSIGN:
        return mine
    if mine is None:
        return from_wire(wire)
    if not isinstance(mine, OptimizerRule) and mine.to_wire() == wire:
        return mine
    saved = from_wire(wire)
    assert saved is not None
    if states_of(mine) == states_of(saved) is not None:
        assert isinstance(mine, OptimizerRule)
        return mine.changed(wire[1])
    raise ConfigError(name="rule", value=mine.what, allowed=f"the checkpoint was made with {saved.what}")

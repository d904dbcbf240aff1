"""How what is pushed changes what is stored: an optimizer, an updater function, or nothing (assign)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from pslite.dtypes import BFLOAT16
from pslite.errors import ConfigError

from .arrays import Array, narrow, widen
from .bfloat16 import bfloat16
from .keys import Key
from .optimizer.base import Optimizer, State

Updater = Callable[[Key, Any, Any], None]
"""``fn(key, received, stored)`` changes ``stored`` in place."""

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


class Rule(Protocol):
    """Applies a merged gradient to a value, in place. ``trusted``: it cannot fail half way."""

    what: str
    splits: bool  # whether a piece of an array may be updated without the rest
    trusted: bool

    def create_state(self, key: Key, value: Array, code: int) -> State: ...

    def apply(self, key: Key, received: Array, stored: Array, state: State, count: int, code: int) -> None: ...


class OptimizerRule:
    """An optimizer, with slots for every key."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.what = f"the optimizer {type(optimizer).__name__}"
        self.splits = optimizer.elementwise
        self.trusted = type(optimizer).__module__.startswith("kvstore.")

    def create_state(self, key: Key, value: Array, code: int) -> State:
        return self.optimizer.create_state(key, _typed(value, code))

    def apply(self, key: Key, received: Array, stored: Array, state: State, count: int, code: int) -> None:
        self.optimizer.update(key, _typed(stored, code), _typed(received, code), state, count)


class UpdaterRule:
    """A user's function; bfloat16 values are handed to it as float32."""

    splits = False
    trusted = False

    def __init__(self, fn: Updater, name: str) -> None:
        self._fn = fn
        self.what = f"the updater {name!r}"

    def create_state(self, key: Key, value: Array, code: int) -> State:
        return {}

    def apply(self, key: Key, received: Array, stored: Array, state: State, count: int, code: int) -> None:
        if code != BFLOAT16:
            self._fn(key, received.copy(), stored)  # a function may write to what it receives
            return
        wide = widen(stored, code).copy()
        self._fn(key, widen(received, code).copy(), wide)
        narrow(wide, stored, code)


def _typed(data: Array, code: int) -> Array | bfloat16:
    return bfloat16(data) if code == BFLOAT16 else data


def updater_named(name: str) -> UpdaterRule:
    """The registered updater; raises ConfigError if there is none."""
    name = name_of_updater(name)
    return UpdaterRule(_UPDATERS[name], name)


def to_wire(rule: Optimizer | Updater | str | None) -> list[Any]:
    """``["optimizer", wire]``, ``["updater", name]`` or ``["assign"]``: what travels to the servers."""
    if rule is None:
        return ["assign"]
    if isinstance(rule, Optimizer):
        return ["optimizer", rule.to_wire()]
    return ["updater", name_of_updater(rule)]


def from_wire(wire: Any) -> Rule | None:
    """The rule that ``to_wire`` described, of registered names only; raises ConfigError."""
    if wire == ["assign"]:
        return None
    if isinstance(wire, list) and len(wire) == 2 and wire[0] == "optimizer":
        return OptimizerRule(Optimizer.from_wire(wire[1]))
    if isinstance(wire, list) and len(wire) == 2 and wire[0] == "updater":
        return updater_named(str(wire[1]))
    raise ConfigError(name="rule", value=f"{wire!r:.100}", allowed="an optimizer, an updater or assign")


def apply_safely(rule: Rule, key: Key, received: Array, value: Array, target: Array, state: State, count: int,
                 code: int) -> State:  # fmt: skip
    """Write the updated value into ``target`` and return the new state; an error leaves value and state as they are."""
    scratch = state if rule.trusted else {name: slot.copy() for name, slot in state.items()}
    np.copyto(target, value)
    rule.apply(key, received, target, scratch, count, code)
    return scratch

"""The stores of one process: 'local' and 'device'. The numbers are those of dist_sync with one worker."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from pslite.dtypes import BFLOAT16, NAMES
from pslite.errors import ClosedError, ConfigError, DTypeError, DuplicateKeyError, ShapeError

from .arrays import Array, Tensor, accumulate, check_out, read, write
from .base import KVStore, results
from .bfloat16 import bfloat16
from .handle import Handle
from .keys import Group, Key, group
from .optimizer.base import Optimizer, State
from .rules import OptimizerRule, Rule, Updater, UpdaterRule, apply_safely, updater_named


class _Value:
    """A key's value with everything that belongs to it. Changed under the store's lock."""

    def __init__(self, tensor: Tensor, order: int) -> None:
        self.data: Array = tensor.data.copy()
        self.code = tensor.code
        self.order = order  # keys are updated in this order: ints by value, strings by first init
        self.state: State = {}
        self.rule: Rule | None = None  # whose state and count these are
        self.count = 0
        self.version = 0


class LocalStore(KVStore):
    """Values in this process; ``rank`` is 0, ``num_workers`` 1, barriers and commands do nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._lock = threading.RLock()  # an updater may use the store; guards all below
        self._values: dict[Key, _Value] = {}
        self._rule: Rule | None = None
        self._closed = False

    def init(self, key: Any, value: Any) -> None:
        with self._lock:
            self._check_open()
            tensors: dict[Key, Tensor] = {}
            for g in group(key, value):
                self._check_type(g.key)
                tensors[g.key], *others = [read(array, g.key) for array in g.arrays]
                if g.key in self._values or others:
                    raise DuplicateKeyError(key=g.key)
            for k, tensor in tensors.items():
                self._key_type = type(k)
                self._values[k] = _Value(tensor, k if isinstance(k, int) else len(self._values))

    def push(self, key: Any, value: Any, priority: int = 0) -> Handle:
        with self._lock:
            self._check_open()
            self._push(self._groups(key, value, self._values))
        return Handle()

    def _push(self, groups: list[Group]) -> None:
        merged = [(g.key, self._values[g.key], self._merge(g)) for g in groups]
        for key, value, received in sorted(merged, key=lambda m: m[1].order):
            if self._rule is None:
                value.data = received
            else:
                self._update(key, value, self._rule, received)
            value.version += 1

    def _merge(self, g: Group) -> Array:
        value = self._values[g.key]
        tensors = [read(a, g.key) for a in g.arrays]
        for tensor in tensors:
            check_value(g.key, tensor, value.data.shape, value.code)
        return accumulate([t.data for t in tensors], value.code)

    def _update(self, key: Key, value: _Value, rule: Rule, received: Array) -> None:
        if value.rule is not rule:
            value.state, value.count, value.rule = rule.create_state(key, value.data, value.code), 0, rule
        target = np.empty_like(value.data)
        value.state = apply_safely(rule, key, received, value.data, target, value.state, value.count + 1, value.code)
        value.data = target
        value.count += 1

    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True, wait: bool = True) -> Any:
        with self._lock:
            self._check_open()
            result = self._pull(key, out)
        return result if wait else Handle(result=result)

    def _pull(self, key: Any, out: Any) -> Any:
        if out is None:
            keys = self._keys(key, self._values)
            values = {k: returned(self._values[k].data.copy(), self._values[k].code) for k in keys}
            return results(keys, isinstance(key, (list, tuple)), values)
        self._fill(self._outs(key, out))
        return None

    def _outs(self, key: Any, out: Any) -> list[Group]:
        """The groups of ``out``, each array known to take its key's value: nothing is written if one does not."""
        groups = self._groups(key, out, self._values, "out")
        for g in groups:
            for array in g.arrays:
                check_out(array, self._values[g.key].data.shape, g.key)
        return groups

    def _fill(self, outs: list[Group]) -> None:
        for g in outs:
            value = self._values[g.key]
            for array in g.arrays:
                write(array, value.data, value.code, g.key)

    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0, wait: bool = True) -> Any:
        with self._lock:
            self._check_open()
            groups = self._groups(key, value, self._values)
            outs = self._outs(key, value if out is None else out)
            self._push(groups)
            self._fill(outs)
        return None if wait else Handle()

    def set_optimizer(self, optimizer: Optimizer) -> None:
        with self._lock:
            self._rule = OptimizerRule(checked_optimizer(optimizer))

    def set_updater(self, updater: Updater | str) -> None:
        with self._lock:
            if callable(updater):
                self._rule = UpdaterRule(updater, getattr(updater, "__name__", "updater"))
            else:
                self._rule = updater_named(updater)

    @property
    def rank(self) -> int:
        return 0

    @property
    def num_workers(self) -> int:
        return 1

    def version(self, key: Key) -> int:
        with self._lock:
            return self._values[self._keys(key, self._values)[0]].version

    def barrier(self, timeout: float | None = None) -> None:
        self._check_open()

    def send_command_to_servers(self, head: int, body: Any) -> None:
        self._check_open()

    def close(self, join: bool = False) -> None:
        self._closed = True

    def _fail(self, error: BaseException) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(what="the store")


def check_value(key: Key, tensor: Tensor, shape: tuple[int, ...], code: int) -> None:
    """Raise unless a pushed value has the shape and dtype of its key."""
    if tensor.shape != shape:
        raise ShapeError(key=key, got=list(tensor.shape), expected=list(shape))
    if tensor.code != code:
        raise DTypeError(key=key, got=NAMES[tensor.code], expected=NAMES[code])


def checked_optimizer(optimizer: Any) -> Optimizer:
    """The argument of ``set_optimizer``; raises ConfigError if it is none."""
    if not isinstance(optimizer, Optimizer):
        remedy = "give an optimizer: kvstore.optimizer.create('sgd', learning_rate=0.1)"
        raise ConfigError(name="optimizer", value=f"{optimizer!r:.80}", allowed=remedy)
    return optimizer


def returned(data: Array, code: int) -> Any:
    """A pulled value as users get it."""
    return bfloat16(data) if code == BFLOAT16 else data

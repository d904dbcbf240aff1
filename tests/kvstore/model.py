"""What a store does, said as directly as possible in plain numpy: no messages, no pieces, nothing at the same time.

Every key keeps its whole history. A worker that has pushed a key n times pulls what the key was after n rounds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kvstore.sparse import RowSparseArray
from pslite.errors import (
    ConfigError,
    DTypeError,
    DuplicateKeyError,
    KeyTypeError,
    RowIndexError,
    ShapeError,
    StorageError,
    UnknownKeyError,
)

POISON = 60000.0  # the updater raises for larger numbers


class Rule(NamedTuple):
    kind: str  # 'sgd', 'test' or 'mix', an updater
    lr: float = 0.0
    momentum: float = 0.0
    lazy: bool = False  # pushed rows change these rows and their momentum only
    series: int = 0  # momentum goes on under rules of one series only


class Push(NamedTuple):
    """A worker's contribution to a round: a whole array, with zeros in the rows that were not pushed."""

    data: Any
    there: Any  # which rows were; None for a dense one
    rule: Rule | None


@dataclass
class Entry:
    sparse: bool
    split: bool
    values: list[Any]  # after each round
    pushed: dict[int, int]  # how often, by rank
    versions: list[int] = field(default_factory=lambda: [0])
    errors: list[Any] = field(default_factory=lambda: [None])
    parked: dict[int, deque[Push]] = field(default_factory=dict)
    mom: Any = None
    series: int = -1


class Model:
    """All workers' view of the keys; methods are those of a store, with the rank of the worker that calls."""

    def __init__(self, workers: int, servers: int = 1, bound: int = 10**6, local: bool = False) -> None:
        self.members, self.servers, self.bound, self.local = set(range(workers)), servers, bound, local
        self.keys: dict[Any, Entry] = {}
        self.known: set[Any] = set()  # (rank, key) of init
        self.rules: list[Rule | None] = [None] * workers  # of what each worker pushes next
        self.said: Any = None
        self.series = 0
        self.threshold: float | None = None
        self.residuals: dict[Any, Any] = {}

    def init(self, rank: int, key: Any, array: Any) -> None:
        if (rank, key) in self.known:
            raise DuplicateKeyError(key=key)
        self.check_type(key)
        data, there = whole(array)
        if key in self.keys:
            self.compare(key, data, (there is not None) == self.keys[key].sparse)
        else:
            split = self.servers > 1 and data.size >= self.bound and data.shape[0] > 1
            split = split and (self.rules[0] is None or self.rules[0].kind != "mix")
            self.keys[key] = Entry(there is not None, split, [data], dict.fromkeys(self.members, 0))
        self.known.add((rank, key))

    def check_type(self, key: Any) -> None:
        if any(type(other) is not type(key) for other in self.keys):
            raise KeyTypeError(key=key, reason="mixed")

    def compare(self, key: Any, data: Any, fits: bool) -> None:
        expected = self.keys[key].values[0]
        if data.dtype != expected.dtype:
            raise DTypeError(key=key, got=str(data.dtype), expected=str(expected.dtype))
        if data.shape != expected.shape:
            raise ShapeError(key=key, got=list(data.shape), expected=list(expected.shape))
        if not fits:
            raise StorageError(key=key, got="", expected="")

    def look_up(self, rank: int, key: Any) -> Entry:
        self.check_type(key)
        if (rank, key) not in self.known:
            raise UnknownKeyError(key=key)
        return self.keys[key]

    # -- calls that push and pull return, by key, the round whose value they see --------------------------------------

    def push(self, rank: int, keys: list[Any], values: list[list[Any]]) -> dict[Any, int]:
        summed = {}
        for key, arrays in zip(keys, values, strict=True):
            entry, parts = self.look_up(rank, key), [whole(array) for array in arrays]
            for data, there in parts:
                self.compare(key, data, there is not None or not entry.sparse)
            if len({there is None for _, there in parts}) > 1:
                raise StorageError(key=key, got="both", expected="one")
            summed[key] = parts
        for key, [(data, there), *_] in summed.items() if self.threshold else ():
            if there is not None:
                raise StorageError(key=key, got="rows", expected="dense")
            if data.dtype != np.float32:
                raise DTypeError(key=key, got=str(data.dtype), expected="float32")
        for key, parts in summed.items():
            entry = self.keys[key]
            entry.parked.setdefault(rank, deque()).append(Push(*self.over_devices(rank, key, parts), self.rules[rank]))
            entry.pushed[rank] += 1
            self.advance(entry)
        return {key: self.keys[key].pushed[rank] for key in keys}

    def pull(self, rank: int, keys: list[Any]) -> dict[Any, int]:
        return {key: self.look_up(rank, key).pushed[rank] for key in keys}

    def row_sparse_pull(self, rank: int, key: Any, ids: list[int]) -> dict[Any, int]:
        entry = self.look_up(rank, key)
        if not entry.sparse:
            raise StorageError(key=key, got="dense", expected="sparse")
        if any(not 0 <= i < len(entry.values[0]) for i in ids):
            raise RowIndexError(key=key, got=str(ids), rows=len(entry.values[0]))
        return {key: entry.pushed[rank]} if ids else {}

    def done(self, rounds: dict[Any, int]) -> bool:
        return all(len(self.keys[key].values) > n for key, n in rounds.items())

    def errors(self, rounds: dict[Any, int]) -> set[Any]:
        """What may end a push of these rounds, even if some are not complete."""
        return {error for key, n in rounds.items() for error in self.keys[key].errors[n : n + 1] if error}

    # -- what a push becomes ------------------------------------------------------------------------------------------

    def over_devices(self, rank: int, key: Any, parts: list[Any]) -> Any:
        """The sum over the devices; compression is before it on local stores and behind it on others."""
        if parts[0][1] is not None:
            return total(parts)
        if self.local:
            return total([(self.compressed((key, i), data), None) for i, (data, _) in enumerate(parts)])
        return self.compressed((key, rank), total(parts)[0]), None

    def compressed(self, stream: Any, data: Any) -> Any:
        """MXNet's 2bit, with what it held back; without compression that comes with the next push."""
        if self.threshold is None:
            return data + self.residuals.pop(stream) if stream in self.residuals else data
        rest, t = self.residuals.get(stream, np.float32(0)) + data, np.float32(self.threshold)
        sent = np.where(rest >= t, t, np.where(rest <= -t, -t, np.float32(0)))
        self.residuals[stream] = rest - sent
        return sent

    def advance(self, entry: Entry) -> None:
        """Every round that is complete: contributions in the order of ranks, with the rule of the lowest."""
        while any(entry.parked.values()) and all(entry.parked.get(rank) for rank in self.members):
            pushes = [entry.parked[rank].popleft() for rank in sorted(entry.parked) if entry.parked[rank]]
            value = entry.values[-1]
            data, there = total([(p.data, p.there) for p in pushes])
            new, error = self.changed(entry, value, data, there, pushes[0].rule)
            entry.values.append(value if error else np.asarray(new))
            entry.versions.append(entry.versions[-1] + (error is None))
            entry.errors.append(error)

    def changed(self, entry: Entry, value: Any, data: Any, there: Any, rule: Rule | None) -> tuple[Any, Any]:
        """The next value, or the error of the rule."""
        if rule is None:
            return data, None
        if rule.series != entry.series:
            entry.series, entry.mom = rule.series, np.zeros_like(value)
        mom, grad = entry.mom, data.astype(np.float32)
        if rule.kind == "mix":
            if (data > POISON).any():
                return None, "the updater's"
            new, by_rows = data - value, entry.sparse
        elif value.dtype.kind != "f":
            return None, DTypeError
        else:
            if rule.kind == "sgd":
                grad = mom.astype(np.float32) * np.float32(rule.momentum) - grad * np.float32(rule.lr)
                mom = grad.astype(value.dtype)
            new, by_rows = (value.astype(np.float32) + grad).astype(value.dtype), rule.lazy
        rows = there if there is not None and by_rows else ...
        changed = value.copy()
        changed[rows], entry.mom[rows] = np.asarray(new)[rows], np.asarray(mom)[rows]
        return changed, None

    # -- the job ------------------------------------------------------------------------------------------------------

    def set_rule(self, kind: str, lr: float = 0.0, momentum: float = 0.0, lazy: bool = False) -> None:
        """On all workers. To say the same again changes nothing."""
        if kind == "mix" and any(entry.split for entry in self.keys.values()):
            raise ConfigError(name="rule", value=kind, allowed="")
        self.series += self.said != (kind, lr, momentum, lazy)
        self.said = kind, lr, momentum, lazy
        self.rules = [Rule(kind, lr, momentum, lazy, self.series)] * len(self.rules)

    def leave(self, rank: int) -> None:
        self.members.discard(rank)
        for entry in self.keys.values():
            self.advance(entry)


def whole(array: Any) -> tuple[Any, Any]:
    """An array with zeros in the rows that are not there, and which ones are; None of a dense one."""
    if not isinstance(array, RowSparseArray):
        return array.copy(), None
    data, there = np.zeros(array.shape, array.dtype), np.zeros(array.shape[0], bool)
    data[array.indices], there[array.indices] = array.data, True
    return data, there


def total(parts: list[Any]) -> tuple[Any, Any]:
    """The sum from left to right, of float16 in float32; rows if all are."""
    dtype = parts[0][0].dtype
    data = parts[0][0].astype(np.float32 if dtype == np.float16 else dtype)
    for other, _ in parts[1:]:
        data = data + other
    there = None if any(t is None for _, t in parts) else np.logical_or.reduce([t for _, t in parts])
    return data.astype(dtype), there

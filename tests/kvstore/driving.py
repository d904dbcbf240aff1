"""Drives the server's brain by hand: one thread, no van, requests in exactly the order that a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvstore.arrays import Array, read
from kvstore.keys import Key
from kvstore.rows import Content
from kvstore.server.store import New, Store, Ticket
from kvstore.sparse import RowSparseArray
from kvstore.spec import Spec

Answers = list[tuple[Any, Any]]
"""(token, result) of the requests that a step answered, in order: a list of arrays, None for a push, or the error."""


class Driver:
    """A Store whose keys on the wire are numbered in the order of ``init``."""

    def __init__(self, workers: int, sync: bool = True) -> None:
        self.store = Store(workers)
        self._wire: dict[Key, int] = {}
        self.agree(0, "type", "sync" if sync else "async")

    def init(self, split: bool = False, **values: Any) -> None:
        for name, value in values.items():
            wire = self._wire.setdefault(name, len(self._wire))
            [(_, result)] = answers(self.store.init(name, 0, {wire: _new(name, split, value)}))
            assert result is None, result

    def push(self, rank: int, token: Any = None, pull: bool = False, **values: Any) -> Answers:
        """The pushed arrays are read-only and the store's own, as if they came from the van."""
        contents = [_content(value) for value in values.values()]
        keys = [self._wire[name] for name in values]
        return answers(self.store.request(token, rank, keys, contents, pull=pull))

    def pushpull(self, rank: int, token: Any = None, **values: Any) -> Answers:
        return self.push(rank, token, pull=True, **values)

    def pull(self, rank: int, *names: Key, token: Any = None) -> Answers:
        return answers(self.store.request(token, rank, [self._wire[n] for n in names], pull=True))

    def pull_rows(self, rank: int, name: Key, ids: Sequence[int], token: Any = None) -> Answers:
        wanted = [np.array(ids, np.int64)]
        return answers(self.store.request(token, rank, [self._wire[name]], wanted=wanted, pull=True))

    def value(self, name: Key) -> Array:
        """What a worker that has pushed nothing reads."""
        [(_, values)] = answers(self.store.request(None, 10**6, [self._wire[name]], pull=True))
        result: Array = values[0]
        return result

    def agree(self, rank: int, what: str, value: Any, token: Any = None) -> Answers:
        return answers(self.store.settings.agree(token, rank, what, value))

    def missing(self, token: Any) -> list[str]:
        return self.store.missing(lambda candidate: candidate == token)


def answers(tickets: Sequence[Ticket]) -> Answers:
    return [(t.token, t.error if t.error is not None else pulled(t)) for t in tickets]


def pulled(ticket: Ticket) -> list[Array] | None:
    return [a.arrays[0] for a in ticket.answers if a is not None] if ticket.pull else None


def _content(value: Any) -> tuple[Content, int]:
    """A pushed value, read-only and the store's own, as if it came from the van."""
    if isinstance(value, RowSparseArray):
        rows = value.copy()._rows
        rows.data.flags.writeable = rows.ids.flags.writeable = False
        return rows, value._code
    tensor = read(np.array(value))
    tensor.data.flags.writeable = False
    return tensor.data, tensor.code


def _new(name: Key, split: bool, value: Any) -> New:
    content, code = _content(value)
    sparse = isinstance(value, RowSparseArray)
    return New(Spec(name, value.shape if sparse else content.shape, code, sparse), split, content)

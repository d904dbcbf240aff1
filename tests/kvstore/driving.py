"""Drives the server's brain by hand: one thread, no van, requests in exactly the order that a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvstore.arrays import Array, read
from kvstore.keys import Key
from kvstore.server.store import Store, Ticket

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
            tensor = read(np.asarray(value))
            [(_, result)] = answers(self.store.init(name, 0, [(name, split)], [wire], [tensor.data], [tensor.code]))
            assert result is None, result

    def push(self, rank: int, token: Any = None, pull: bool = False, **values: Any) -> Answers:
        """The pushed arrays are read-only and the store's own, as if they came from the van."""
        tensors = [read(np.array(value)) for value in values.values()]
        for tensor in tensors:
            tensor.data.flags.writeable = False
        keys = [self._wire[name] for name in values]
        codes = [tensor.code for tensor in tensors]
        return answers(self.store.request(token, rank, keys, [t.data for t in tensors], codes, pull))

    def pushpull(self, rank: int, token: Any = None, **values: Any) -> Answers:
        return self.push(rank, token, pull=True, **values)

    def pull(self, rank: int, *names: Key, token: Any = None) -> Answers:
        return answers(self.store.request(token, rank, [self._wire[n] for n in names], [], [], True))

    def value(self, name: Key) -> Array:
        """What a worker that has pushed nothing reads."""
        [(_, values)] = answers(self.store.request(None, 10**6, [self._wire[name]], [], [], True))
        result: Array = values[0]
        return result

    def agree(self, rank: int, what: str, value: Any, token: Any = None) -> Answers:
        return answers(self.store.agree(token, rank, what, value))

    def missing(self, token: Any) -> list[str]:
        return self.store.missing(lambda candidate: candidate == token)


def answers(tickets: Sequence[Ticket]) -> Answers:
    return [(t.token, t.error if t.error is not None else t.values if t.pull else None) for t in tickets]

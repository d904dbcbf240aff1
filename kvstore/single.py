"""Calls with one small key: what such a key comes to on the wire is found once, and a call is one message.

Its arrays must be plain and exactly as at init; any others are left to the general path, which says what is wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pslite import KVPairs
from pslite.errors import ProtocolError

from .arrays import Array
from .ledger import PULL, PULL_RAW, PUSH, PUSH_RAW, PUSHES, Ledger, change
from .records import Record


class Small:
    """A small dense key on one server. Nothing of it changes. ``starts``: the servers' first keys on the wire."""

    def __init__(self, record: Record, starts: Sequence[int]) -> None:
        self.record = record
        self.key, self.shape, self.dtype = record.key, record.spec.shape, record.dtype
        wire, nbytes = record.pieces[0].wire, record.spec.nbytes
        self.server = bisect_right(starts, wire) - 1
        self.number = wire - starts[self.server]  # on its server, in the order of init
        self.at = np.array([record.at], np.intp)
        self._wire = np.array([wire], np.uint64)
        self._codes = [record.spec.code]
        self._push = change({PUSHES: 1, PUSH: nbytes, PUSH_RAW: nbytes})
        self._pull = change({PULL: nbytes, PULL_RAW: nbytes})

    def takes(self, array: Any) -> bool:
        """Whether this is a plain array of the key's shape and dtype."""
        return type(array) is np.ndarray and array.shape == self.shape and array.dtype == self.dtype

    def pushed(self, array: Array, ledger: Ledger) -> KVPairs:
        """What is pushed, a copy, and counted."""
        counts: NDArray[np.uint64] = ledger.step(self.record.at, self._push).astype(np.uint64)
        return KVPairs(self._wire, [array.copy()], None, counts[:1], counts[1:2], self._codes)

    def wanted(self) -> KVPairs:
        """A pull."""
        return KVPairs(self._wire, [], codes=[])

    def pulled(self, version: int, ledger: Ledger) -> None:
        """Count a pull, of this version."""
        ledger.step(self.record.at, self._pull, version)


class Answer:
    """The answer of a pull, into ``out``; all runs on the leading thread."""

    __slots__ = ("_ledger", "_out", "_small", "_version")

    def __init__(self, small: Small, out: Array, ledger: Ledger) -> None:
        self._small, self._out, self._ledger = small, out, ledger
        self._version = 0

    def take(self, answer: KVPairs) -> None:
        """Put the value where it belongs; does no harm if it is done again."""
        values = answer.vals
        if len(values) != 1 or values[0].shape != self._small.shape or answer.versions is None or answer.kinds is not None:
            raise ProtocolError("an answer of values that were not asked for")
        self._out[...] = values[0]
        self._version = int(answer.versions[0])

    def finish(self, _: object) -> None:
        """All is there."""
        self._small.pulled(self._version, self._ledger)

"""Calls with one small key: what such a key comes to on the wire is found once, and a call is one message.

Its arrays must be plain and exactly as at init; any others are left to the general path, which says what is wrong.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pslite import Flag, KVPairs, Postoffice, Request
from pslite.errors import ProtocolError

from .arrays import Array
from .commands import DATA
from .dist import CALL_NAMES, DistStore
from .handle import Handle
from .keys import Key
from .ledger import PULL, PULL_RAW, PUSH, PUSH_RAW, PUSHES, Ledger, change
from .lists import is_small
from .records import Record
from .tracing import CALLS


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
        fits = len(values) == 1 and values[0].shape == self._small.shape and answer.kinds is None
        if not fits or answer.versions is None:
            raise ProtocolError("an answer of values that were not asked for")
        self._out[...] = values[0]
        self._version = int(answer.versions[0])

    def finish(self, _: object) -> None:
        """All is there."""
        self._small.pulled(self._version, self._ledger)


class SingleStore(DistStore):
    """A store whose calls with one small key take a short way."""

    def __init__(self, name: str, office: Postoffice) -> None:
        self._smalls: dict[Key, Small] = {}  # those that were looked for; they are never changed
        self._starts = [first for first, _ in office.server_key_ranges()]
        super().__init__(name, office)

    def push(self, key: Any, value: Any, priority: int = 0) -> Handle:
        if type(key) is list:
            key, value = self._unlisted(key, value)
        small, handle = self._small(key, value), None
        if small is not None and self._plain(priority):
            handle = self._send_small(small, priority, value, None)
        return super().push(key, value, priority) if handle is None else handle

    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True, wait: bool = True) -> Any:
        if type(key) is list and out is not None:
            key, out = self._unlisted(key, out)
        small, handle = self._small(key, out), None
        if small is not None and out.flags.writeable and self._plain(priority):
            handle = self._send_small(small, priority, None, out)
        if handle is None:
            return super().pull(key, out, priority, ignore_sparse, wait)
        return self._waited(handle) if wait else handle

    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0, wait: bool = True) -> Any:
        into = value if out is None else out
        if type(key) is list:
            key, value, into = self._unlisted(key, value, into)
        small, handle = self._small(key, value), None
        if small is not None and small.takes(into) and into.flags.writeable and self._plain(priority):
            handle = self._send_small(small, priority, value, into)
        if handle is None:
            return super().pushpull(key, value, into, priority, wait)
        return self._waited(handle) if wait else handle

    def _unlisted(self, key: list[Any], *arrays: Any) -> tuple[Any, ...]:
        """A list of one key, and those of its arrays, without the lists; other lists as they are."""
        if len(key) != 1 or type(key[0]) is not self._key_type:
            return key, *arrays
        if any(type(array) is not list or len(array) != 1 for array in arrays):
            return key, *arrays
        return key[0], *(array[0] for array in arrays)

    def _small(self, key: Any, array: Any) -> Small | None:
        """The key, if it and its array are small and plain."""
        kind: type = type(key)
        if kind is not self._key_type or type(array) is not np.ndarray:
            return None
        small = self._smalls.get(key)
        if small is None:
            record = self._records.get(key)
            if record is None or not is_small(record):
                return None
            small = self._smalls[key] = Small(record, self._starts)
        fits = array.shape == small.shape and array.dtype == small.dtype
        return small if fits else None

    def _plain(self, priority: Any) -> bool:
        """Whether a call needs nothing but its values to be sent."""
        compression = self._compression
        return (
            type(priority) is int
            and -(2**63) <= priority < 2**63
            and compression.codec is None
            and not compression.feedback
            and not CALLS.running
        )

    def _send_small(self, small: Small, priority: int, value: Array | None, out: Array | None) -> Handle | None:
        """Send a call with one key as one message; None if it has as many pushes as a server parks, or a pull of it
        gives back what is lent."""
        self._raise_failed()
        if out is not None and self._lending.of([small.key]):
            return None
        if value is None:
            with self._lock:
                return self._handle(self._request_small(small, Flag.PULL, priority, None, out))
        with self._pushing, self._lock:
            self._check_closing()
            if not self._ahead.has_room(small.record.at):
                return None
            self._tell_changes()
            flags = Flag.PUSH if out is None else Flag.PUSH | Flag.PULL
            request = self._request_small(small, flags, priority, value, out)
            self._ahead.begin(small.record.at)
            self._ahead.add(request, small.at)
            handle = self._handle(request)
            self._in_flight.append(handle)
        return handle

    def _request_small(
        self, small: Small, flags: int, priority: int, value: Array | None, out: Array | None
    ) -> Request:
        """Send a call with one key, without a value a pull; the lock is held. Pushes are numbered as they leave."""
        pairs = small.wanted() if value is None else small.pushed(value, self._ledger)
        take, finish = None, None
        if out is not None:
            answer = Answer(small, out, self._ledger)
            take, finish = answer.take, answer.finish
        what = f"{CALL_NAMES[flags]} of {small.key!r}"
        return self._worker.send(pairs, flags, DATA, priority, finish, None, None, what, take, server=small.server)

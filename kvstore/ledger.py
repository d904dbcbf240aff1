"""What a worker counts for each key, in columns, so that a call with many keys counts them in one step."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pslite import Request

from .steps import STEP_BITS

VERSION = 0  # of the value pulled last
PUSHES = 1  # the number of this worker's last push: without kv.step(), how many it has made
PUSH, PUSH_RAW, PULL, PULL_RAW = 2, 3, 4, 5  # bytes of values; raw: without compression
_COLUMNS = 6  # the first two travel with pushes
MAX_AHEAD = 3  # unfinished pushes per key: the round that is open and two more; a fourth push waits

Ordinals = NDArray[np.intp]
Where = int | Ordinals
"""The number of a key in its ledger, or those of several."""


class Ledger:
    """Counters for each key. Thread-safe: pushes count in the threads that call, pulls on the leading one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards changes of the table, and its replacement when it grows
        self._table = np.zeros((_COLUMNS, 64), np.int64)
        self._count = 0
        self._floor = 0  # the numbers of pushes are above it

    def begin_step(self, step: int) -> None:
        """The pushes to come are this step's."""
        with self._lock:
            self._floor = step << STEP_BITS

    def next_push(self, at: int) -> int:
        """The number that the next push of a key will have."""
        return max(self.get(PUSHES, at), self._floor) + 1

    def push(self, at: Where) -> None:
        """Number one more push of keys; ``at`` has no number twice."""
        with self._lock:
            self._table[PUSHES, at] = np.maximum(self._table[PUSHES, at], self._floor) + 1

    def add(self) -> int:
        """A new row; returns its number."""
        with self._lock:
            if self._count == self._table.shape[1]:
                self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
            self._count += 1
            return self._count - 1

    def get(self, column: int, at: int) -> int:
        return int(self._table[column, at])

    def column(self, column: int, at: Ordinals) -> NDArray[np.uint64]:
        """One counter of several keys, as it travels."""
        found: NDArray[np.uint64] = self._table[column, at].astype(np.uint64)
        return found

    def set(self, column: int, at: Where, value: Any) -> None:
        with self._lock:
            self._table[column, at] = value

    def step(self, at: int, more: NDArray[np.int64], version: int | None = None) -> NDArray[np.int64]:
        """Add to all counters of one key; returns them. ``version``: what it is from now on."""
        with self._lock:
            counters: NDArray[np.int64] = self._table[:, at]
            if more[PUSHES] and counters[PUSHES] < self._floor:
                counters[PUSHES] = self._floor
            counters += more
            if version is not None:
                counters[VERSION] = version
            found: NDArray[np.int64] = counters.copy()
        return found

    def count(self, column: int, at: Where, more: Any) -> None:
        """Add to a counter; ``at`` has no number twice."""
        with self._lock:
            self._table[column, at] += more


def change(of: dict[int, int]) -> NDArray[np.int64]:
    """What ``Ledger.step`` adds, by column."""
    found = np.zeros(_COLUMNS, np.int64)
    for column, more in of.items():
        found[column] = more
    return found


class Traffic:
    """Bytes of values that one worker pushed and pulled of a key, in its ledger."""

    __slots__ = ("_at", "_ledger")

    def __init__(self, ledger: Ledger, at: int) -> None:
        self._ledger, self._at = ledger, at

    def pushed(self, nbytes: int, raw: int) -> None:
        """Count a push of so many bytes, which without compression are ``raw``."""
        self._ledger.count(PUSH, self._at, nbytes)
        self._ledger.count(PUSH_RAW, self._at, raw)

    def pulled(self, nbytes: int, raw: int) -> None:
        """Count a pull."""
        self._ledger.count(PULL, self._at, nbytes)
        self._ledger.count(PULL_RAW, self._at, raw)

    def to_dict(self) -> dict[str, int]:
        """As ``kv.stats()`` shows it."""
        names = {"push_bytes": PUSH, "push_bytes_raw": PUSH_RAW, "pull_bytes": PULL, "pull_bytes_raw": PULL_RAW}
        return {name: self._ledger.get(column, self._at) for name, column in names.items()}


class Ahead:
    """A worker's pushes that are not applied yet. Its store's lock guards it."""

    def __init__(self) -> None:
        self._counts = np.zeros(64, np.int64)  # by key, also of pushes that have ended since the last look
        self._pushes: list[tuple[Request, Ordinals]] = []
        self._look_at = 64  # length of the list from which on it is searched for those that have ended

    def add(self, request: Request, at: Ordinals) -> None:
        """A push of these keys was sent, and counted by ``begin``."""
        self._pushes.append((request, at))
        if len(self._pushes) >= self._look_at:
            self._drop_ended()
            self._look_at = max(64, 2 * len(self._pushes))

    def begin(self, at: Where, count: int = 1) -> None:
        """Count a push, or take back that it was counted."""
        self._counts[at] += count

    def has_room(self, at: int) -> bool:
        """Whether one more push of a key may be made."""
        if at < self._counts.size and self._counts[at] < MAX_AHEAD:
            return True
        return not self.in_the_way(np.array([at], np.intp))

    def in_the_way(self, at: Ordinals) -> Sequence[Request]:
        """The unfinished pushes of a key that has as many as a server parks; none if no key has."""
        if not at.size or self._fits(at):
            return ()
        self._drop_ended()
        full = at[self._counts[at] >= MAX_AHEAD]
        return [request for request, keys in self._pushes if full[0] in keys] if full.size else ()

    def _fits(self, at: Ordinals) -> bool:
        missing = int(at.max()) + 1 - self._counts.size
        if missing > 0:
            self._counts = np.concatenate([self._counts, np.zeros(max(missing, self._counts.size), np.int64)])
        return bool(self._counts[at].max() < MAX_AHEAD)

    def _drop_ended(self) -> None:
        pushes, self._pushes = self._pushes, []
        for request, at in pushes:
            if request.done:
                self._counts[at] -= 1
            else:
                self._pushes.append((request, at))

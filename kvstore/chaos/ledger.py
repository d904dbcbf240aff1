"""What workers have pushed and what was acknowledged, in a mapped file: kill -9 does not lose it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

_WORDS = 4  # per worker, before the counts of the keys


class Ledger:
    """Each worker writes its own row, the driver ``stop``, rank 0 ``last``; all read all. Words are written whole."""

    def __init__(self, path: Path, workers: int, keys: int) -> None:
        """Map the file; zeros if there is none."""
        words = _WORDS + 2 * keys
        new = not path.exists()
        self._table: Numbers = np.memmap(path, np.int64, "w+" if new else "r+", shape=(1 + workers, words))
        self._keys = keys

    @property
    def stop(self) -> bool:
        """Whether the workers shall finish."""
        return bool(self._table[0, 0])

    @stop.setter
    def stop(self, value: bool) -> None:
        self._table[0, 0] = value

    @property
    def last(self) -> int:
        """The step after which all workers of a synchronous job finish; 0 while it goes on."""
        return int(self._table[0, 1])

    @last.setter
    def last(self, step: int) -> None:
        self._table[0, 1] = step

    def failed_at(self, rank: int) -> float | None:
        """When a worker got an error, in seconds of the monotonic clock."""
        nanoseconds = int(self._table[1 + rank, 0])
        return nanoseconds / 1e9 if nanoseconds else None

    def fail(self, rank: int, at: float) -> None:
        """A worker got an error."""
        self._table[1 + rank, 0] = int(at * 1e9)

    def attempted(self, rank: int) -> Numbers:
        """By key, the pushes that a worker began; a view that it writes to before it pushes."""
        row: Numbers = self._table[1 + rank, _WORDS : _WORDS + self._keys]
        return row

    def acked(self, rank: int) -> Numbers:
        """By key, the pushes that were acknowledged; a view that the worker writes to."""
        row: Numbers = self._table[1 + rank, _WORDS + self._keys :]
        return row

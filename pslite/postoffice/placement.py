"""Where keys live: equal ranges of the key space for ps-lite programs, and balanced placement by bytes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

MAX_KEY = 2**64  # exclusive: every uint64 belongs to a server


@functools.cache
def key_ranges(num_servers: int) -> list[tuple[int, int]]:
    """The half-open key range of each server, by rank. The last range takes the remainder, so no key is lost."""
    width = MAX_KEY // num_servers
    starts = [width * i for i in range(num_servers)] + [MAX_KEY]
    return list(itertools.pairwise(starts))


class Balancer:
    """Chooses servers so that their bytes stay even. Deterministic: the same calls give the same placement."""

    def __init__(self, num_servers: int, load: Sequence[int] = ()) -> None:
        self._load = list(load) or [0] * num_servers

    def place(self, nbytes: int) -> int:
        """The server with the least bytes gets this value; ties go to the lowest rank."""
        server = min(range(len(self._load)), key=self._load.__getitem__)
        self._load[server] += nbytes
        return server

    def split(self, rows: int, row_bytes: int) -> list[tuple[int, int, int]]:
        """Cut a large value on row boundaries, one piece per server: ``(server, first row, end row)``.

        There are at most as many pieces as rows; sizes differ by at most one row.
        """
        count = min(rows, len(self._load))
        bounds = [rows * i // count for i in range(count + 1)]
        order = sorted(range(len(self._load)), key=self._load.__getitem__)[:count]
        pieces = []
        for server, first, end in zip(sorted(order), bounds, bounds[1:], strict=False):
            self._load[server] += (end - first) * row_bytes
            pieces.append((server, first, end))
        return pieces

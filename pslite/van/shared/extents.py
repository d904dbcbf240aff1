"""Which parts of a range of bytes are taken: best fit, with neighbours that are free joined at once.

Of the free extents that fit, the smallest is used, and of equal ones that which became free last: its bytes are the
most likely to be in a cache (Wilson et al., Dynamic Storage Allocation, IWMM'95).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator


class Extents:
    """The extents of ``size`` bytes, by offset; the bytes themselves are elsewhere. Used under the arena's lock."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._frees = 0  # calls of give()
        self._by_size: list[tuple[int, int, int]] = []  # free ones: nbytes, -number of the call that freed it, offset
        self._free: dict[int, tuple[int, int, int]] = {}  # offset -> its entry above
        self._ends: dict[int, int] = {}  # end of a free extent -> its offset
        self._add(0, size, 0)

    @classmethod
    def around(cls, size: int, taken: Iterable[tuple[int, int]]) -> Extents:
        """With these extents, (offset, nbytes), taken; they do not overlap."""
        extents = cls(size)
        extents._remove(0)
        at = 0
        for offset, nbytes in [*sorted(taken), (size, 0)]:
            assert at <= offset, "two extents overlap"
            if at < offset:
                extents._add(at, offset - at, 0)
            at = offset + nbytes
        return extents

    def free(self) -> Iterator[tuple[int, int]]:
        """All that is not taken, as (offset, nbytes)."""
        return ((offset, nbytes) for offset, (nbytes, _, _) in self._free.items())

    @property
    def empty(self) -> bool:
        """Whether nothing is taken."""
        return self._ends.get(self._size) == 0

    def take(self, nbytes: int) -> int | None:
        """The offset of ``nbytes`` that are taken from now on; None if no free extent is large enough."""
        i = bisect.bisect_left(self._by_size, (nbytes, -self._frees - 1, 0))  # sorts before all of this size
        if i == len(self._by_size):
            return None
        found, order, offset = self._by_size[i]
        self._remove(offset)
        if found > nbytes:
            self._add(offset + nbytes, found - nbytes, order)
        return offset

    def give(self, offset: int, nbytes: int) -> None:
        """Take back what ``take(nbytes)`` returned."""
        end = offset + nbytes
        assert 0 <= offset < end <= self._size
        assert offset not in self._free, f"the extent at {offset} is free already"
        if end in self._free:
            end += self._remove(end)
        if offset in self._ends:
            offset = self._ends[offset]
            self._remove(offset)
        self._frees += 1
        self._add(offset, end - offset, -self._frees)

    def _add(self, offset: int, nbytes: int, order: int) -> None:
        self._free[offset] = entry = (nbytes, order, offset)
        self._ends[offset + nbytes] = offset
        bisect.insort(self._by_size, entry)

    def _remove(self, offset: int) -> int:
        entry = self._free.pop(offset)
        del self._ends[offset + entry[0]]
        del self._by_size[bisect.bisect_left(self._by_size, entry)]
        return entry[0]

"""An arena whose segments outlive this process: each is handed to the keeper before it is used.

Its successor must write to them, so they are not sealed against that; peers get descriptors that are open for reading
only. What the journal does not name is free for the successor, and read as zeros from then on: who still copies an
array of the dead process finds no generation there.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pslite.errors import KeeperError

from . import journal
from .arena import ALIGNMENT, GRAIN, SEALS, Arena, Block, OwnSegment, array_of, memfd
from .extents import Extents
from .journal import Journal

FIRST = 2**32  # number of the first segment: no segment of an ordinary arena has it
OWN_SEGMENT = 1024 * 1024  # bytes from which zeros have a segment of their own, which is zero already

_PREFIX, _JOURNAL = "segment-", "journal"

Wanted = tuple[tuple[int, int], tuple[int, ...], npt.DTypeLike]


class Keeps(Protocol):
    """What keeps descriptors, as ``Keeper`` does."""

    def keep(self, name: str, fd: int) -> None: ...

    def drop(self, name: str) -> None: ...


class KeptArena(Arena):
    """``KeptMemory``. Arrays may be made in any thread; the journal is for one at a time."""

    def __init__(self, clock: Callable[[], float], keeper: Keeps, found: dict[str, int]) -> None:
        """``found``: what a predecessor had kept, descriptors by name, which are the arena's from now on.

        Raises KeeperError if it is damaged.
        """
        super().__init__(clock)
        self._made = FIRST
        self._keeper = keeper  # under the arena's lock
        self._records: list[bytes] = []
        self._found: dict[int, int] = {}  # descriptors by segment, until ``reopen``
        self._journal = Journal(self._keep_journal)
        try:
            if _JOURNAL in found:
                self._records = journal.read(found[_JOURNAL])
                self._found = {int(name.removeprefix(_PREFIX)): fd for name, fd in found.items() if name != _JOURNAL}
                self._made = max(self._found, default=FIRST - 1) + 1
        finally:
            for fd in found.values():
                if fd not in self._found.values():
                    os.close(fd)

    # -- the journal --------------------------------------------------------------------------------------------------

    def found(self) -> list[bytes]:
        records, self._records = self._records, []
        return records

    def commit(self, records: Sequence[bytes]) -> bool:
        return self._journal.commit(records)

    def rewrite(self, records: Sequence[bytes]) -> None:
        self._journal.rewrite(records)

    def _keep_journal(self, fd: int) -> None:
        with self._lock:
            self._keeper.keep(_JOURNAL, fd)

    def close(self) -> None:
        super().close()
        self._journal.close()
        while self._found:  # it was damaged, and not opened again
            os.close(self._found.popitem()[1])

    # -- arrays -------------------------------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        array = super().empty(shape, dtype)
        if array.nbytes and not self.has(array):
            raise KeeperError(what=f"making an array of {array.nbytes} bytes", reason="no memory can be had")
        return array

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        dtype = np.dtype(dtype)
        nbytes = ALIGNMENT + -(-math.prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        if nbytes < OWN_SEGMENT:
            array = self.empty(shape, dtype)
            array[...] = 0
            return array
        with self._lock:
            try:
                segment = self._add_segment(-(-nbytes // GRAIN) * GRAIN)
            except OSError as error:
                raise KeeperError(what=f"making a table of {nbytes} bytes", reason=str(error)) from error
            self._used += nbytes
            header = segment.extents.take(nbytes)
            assert header == 0, "a new segment is empty"
            self._stamp(segment, header)
        return array_of(Block(self, segment, header, nbytes), shape, dtype)

    def place(self, array: npt.NDArray[Any]) -> tuple[int, int]:
        block = array.base
        assert isinstance(block, Block) and block.arena is self, "the array is not kept"
        return block.segment.number, block.header

    def reopen(self, wanted: Sequence[Wanted]) -> list[npt.NDArray[Any]]:
        by_segment: dict[int, list[tuple[int, int]]] = {}
        for (number, header), shape, dtype in wanted:
            nbytes = ALIGNMENT + -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
            by_segment.setdefault(number, []).append((header, nbytes))
        if missing := by_segment.keys() - self._found.keys():
            raise _damaged(f"segments {sorted(missing)} are not there")
        found, self._found = self._found, {}
        with self._lock:
            for number, fd in found.items():
                if number in by_segment:
                    self._segments[number] = self._reopened(number, fd, sorted(by_segment[number]))
                else:
                    os.close(fd)
                    self._keeper.drop(f"{_PREFIX}{number}")
            self._used += sum(nbytes for taken in by_segment.values() for _, nbytes in taken)
        arrays = []
        for (number, header), shape, dtype in wanted:
            segment, nbytes = self._segments[number], math.prod(shape) * np.dtype(dtype).itemsize
            block = Block(self, segment, header, ALIGNMENT + -(-nbytes // ALIGNMENT) * ALIGNMENT)
            arrays.append(array_of(block, shape, np.dtype(dtype)))
        return arrays

    # -- under the lock -----------------------------------------------------------------------------------------------

    def _new_segment(self, number: int, size: int) -> OwnSegment:
        fd = memfd(size)
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            self._keeper.keep(f"{_PREFIX}{number}", fd)
            return _mapped(number, fd, size)
        finally:
            os.close(fd)

    def _give_up(self, segment: OwnSegment) -> None:
        super()._give_up(segment)
        self._keeper.drop(f"{_PREFIX}{segment.number}")

    def _reopened(self, number: int, fd: int, taken: list[tuple[int, int]]) -> OwnSegment:
        """A segment of the predecessor in which these extents are in use."""
        try:
            size = os.fstat(fd).st_size
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS or size % GRAIN or not size:
                raise _damaged(f"segment {number} is no sealed memory")
            ends = [(0, 0), *taken, (size, 0)]
            if any(low + n > high or high % ALIGNMENT for (low, n), (high, _) in pairwise(ends)):
                raise _damaged(f"the arrays of segment {number} do not fit into it")
            segment = _mapped(number, fd, size)
        finally:
            os.close(fd)
        segment.extents = Extents.around(size, taken)
        for offset, nbytes in segment.extents.free():
            _clear(segment.memory, offset, offset + nbytes)
        return segment


def _mapped(number: int, fd: int, size: int) -> OwnSegment:
    """The segment of a descriptor, with another that cannot be mapped to be written: that is for peers."""
    segment = OwnSegment(number, fd, size)
    segment.fd = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    return segment


def _clear(memory: mmap.mmap, low: int, high: int) -> None:
    """Zeros from low to high, of which whole pages take no memory any more."""
    first, last = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE, high // mmap.PAGESIZE * mmap.PAGESIZE
    if first >= last:
        memory[low:high] = bytes(high - low)
        return
    memory[low:first], memory[last:high] = bytes(first - low), bytes(high - last)
    memory.madvise(mmap.MADV_REMOVE, first, last - first)


def _damaged(reason: str) -> KeeperError:
    return KeeperError(what="going on from the predecessor's memory", reason=reason)

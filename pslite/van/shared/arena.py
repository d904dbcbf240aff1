"""Memory of this process that others may read: arrays in sealed memfds.

A block is a header of 64 bytes and an array's data. The first word of the header is the block's generation, a number
that the arena uses once. The owner changes it before it writes, and tells it to others when it has written: a reader
who still finds it after copying has copied what was written then (as with a seqlock: Boehm, Can Seqlocks Get Along With
Programming Language Memory Models?, MSPC'12).
"""

from __future__ import annotations

import fcntl
import functools
import math
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .extents import Extents

ALIGNMENT = 64  # bytes: a cache line; of headers, and so of data
SEGMENT = 64 * 1024 * 1024  # bytes of a segment, or more if one array needs more
GRAIN = 2 * 1024 * 1024  # bytes: segments are multiples of it
KEEP_EMPTY = 10.0  # seconds that a segment without arrays is kept: the next round of a training loop needs it again
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_WORD = 8  # bytes of a generation
_SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h since 5.1: no new mapping may write; Python's fcntl has no name for it

_LIVE: weakref.WeakSet[Arena] = weakref.WeakSet()  # for the fork hook; changed by __init__ only


def _after_fork_in_child() -> None:
    for arena in list(_LIVE):
        arena._usable = False
        arena._lock = threading.Lock()  # a thread of the parent may have held the other


os.register_at_fork(after_in_child=_after_fork_in_child)


@functools.cache
def available() -> bool:
    """Whether this host has sealed memory: Linux since 5.1, if a sandbox does not forbid it."""
    try:
        segment = _sealed_segment(0, GRAIN)
    except (AttributeError, OSError):
        return False
    os.close(segment.fd)
    return True


class Location(NamedTuple):
    """Where an array of an arena is, for a process that has the segment mapped."""

    segment: int
    offset: int  # of the array's data within the segment
    header: int  # offset of the block's header
    generation: int


class Block:
    """What an array of an arena has for ``base``. When it and all its views are gone the extent is free again."""

    __slots__ = ("__array_interface__", "address", "arena", "header", "nbytes", "segment")

    def __init__(self, arena: Arena, segment: OwnSegment, header: int, nbytes: int) -> None:
        self.arena = arena
        self.segment = segment  # keeps the memory mapped, even after Arena.close
        self.header = header
        self.nbytes = nbytes  # with the header
        self.address = segment.address + header + ALIGNMENT
        self.__array_interface__: dict[str, Any] = {}

    def __del__(self) -> None:
        # Runs in any thread, at any point where the interpreter collects garbage, even while the arena's lock is held.
        self.arena._freed.append((self.segment.number, self.header, self.nbytes))


class OwnSegment:
    """One memfd, mapped writable."""

    __slots__ = ("address", "extents", "fd", "idle_since", "memory", "number", "size", "words")

    def __init__(self, number: int, fd: int, size: int) -> None:
        self.number = number
        self.size = size
        self.extents = Extents(size)
        self.idle_since = 0.0  # by the arena's clock; it counts while ``extents.empty``
        self.fd = fd
        self.memory = mmap.mmap(fd, size)
        self.address: int = np.frombuffer(self.memory, np.uint8).__array_interface__["data"][0]
        self.words = memoryview(self.memory).cast("Q")


def _sealed_segment(number: int, size: int) -> OwnSegment:
    """A segment that is mapped writable here and nowhere else."""
    fd = memfd(size)
    try:
        segment = OwnSegment(number, fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS | _SEAL_FUTURE_WRITE)
    except OSError:
        os.close(fd)
        raise
    return segment


def memfd(size: int) -> int:
    """The descriptor of so many bytes of memory that have no name, to be sealed."""
    fd = os.memfd_create("pslite", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


class Arena:
    """Arrays that other processes of this host can read. Every method may be called from any thread.

    After ``close``, and in a forked child, whose writes the parent's peers would see, it makes ordinary arrays and does
    nothing else. ``clock``: seconds, like ``time.monotonic``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._usable = True  # False from close() on, and in a forked child
        self._lock = threading.Lock()  # guards all below but _freed
        self._segments: dict[int, OwnSegment] = {}
        self._made = 0  # segments so far: the next one's number
        self._used = 0  # bytes of the extents that are taken
        # Random at first: where a block was there may be other data now, which must not look like its generation.
        self._generation = int.from_bytes(os.urandom(_WORD), "little") >> 1
        self._freed: deque[tuple[int, int, int]] = deque()  # any thread appends, without the lock
        _LIVE.add(self)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """A new C-contiguous array with arbitrary contents, as ``np.empty`` makes it.

        It is an ordinary one, which ``locate`` does not know, if it has no bytes, holds Python objects, or if the
        system refuses another segment. A structured one, or one of a dtype that numpy does not define (ml_dtypes), is a
        view: ``locate`` knows it, ``holds`` does not.
        """
        dtype = np.dtype(dtype)
        nbytes = int(math.prod(shape)) * dtype.itemsize
        block = self._take(nbytes) if nbytes > 0 and not dtype.hasobject else None
        if block is None:
            return np.empty(shape, dtype)
        return array_of(block, shape, dtype)

    def renew(self, array: npt.NDArray[Any]) -> None:
        """Say that an array, or a view of one, is going to be written: who copies it meanwhile finds out."""
        block = self._block(array)
        if block is not None:
            with self._lock:
                self._stamp(block.segment, block.header)
            self._fence()

    def locate(self, array: npt.NDArray[Any]) -> Location | None:
        """Where the array's data are; None if it is not C-contiguous, or not in this arena.

        To be told to others when the array is written: the generation stands for what it holds from now on.
        """
        block = self._block(array)
        if block is None or not array.flags.c_contiguous:
            return None
        segment, header = block.segment, block.header
        offset = header + ALIGNMENT
        if type(array.base) is not Block:  # a view; else its address, which takes a microsecond, is known
            offset += array.__array_interface__["data"][0] - block.address
        return Location(segment.number, offset, header, segment.words[header // _WORD])

    def has(self, array: npt.NDArray[Any]) -> bool:
        """Whether an array, or what it is a view of, came from ``empty``."""
        return self._block(array) is not None

    def holds(self, array: npt.NDArray[Any]) -> bool:
        """Whether this very array, not one that it is a view of, came from ``empty``."""
        return type(array.base) is Block and array.base.arena is self

    def tidy(self) -> list[int]:
        """Give back the segments that have been wholly free for ``KEEP_EMPTY`` seconds; returns their numbers.

        Their memory is free when those who mapped them have dropped them too.
        """
        with self._lock:
            self._drain()
            now = self._clock()
            old = [s for s in self._segments.values() if s.extents.empty and s.idle_since + KEEP_EMPTY <= now]
            for segment in old:
                del self._segments[segment.number]
                self._give_up(segment)  # the mapping goes with the last reference
        return [segment.number for segment in old]

    def fd(self, segment: int) -> int:
        """The descriptor of a segment, which stays the arena's."""
        return self._segments[segment].fd

    def size(self, segment: int) -> int:
        """The bytes of a segment."""
        return self._segments[segment].size

    @property
    def nbytes(self) -> int:
        """The bytes of all segments; those never written take no memory."""
        with self._lock:
            return sum(segment.size for segment in self._segments.values())

    @property
    def used(self) -> int:
        """The bytes of all arrays there are, with headers."""
        with self._lock:
            self._drain()
            return self._used

    def close(self) -> None:
        """Give back all segments. Arrays that are still there stay valid, until they are gone."""
        with self._lock:
            self._usable = False
            for segment in self._segments.values():
                os.close(segment.fd)
            self._segments.clear()
            self._used = 0

    # -- under the lock ----------------------------------------------------------------------------------------------

    def _take(self, nbytes: int) -> Block | None:
        """A block for an array; None if there can be none."""
        nbytes = ALIGNMENT + -(-nbytes // ALIGNMENT) * ALIGNMENT
        with self._lock:
            if not self._usable:
                return None
            self._drain()
            try:
                segment, header = self._find(nbytes)
            except (OSError, OverflowError):  # no descriptor or no address space is left
                return None
            self._used += nbytes
            self._stamp(segment, header)
        self._fence()
        return Block(self, segment, header, nbytes)

    def _find(self, nbytes: int) -> tuple[OwnSegment, int]:
        for segment in self._segments.values():
            offset = segment.extents.take(nbytes)
            if offset is not None:
                return segment, offset
        segment = self._add_segment(max(SEGMENT, -(-nbytes // GRAIN) * GRAIN))
        offset = segment.extents.take(nbytes)
        assert offset is not None
        return segment, offset

    def _add_segment(self, size: int) -> OwnSegment:
        segment = self._segments[self._made] = self._new_segment(self._made, size)
        self._made += 1
        return segment

    def _new_segment(self, number: int, size: int) -> OwnSegment:
        return _sealed_segment(number, size)

    def _give_up(self, segment: OwnSegment) -> None:
        os.close(segment.fd)

    def _drain(self) -> None:
        """Make what blocks left free again."""
        if not self._usable:
            return
        while self._freed:
            number, header, nbytes = self._freed.popleft()
            segment = self._segments[number]
            # The next block may begin elsewhere: who still reads this one must not find its generation.
            segment.words[header // _WORD] = 0
            segment.extents.give(header, nbytes)
            self._used -= nbytes
            if segment.extents.empty:
                segment.idle_since = self._clock()

    def _stamp(self, segment: OwnSegment, header: int) -> None:
        self._generation += 1
        segment.words[header // _WORD] = self._generation

    def _fence(self) -> None:
        """Make the new generation visible before anything that this thread writes from here on.

        Leaving the lock orders what was written before; entering it again, what comes after. Both are needed where
        the processor reorders writes (Arm).
        """
        with self._lock:
            pass

    def _block(self, array: npt.NDArray[Any]) -> Block | None:
        """The block that an array or view lies in, if it is this arena's and others can read it."""
        base: Any = array.base
        while isinstance(base, np.ndarray):
            base = base.base
        return base if type(base) is Block and base.arena is self and self._usable else None


def array_of(block: Block, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The array whose data a block has."""
    block.__array_interface__ = {
        "version": 3, "shape": shape, "typestr": dtype.str, "data": (block.address, False),
    }  # fmt: skip
    array = np.asarray(block)
    return array if array.dtype == dtype else array.view(dtype)

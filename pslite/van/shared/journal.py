"""Records in memory that outlives its writer: those before the end are there, what is behind it is not.

A segment begins with ``MAGIC`` and, in a word of its own, the end; a record is its length, its CRC-32, and itself. The
end is moved by one store of eight bytes, so a writer that is killed leaves all records of a commit or none. The
checksums are no part of this: they find memory that is something else.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Sequence

from pslite.errors import KeeperError
from pslite.failpoints import failpoint

from .arena import SEALS, memfd

MAGIC = b"pskept01"  # with the version of all that is written into kept memory
SMALLEST = 16 * 1024 * 1024  # bytes of a segment; those never written take no memory

_HEAD = 16  # bytes before the first record: the magic, and the end
_END = 1  # the word
_FRAME = struct.Struct("<II")


class Journal:
    """The records of one segment. Not thread-safe."""

    def __init__(self, keep: Callable[[int], None]) -> None:
        """``keep``: has a segment survive this process, in place of the one before."""
        self._keep = keep
        self._size = 0  # of the segment; 0 before the first and after ``close``
        self._memory = self._words = memoryview(b"")

    def rewrite(self, records: Sequence[bytes]) -> None:
        """Begin a new segment with these records; a successor finds it, or the one before."""
        self.close()
        needed = _HEAD + sum(_room(record) for record in records)
        size = max(SMALLEST, -(-4 * needed // mmap.PAGESIZE) * mmap.PAGESIZE)
        try:
            fd = memfd(size)
            try:
                self._memory = memoryview(mmap.mmap(fd, size))
                self._words, self._size = self._memory.cast("Q"), size
                self._memory[: len(MAGIC)] = MAGIC
                self._words[_END] = _HEAD
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
                self._write(records)
                self._keep(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise KeeperError(what="beginning a journal", reason=error.strerror or str(error)) from error

    def commit(self, records: Sequence[bytes]) -> bool:
        """Add records, all or none; False if there is no room for them. After ``close`` it does nothing."""
        if not self._size:
            return True
        if self._words[_END] + sum(_room(record) for record in records) > self._size:
            return False
        self._write(records)
        return True

    def close(self) -> None:
        """Nothing more will be committed by this process."""
        self._words.release()
        self._memory.release()  # the mapping goes with it
        self._size = 0

    def _write(self, records: Sequence[bytes]) -> None:
        at = self._words[_END]
        for record in records:
            _FRAME.pack_into(self._memory, at, len(record), zlib.crc32(record))
            start = at + _FRAME.size
            self._memory[start : start + len(record)] = record
            at += _room(record)
        failpoint("kept_before_flip")
        self._words[_END] = at
        failpoint("kept_after_flip")


def read(fd: int) -> list[bytes]:
    """The records of a segment; raises KeeperError if it is none."""
    size = os.fstat(fd).st_size
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS != SEALS or size < _HEAD:
        raise _damaged("it is no sealed memory")
    memory = mmap.mmap(fd, size, prot=mmap.PROT_READ)
    if memory[: len(MAGIC)] != MAGIC:
        raise _damaged(f"it begins with {memory[: len(MAGIC)]!r}, not {MAGIC!r}: restart the job with one version")
    end = int.from_bytes(memory[8:16], "little")
    if not _HEAD <= end <= size:
        raise _damaged(f"its end is at {end} of {size} bytes")
    records, at = [], _HEAD
    while at < end:
        length, checksum = _FRAME.unpack_from(memory, at)
        record = memory[at + _FRAME.size : min(at + _FRAME.size + length, end)]
        if len(record) != length or zlib.crc32(record) != checksum:
            raise _damaged(f"the record at {at} is damaged")
        records.append(record)
        at += _room(record)
    return records


def _room(record: bytes) -> int:
    return _FRAME.size + -(-len(record) // 8) * 8


def _damaged(reason: str) -> KeeperError:
    return KeeperError(what="going on from the predecessor's journal", reason=reason)

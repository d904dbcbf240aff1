"""One server's part of a checkpoint of the whole job: its settings, then key by key what there is of it.

    magic, frame of the header, for each key: frame of its description, its arrays; frame of the end

A frame is the length and the CRC-32 of what follows, a msgpack map: fields may be added, readers pass over those that
they do not know. A description has each array's CRC-32 and, by shape and dtype, its length; so the checksum of all
bytes that are no arrays, which the manifest has, covers every byte. Nothing is pickled, and no array is allocated that
is not there in its full length.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import msgpack
import numpy as np

from kvstore.arrays import Array
from kvstore.keys import Key, checked
from kvstore.rows import checked_ids
from kvstore.spec import Place, Spec
from pslite.dtypes import CODES, NAMES, code_of, storage
from pslite.errors import CheckpointError

from .archive import explained
from .job import Saved, Stamp
from .unit import IDS, VALUE, Unit

_MAGIC = b"pslpart1"
_FRAME = struct.Struct("<II")  # length, CRC-32
_CHUNK = 1024 * 1024  # bytes that are read at once to be checked


class PartWriter:
    """Writes a part into an open file. ``header``: plain data that says which part of what it is."""

    def __init__(self, file: IO[bytes], header: dict[str, Any]) -> None:
        self._file = file
        self._length = self._checksum = self._count = 0
        self._write(_MAGIC)
        self._write_frame(header)

    def add(self, saved: Saved) -> None:
        """Write a key."""
        named = saved.unit.arrays if saved.unit.ids is None else {IDS: saved.unit.ids, **saved.unit.arrays}
        contents = [(name, array, _bytes(array)) for name, array in named.items()]
        spec, place = saved.spec, saved.place
        self._write_frame(
            {
                **saved.more,
                "wire": saved.wire,
                "key": spec.key,
                "shape": spec.shape,
                "dtype": NAMES[spec.code],
                "sparse": spec.sparse,
                "first": place.first,
                "whole": place.shape,
                "flat": place.flat,
                "version": saved.unit.version,
                "count": saved.unit.count,
                "arrays": [[n, code_of(a.dtype), a.shape, zlib.crc32(data)] for n, a, data in contents],
            }
        )
        for _, _, data in contents:
            self._file.write(data)
            self._length += len(data)
        self._count += 1

    def finish(self) -> Stamp:
        """Write the end; nothing may be added any more."""
        self._write_frame({"end": self._count})
        self._file.flush()
        return Stamp(self._length, self._checksum)

    def _write_frame(self, content: dict[str, Any]) -> None:
        packed = msgpack.packb(content)
        self._write(_FRAME.pack(len(packed), zlib.crc32(packed)) + packed)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._length += len(data)
        self._checksum = zlib.crc32(data, self._checksum)


@dataclass(slots=True, eq=False)
class _Stored:
    """An array in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    checksum: int
    at: int  # its first byte

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(slots=True, eq=False)
class Described:
    """A key as its part describes it; ``content``: everything that is said of it."""

    spec: Spec
    place: Place
    content: dict[str, Any]
    arrays: list[_Stored]


class Part:
    """A part whose descriptions were checked; an array is when it is read, or all are by ``check``."""

    def __init__(self, path: str, file: IO[bytes], stamp: Stamp) -> None:
        """``stamp``: as the manifest has it. Raises CheckpointError, as all methods do."""
        self._path = path
        self._file = file
        self._checksum = 0
        with explained(path):
            self._size = os.fstat(file.fileno()).st_size
            if self._size != stamp.length:
                raise CheckpointError(path=path, reason=f"it has {self._size} bytes, {stamp.length} were written")
            if self._read(len(_MAGIC)) != _MAGIC:
                raise CheckpointError(path=path, reason="it is no part of a checkpoint")
            self.header: dict[str, Any] = self._frame()
            self.keys = list(self._descriptions())
            if self._checksum != stamp.checksum:
                raise CheckpointError(path=path, reason="it is not the part that the manifest names")

    def unit(self, described: Described) -> Unit:
        """What was saved of a key, its arrays checked."""
        with explained(self._path):
            arrays = {stored.name: self._array(stored) for stored in described.arrays}
            ids = arrays.pop(IDS, None)
            if ids is not None:
                checked_ids(ids, len(arrays[VALUE]), described.spec.shape[0], described.spec.key)
            return Unit(arrays, ids, described.content["version"], described.content["count"])

    def check(self) -> None:
        """Read every array."""
        with explained(self._path):
            for described in self.keys:
                for stored in described.arrays:
                    self._check(stored)

    def close(self) -> None:
        self._file.close()

    def _descriptions(self) -> Iterator[Described]:
        count = 0
        while "end" not in (content := self._frame()):
            described = _described(content, self._file.tell())
            end = described.arrays[-1].at + described.arrays[-1].nbytes
            if end > self._size:
                raise ValueError(f"the arrays of key {described.spec.key!r} are not all there")
            self._file.seek(end)
            count += 1
            yield described
        if content["end"] != count or self._file.tell() != self._size:
            raise ValueError(f"it has {count} keys, and {self._size - self._file.tell()} bytes behind its end")

    def _frame(self) -> dict[str, Any]:
        length, checksum = _FRAME.unpack(self._read(_FRAME.size))
        if length > self._size - self._file.tell():
            raise ValueError("it ends too early")
        packed = self._read(length)
        if zlib.crc32(packed) != checksum:
            raise ValueError("a description is damaged")
        content = msgpack.unpackb(packed, strict_map_key=False)  # ranks are ints
        if not isinstance(content, dict):
            raise ValueError("a description is no map")
        return content

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("it ends too early")
        self._checksum = zlib.crc32(data, self._checksum)
        return data

    def _array(self, stored: _Stored) -> Array:
        array: Array = np.empty(stored.shape, stored.dtype)
        data = _bytes(array)
        self._file.seek(stored.at)
        if self._file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise ValueError("it ends too early")
        if zlib.crc32(data) != stored.checksum:
            raise ValueError(f"the array {stored.name!r} is damaged")
        return array

    def _check(self, stored: _Stored) -> None:
        self._file.seek(stored.at)
        checksum, left = 0, stored.nbytes
        while left:
            data = self._file.read(min(left, _CHUNK))
            if not data:
                raise ValueError("it ends too early")
            checksum, left = zlib.crc32(data, checksum), left - len(data)
        if checksum != stored.checksum:
            raise ValueError(f"the array {stored.name!r} is damaged")


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _described(content: dict[str, Any], at: int) -> Described:
    """A description that makes sense; raises anything if it does not."""
    shape, whole, first = tuple(content["shape"]), tuple(content["whole"]), content["first"]
    numbers = [*shape, *whole, first, content["version"], content["count"], content["wire"]]
    if not all(type(n) is int and 0 <= n < 2**64 for n in numbers):
        raise ValueError(f"key {content['key']!r:.80} has bad numbers")
    key: Key = checked(content["key"])
    spec = Spec(key, shape, CODES[content["dtype"]], bool(content["sparse"]))
    arrays = []
    for name, code, dimensions, checksum in content["arrays"]:
        if not all(type(n) is int and 0 <= n < 2**63 for n in dimensions):
            raise ValueError(f"an array of key {key!r} has shape {dimensions!r:.80}")
        arrays.append(_Stored(str(name), tuple(dimensions), storage(code), checksum, at))
        at += arrays[-1].nbytes
    if VALUE not in [stored.name for stored in arrays]:
        raise ValueError(f"key {key!r} has no value")
    return Described(spec, Place(first, whole, bool(content["flat"])), content, arrays)

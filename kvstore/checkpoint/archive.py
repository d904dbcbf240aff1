"""One file of named arrays and a manifest: a zip archive of .npy members, stored, with a CRC-32 for each.

``numpy.load`` and ``unzip`` can open it. Nothing in it is pickled. It is written beside its place, synced and renamed,
so a file under its final name is complete; the manifest comes last and lists every member with its checksum.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from kvstore.arrays import Array
from pslite.dtypes import code_of
from pslite.errors import CheckpointError, ConfigError, PSError

_MANIFEST = "manifest.json"
_FORMAT = "pslite checkpoint"
_VERSION = 1
_NPY_VERSION = (1, 0)  # of all headers below 64 KiB
_NPY_START = 10  # bytes: magic, version, and the length of the header
_CHUNK = 1024 * 1024  # bytes


class Writer:
    """Adds arrays to an archive that is being written."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._checksums: dict[str, int] = {}

    def add(self, array: Array) -> str:
        """Write an array; returns the member's name, for the manifest."""
        name = f"{len(self._checksums)}.npy"
        with self._archive.open(name, "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asarray(array, order="C"), _NPY_VERSION, allow_pickle=False)
        self._checksums[name] = self._archive.getinfo(name).CRC
        return name

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest; nothing may be added any more."""
        whole = {"format": _FORMAT, "format_version": _VERSION, "checksums": self._checksums, **manifest}
        self._archive.writestr(_MANIFEST, json.dumps(whole, indent=1))


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Writer]:
    """An archive that is there, under ``path``, when the block has ended well; raises CheckpointError."""
    named = checked_path(path)
    target = Path(os.path.realpath(named))
    aside = target.with_name(f".pslite-{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        if target.exists() and not target.is_file():
            raise CheckpointError(path=named, reason="cannot be written: it is no regular file")
        try:
            with open(aside, "wb") as file:
                with zipfile.ZipFile(file, "w") as archive:
                    yield Writer(archive)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
            sync_directory(target.parent)
        finally:
            aside.unlink(missing_ok=True)
    except PSError:  # of the servers, too; some are OSErrors
        raise
    except OSError as error:
        raise CheckpointError(path=named, reason=f"cannot be written: {error.strerror or error}") from error


def checked_path(path: Any) -> str:
    """A path as text; raises ConfigError if it is none."""
    named = path if isinstance(path, str) else path.__fspath__() if isinstance(path, os.PathLike) else None
    if not isinstance(named, str) or not named or "\0" in named:
        raise ConfigError(name="path", value=f"{path!r:.200}", allowed="give the path of a file, as str or Path")
    return named


def sync_directory(path: Path) -> None:
    """Make the new name durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reader:
    """An archive that was checked from its first byte to its last. What it reads fits into the file's size."""

    def __init__(self, path: str, archive: zipfile.ZipFile, size: int) -> None:
        self._path = path
        self._archive = archive
        self._layouts: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}  # by member: headers that were read
        with explained(path):
            self.manifest: dict[str, Any] = self._checked(size)

    def layout(self, name: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of an array, by its member's name."""
        if isinstance(name, str) and name in self._layouts:
            return self._layouts[name]
        with explained(self._path), self._open(name) as member:
            return self._header(name, member)

    def read(self, name: Any) -> Array:
        """An array by its member's name."""
        with explained(self._path), self._open(name) as member:
            array: Array = np.empty(*self._header(name, member))
            view = array.reshape(-1).view(np.uint8)
            done = 0
            while done < len(view):
                done += member.readinto(view[done : done + _CHUNK].data) or _ended(name)  # type: ignore[attr-defined]
            member.read(1)  # at the end the checksum is compared: the file may have changed
            return array

    def _open(self, name: Any) -> IO[bytes]:
        if name not in self.manifest["checksums"]:
            raise CheckpointError(path=self._path, reason=f"the manifest names {name!r:.40}, which is not there")
        return self._archive.open(name)

    def _header(self, name: str, member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Nothing is allocated for an array that is not there in its full length."""
        start = member.read(_NPY_START)
        shape, dtype = layout = _parsed(start + member.read(int.from_bytes(start[-2:], "little")))
        left = self._archive.getinfo(name).file_size - member.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:
            raise ValueError(f"{name} is no array of {dtype} {shape}")
        self._layouts[name] = layout
        return layout

    def _checked(self, size: int) -> dict[str, Any]:
        members = self._archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
            raise CheckpointError(path=self._path, reason="its members are compressed: a checkpoint's are not")
        if sum(m.file_size for m in members) > size:
            raise CheckpointError(path=self._path, reason="its members overlap")
        manifest = json.loads(self._archive.read(_MANIFEST))
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise CheckpointError(path=self._path, reason="it is no checkpoint")
        if manifest["format_version"] != _VERSION:
            found = manifest["format_version"]
            raise CheckpointError(
                path=self._path, reason=f"it is of version {found!r:.20}, this program reads {_VERSION}"
            )
        if sorted(m.filename for m in members) != sorted([_MANIFEST, *manifest["checksums"]]):
            raise CheckpointError(path=self._path, reason="it has not the arrays that were saved")
        for name, checksum in manifest["checksums"].items():
            if checksum != self._archive.getinfo(name).CRC:
                raise CheckpointError(path=self._path, reason=f"{name} is not the array that was saved")
        damaged = self._archive.testzip()  # reads all of it
        if damaged is not None:
            raise CheckpointError(path=self._path, reason=f"{damaged} is damaged: its checksum is wrong")
        return manifest


@lru_cache(maxsize=1024)
def _parsed(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of a .npy header; many arrays have the same."""
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != _NPY_VERSION:
        raise ValueError("an array in another version of .npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    code_of(dtype)  # no objects, no records
    if fortran:
        raise ValueError("an array in Fortran order")
    return shape, dtype


def _ended(name: str) -> int:
    raise EOFError(f"{name} ends too early")


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Whatever zipfile, json and numpy raise at bytes that they do not expect, as CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(path=path, reason=f"cannot be read: {error.strerror or error}") from error
    except Exception as error:
        reason = f"damaged, or no checkpoint: {type(error).__name__}: {error!s:.200}"
        raise CheckpointError(path=path, reason=reason) from error


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[Reader]:
    """An archive to read; raises CheckpointError if it is missing, damaged, incomplete or something else."""
    named = checked_path(path)
    with explained(named):
        status = os.stat(named)
        if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for its other end
            raise CheckpointError(path=named, reason="cannot be read: it is no regular file")
        archive = zipfile.ZipFile(named)
    with archive:
        yield Reader(named, archive, status.st_size)

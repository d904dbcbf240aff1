"""One file of named arrays and a manifest: a zip archive of .npy members, with a CRC-32 for each.

``numpy.load`` and ``unzip`` can open it. Nothing in it is pickled. It is written beside its place, synced and renamed,
so a file under its final name is complete; the manifest comes last and lists every member with its checksum.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.arrays import Array
from pslite.errors import CheckpointError

_MANIFEST = "manifest.json"
_FORMAT = "pslite checkpoint"
_VERSION = 1


class Writer:
    """Adds arrays to an archive that is being written."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._checksums: dict[str, int] = {}

    def add(self, array: Array) -> str:
        """Write an array; returns the member's name, for the manifest."""
        name = f"{len(self._checksums)}.npy"
        with self._archive.open(name, "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
        self._checksums[name] = self._archive.getinfo(name).CRC
        return name

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write the manifest; nothing may be added any more."""
        whole = {"format": _FORMAT, "format_version": _VERSION, "checksums": self._checksums, **manifest}
        self._archive.writestr(_MANIFEST, json.dumps(whole, indent=1))


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Writer]:
    """An archive that is there, under ``path``, when the block has ended well; raises CheckpointError."""
    target = Path(path)
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(aside, "wb") as file:
                with zipfile.ZipFile(file, "w") as archive:
                    yield Writer(archive)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, target)
            _sync_directory(target.parent)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(path=str(path), reason=f"cannot be written: {error.strerror or error}") from error


def _sync_directory(path: Path) -> None:
    """Make the new name durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reader:
    """An archive that was checked from its first byte to its last."""

    def __init__(self, path: str, archive: zipfile.ZipFile) -> None:
        self._path = path
        self._archive = archive
        self.manifest: dict[str, Any] = self._checked()

    def read(self, name: Any) -> Array:
        """An array by its member's name."""
        if name not in self.manifest["checksums"]:
            raise CheckpointError(path=self._path, reason=f"the manifest names {name!r:.40}, which is not there")
        with self._archive.open(name) as member:
            return np.asarray(np.lib.format.read_array(member, allow_pickle=False))

    def _checked(self) -> dict[str, Any]:
        manifest = json.loads(self._archive.read(_MANIFEST))
        if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
            raise CheckpointError(path=self._path, reason="it is no checkpoint")
        if manifest["format_version"] != _VERSION:
            found = manifest["format_version"]
            raise CheckpointError(
                path=self._path, reason=f"it is of version {found!r:.20}, this program reads {_VERSION}"
            )
        for name, checksum in manifest["checksums"].items():
            if checksum != self._archive.getinfo(name).CRC:
                raise CheckpointError(path=self._path, reason=f"{name} is not the array that was saved")
        damaged = self._archive.testzip()  # reads all of it
        if damaged is not None:
            raise CheckpointError(path=self._path, reason=f"{damaged} is damaged: its checksum is wrong")
        return manifest


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[Reader]:
    """An archive to read; raises CheckpointError if it is missing, damaged, incomplete or something else."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield Reader(str(path), archive)
    except OSError as error:
        raise CheckpointError(path=str(path), reason=f"cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(path=str(path), reason=f"damaged or incomplete: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path=str(path), reason=f"malformed: {error}") from error

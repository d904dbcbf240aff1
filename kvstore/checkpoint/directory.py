"""A directory of checkpoints of a whole job: parts, which the servers write, and for each checkpoint a manifest.

Files are written aside, synced and renamed, the manifest last. **A checkpoint whose manifest is not there, or names a
part that is not there in every byte, does not exist.** All names are ours, and opened relative to the directory.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pslite.errors import CheckpointError
from pslite.failpoints import failpoint

from .archive import explained, sync_directory
from .job import Id, Stamp
from .part import Described, Part

log = logging.getLogger("kvstore")

_FORMAT = "pslite checkpoint of a job"
_VERSION = 1
_ASIDE = "tmp-"
_BUFFER = 1024 * 1024  # bytes: small keys are written together
_NAME = re.compile(r"(?:tmp-)?([0-9]{6})-([0-9]{10})(\.manifest|-[0-9]{5}\.part)")


@dataclass(slots=True, eq=False)
class Checkpoint:
    """One that was found complete; its parts' files are open."""

    id: Id
    job: str
    parts: list[Part]

    def pieces(self) -> Iterable[tuple[Part, Described]]:
        """Every key, or piece of one, with the part that has it."""
        return ((part, described) for part in self.parts for described in part.keys)

    def close(self) -> None:
        for part in self.parts:
            part.close()


class Directory:
    """An open directory, made if it was not there. Raises CheckpointError if it cannot be. Not thread-safe."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            if not os.path.isdir(path):
                os.makedirs(path, exist_ok=True)  # all servers do it at once
                sync_directory(Path(os.path.abspath(path)).parent)
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(path=self.path, reason=f"cannot be opened: {error.strerror or error}") from error

    def close(self) -> None:
        os.close(self._fd)

    def lock(self) -> None:
        """Let no other job write here until this process has ended; raises CheckpointError if one does."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reason = "another job writes its checkpoints there: give each job its own directory"
            raise CheckpointError(path=self.path, reason=reason) from None
        except OSError as error:  # some network file systems know no locks
            log.info("%s cannot be locked: %s", self.path, error)

    # -- writing ------------------------------------------------------------------------------------------------------

    def begin(self, name: str) -> IO[bytes]:
        """A new file that is written aside, until ``settle`` or ``discard``."""
        file = self._open(_ASIDE + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "wb")
        failpoint("checkpoint_begun")
        return file

    def settle(self, name: str, file: IO[bytes]) -> None:
        """All is written: make it durable under its name."""
        file.flush()
        failpoint("checkpoint_before_sync")
        os.fsync(file.fileno())
        failpoint("checkpoint_before_rename")
        os.rename(_ASIDE + name, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        failpoint("checkpoint_after_rename")
        os.fsync(self._fd)

    def discard(self, name: str) -> None:
        """Remove what was written aside, as far as that is possible."""
        self.remove(_ASIDE + name)

    def remove(self, name: str) -> None:
        """Remove a file, as far as that is possible."""
        with suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def complete(self, id: Id, job: str, stamps: list[Stamp]) -> str:
        """All parts, in the servers' order, are there: write the manifest; returns its path. Raises OSError."""
        for server, stamp in enumerate(stamps):
            size = os.stat(id.part(server), dir_fd=self._fd, follow_symlinks=False).st_size
            if size != stamp.length:
                raise OSError(errno.EIO, f"{id.part(server)} has {size} bytes of {stamp.length}")
        content = {"format": _FORMAT, "format_version": _VERSION, "job": job, **id._asdict()}
        failpoint("checkpoint_before_manifest")
        text = json.dumps({**content, "parts": [asdict(stamp) for stamp in stamps]}).encode()
        file = self.begin(id.manifest)
        with file:
            file.write(b"%s\n%08x\n" % (text, zlib.crc32(text)))
            self.settle(id.manifest, file)
        return os.path.join(self.path, id.manifest)

    def prune(self, keep: int, newest: Id) -> None:
        """Remove all but the ``keep`` last checkpoints, and what is left of those that were never complete."""
        kept = set(sorted(self.ids())[-keep:])
        doomed = [name for name in os.listdir(self._fd) if (id := _id_of(name)) and id not in kept and id < newest]
        for name in sorted(doomed, key=lambda name: not name.endswith(".manifest")):  # manifests first
            os.unlink(name, dir_fd=self._fd)

    # -- reading ------------------------------------------------------------------------------------------------------

    def ids(self) -> list[Id]:
        """Of all checkpoints with a manifest, the newest first."""
        names = [name for name in os.listdir(self._fd) if name.endswith(".manifest") and not name.startswith(_ASIDE)]
        return sorted((id for name in names if (id := _id_of(name))), reverse=True)

    def last(self) -> Id:
        """The highest epoch, and the highest number, that any file here has: 0 if there is none."""
        ids = [id for name in os.listdir(self._fd) if (id := _id_of(name))]
        return Id(max((id.epoch for id in ids), default=0), max((id.number for id in ids), default=0))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint whose every byte is as it was written; those that are not are logged and passed over.

        None if there is no checkpoint; raises CheckpointError if there are but none is good.
        """
        why = ""
        for id in self.ids():
            try:
                checkpoint = self.open(id)
            except CheckpointError as error:
                log.warning("passed over: %s", error)
                why = why or str(error)
                continue
            try:
                for part in checkpoint.parts:
                    part.check()
                return checkpoint
            except CheckpointError as error:
                checkpoint.close()
                log.warning("passed over: %s", error)
                why = why or str(error)
        if why:
            raise CheckpointError(path=self.path, reason=f"no checkpoint in it is good; of the newest {why}")
        return None

    def open(self, id: Id) -> Checkpoint:
        """A checkpoint whose arrays are checked when they are read; raises CheckpointError."""
        path = os.path.join(self.path, id.manifest)
        with explained(path), self._open(id.manifest, os.O_RDONLY, "rb") as file:
            manifest = _parsed(file.read())
            if Id(manifest["epoch"], manifest["number"]) != id:
                raise ValueError("it is the manifest of another checkpoint")
            job, stamps = str(manifest["job"]), [Stamp(**stamp) for stamp in manifest["parts"]]
        parts: list[Part] = []
        try:
            for server, stamp in enumerate(stamps):
                parts.append(self._part(id, server, stamp))
                expected = id.header(job, server, len(stamps))
                if {name: parts[-1].header.get(name) for name in expected} != expected:
                    raise CheckpointError(path=path, reason=f"part {server} is of another checkpoint")
        except BaseException:
            for part in parts:
                part.close()
            raise
        return Checkpoint(id, job, parts)

    def _part(self, id: Id, server: int, stamp: Stamp) -> Part:
        path = os.path.join(self.path, id.part(server))
        with explained(path):
            file = self._open(id.part(server), os.O_RDONLY, "rb")
        try:
            return Part(path, file, stamp)
        except BaseException:
            file.close()
            raise

    def _open(self, name: str, flags: int, mode: str) -> IO[bytes]:
        """``name`` is one of ours: no path, and no link is followed. A pipe does not hold us up."""
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=self._fd)
        return os.fdopen(descriptor, mode, _BUFFER)


def _id_of(name: str) -> Id | None:
    match = _NAME.fullmatch(name)
    return Id(int(match[1]), int(match[2])) if match else None


def _parsed(data: bytes) -> dict[str, Any]:
    """A manifest; raises anything if it is damaged."""
    text, checksum, rest = data.split(b"\n")
    manifest = json.loads(text)
    if rest or checksum != b"%08x" % zlib.crc32(text) or manifest["format"] != _FORMAT:
        raise ValueError("its checksum is wrong")
    if manifest["format_version"] != _VERSION:
        raise ValueError(f"it is of version {manifest['format_version']!r:.20}, this program reads {_VERSION}")
    return manifest  # type: ignore[no-any-return]

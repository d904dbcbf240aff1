"""The directory of checkpoints: files as processes that are killed leave them, on a disk that fails now and then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from kvstore.checkpoint.directory import Checkpoint, Directory
from kvstore.checkpoint.job import Id
from kvstore.server.saving import Saving
from pslite.errors import CheckpointError

from .world import Violation

if TYPE_CHECKING:
    from .job import Job

ERRORS = (errno.EIO, errno.ENOSPC)
SLOW = (0.0001, 0.01, 0.2)  # seconds that a step of writing may take


class File:
    """A file that is written; what was not flushed dies with its process."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk, self._fd, self._unwritten = disk, descriptor, b""

    def write(self, data: Any) -> None:
        self._unwritten += bytes(data)

    def flush(self) -> None:
        data, self._unwritten = self._unwritten, b""
        written = self._disk.may_fail("write")
        os.write(self._fd, data if written else data[: len(data) // 2])
        if not written:
            raise OSError(self._disk.pick(ERRORS), "the disk failed")

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Disk(Directory):
    """One process's view of it."""

    def __init__(self, job: Job, path: str) -> None:
        super().__init__(path)
        self.path = "checkpoints"  # as messages call it: the same in every run
        self._job, self._files = job, []  # type: ignore[var-annotated]
        self.pick = job.world.rng.choice
        job.acting.disks.append(self)  # type: ignore[attr-defined]

    def may_fail(self, what: str) -> bool:
        """A step of writing: the process may die here; False if the disk fails."""
        self._job.acting.point("file")
        return self._job.world.rng.random() >= self._job.plan.disk_errors

    def begin(self, name: str) -> Any:
        if not self.may_fail("open"):
            raise OSError(self.pick(ERRORS), "the disk failed")
        return super().begin(name)

    def _open(self, name: str, flags: int, mode: str) -> Any:
        file = super()._open(name, flags, mode)
        if mode != "wb":
            return file
        with file:
            self._files.append(mine := File(self, os.dup(file.fileno())))
        return mine

    def settle(self, name: str, file: Any) -> None:
        if not self.may_fail("sync"):
            raise OSError(self.pick(ERRORS), "the disk failed")
        super().settle(name, file)
        self._job.disk.settled(name)
        self._job.acting.point("file")

    def end(self) -> None:
        """The process is gone."""
        for file in self._files:
            file.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class Oracle:
    """Knows which files were damaged behind the servers' backs, and what a checkpoint may contain."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.damaged: set[Id] = set()
        self.written = 0

    def settled(self, name: str) -> None:
        """A file is there under its name; later one of its bits may turn over."""
        self.written += name.endswith(".manifest")
        rng = self._job.world.rng
        if rng.random() < self._job.plan.bit_flips:
            with open(os.path.join(self._job.directory, name), "r+b") as file:
                at = rng.randrange(os.fstat(file.fileno()).st_size)
                file.seek(at)
                [byte] = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ 1 << rng.randrange(8)]))
            epoch, number = name.split(".")[0].split("-")[:2]
            self.damaged.add(Id(int(epoch), int(number)))

    def check(self) -> None:
        """The newest one that nobody damaged is what a job would go on from."""
        directory = Directory(self._job.directory)
        ids = directory.ids()
        good = max((id for id in ids if id not in self.damaged), default=None)
        try:
            found = directory.newest()
        except CheckpointError as error:
            if good is not None:
                raise Violation(f"checkpoint {good} cannot be read: {error}") from error
            return
        finally:
            directory.close()
        try:
            if (None if found is None else found.id) != good:
                raise Violation(f"of the checkpoints {[*map(str, ids)]} {found and found.id} is taken, not {good}")
            if found is not None:
                self._check_keys(found)
        finally:
            if found is not None:
                found.close()

    def _check_keys(self, found: Checkpoint) -> None:
        for part, described in found.pieces():
            unit = part.unit(described)
            value = unit.arrays["value"].tolist()
            slot = unit.arrays["slot/copy"].tolist() if unit.count else value
            self._job.oracle.on_saved(str(found.id), self._job.key_named(described.spec.key), value, unit.version)
            if slot != value:
                raise Violation(f"{found.id} has {value} of key {described.spec.key}, and the slot {slot}")


def do(self: Saving, id: Id, job: Callable[[], Any], then: Callable[[Id, Any], None] | None) -> None:
    """``Saving._do`` in virtual time, in place of a thread."""
    self._office._server.write(partial(_run, self, id, job, then))  # type: ignore[attr-defined]


def _run(saving: Saving, id: Id, job: Callable[[], Any], then: Callable[[Id, Any], None] | None) -> None:
    try:
        result = job()
    except Exception as error:
        saving._office.later(partial(saving._failed, id, error))
    else:
        if then is not None:
            saving._office.later(partial(then, id, result))

"""The files that one server writes of checkpoints. Everything here runs on its thread of files, and raises OSError."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from kvstore.checkpoint.directory import Directory
from kvstore.checkpoint.job import Id, Saved, Stamp
from kvstore.checkpoint.part import PartWriter
from pslite.failpoints import failpoint

log = logging.getLogger("kvstore.server")


class PartFile:
    """At most one part is being written; to begin another one gives it up."""

    def __init__(self, directory: Directory, job: str, server: int, servers: int) -> None:
        self._directory = directory
        self._job = job
        self._server = server
        self._servers = servers
        self._name: str | None = None  # of what is being written
        self._file: IO[bytes] | None = None
        self._writer: PartWriter | None = None

    def begin(self, id: Id, settings: dict[str, Any]) -> None:
        """Begin a part, aside."""
        self.close()
        self._name = id.part(self._server)
        self._file = self._directory.begin(self._name)
        header = id.header(self._job, self._server, self._servers)
        self._writer = PartWriter(self._file, {**header, "settings": settings})

    def add(self, taken: Sequence[Saved]) -> None:
        """Write keys."""
        assert self._writer is not None
        for saved in taken:
            self._writer.add(saved)

    def finish(self) -> Stamp:
        """The part is there, under its name."""
        assert self._writer is not None and self._name is not None and self._file is not None
        stamp = self._writer.finish()
        self._directory.settle(self._name, self._file)
        self._name = None  # there is nothing aside any more
        self.close()
        return stamp

    def drop(self, id: Id) -> None:
        """Remove this server's part of a checkpoint that will not be complete."""
        if self._name == id.part(self._server):
            self.close()
        self._directory.remove(id.manifest)  # first: it may have its name, and not be durable
        self._directory.remove(id.part(self._server))

    def complete(self, id: Id, stamps: list[Stamp], keep: int) -> str:
        """On server 0, when all parts are there: write the manifest, and remove old checkpoints; returns its path."""
        path = self._directory.complete(id, self._job, stamps)
        failpoint("checkpoint_before_prune")
        try:
            self._directory.prune(keep, id)
        except OSError as error:  # the new one is there all the same
            log.warning("old checkpoints in %s cannot be removed: %s", self._directory.path, error)
        return path

    def close(self) -> None:
        """Give up what is being written."""
        name, file, self._name, self._file, self._writer = self._name, self._file, None, None, None
        if file is not None:
            with suppress(OSError):  # it may be why we give up
                file.close()
        if name is not None:
            self._directory.discard(name)

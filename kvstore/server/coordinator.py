"""Server 0's part in checkpoints of the whole job: when one begins, and when it is complete. No I/O, no clock.

One is under way at a time. Its number is never used again, so a part that comes late belongs to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvstore.checkpoint.job import Id, Stamp
from pslite.errors import CheckpointError, PSError

from .ticket import Ticket


@dataclass(slots=True, eq=False)
class _Running:
    """The checkpoint that is being written."""

    id: Id
    since: float  # seconds
    asked: list[Ticket]  # who waits for it
    stamps: dict[int, Stamp] = field(default_factory=dict)  # by server: its part is there
    fetched: int = 0
    whole: bool = False  # all parts are there, and durable: nothing is missing but the manifest


class Coordinator:
    """``begin`` says that servers are to write, ``on_part`` that all have; tickets that are done are in ``done``."""

    def __init__(self, servers: int, last: Id, within: float | None, elements: int = 0) -> None:
        """``last``: highest epoch and number so far. ``within``: seconds that the servers have, None for ever.

        ``elements``: of the checkpoint that this job goes on from; until all are fetched a new one would have less.
        """
        self._servers = servers
        self._last = Id(last.epoch + 1, last.number)
        self._within = within
        self._elements = elements
        self._running: _Running | None = None
        self._asked: list[Ticket] = []  # who waits for the next one
        self._due = False
        self.done: list[Ticket] = []
        self.written = self.failed = 0
        self.path: str | None = None  # of the last one
        self.error: str | None = None  # why the last attempt failed, if it did

    def ask(self, ticket: Ticket | None = None) -> None:
        """A checkpoint is wanted that begins from now on, by a worker or because it is time."""
        self._due = True
        if ticket is not None:
            self._asked.append(ticket)

    def begin(self, now: float) -> Id | None:
        """The checkpoint that all servers are to begin now, if one is wanted and none is under way."""
        running = self._running
        late_at = float("inf") if running is None or self._within is None else running.since + self._within
        if running is not None and not running.whole and now > late_at:
            late = ", ".join(self._absent(running))
            self.fail(running.id, CheckpointError(path=str(running.id), reason=f"after {self._within:g} s {late}"))
        if self._running is not None or not self._due:
            return None
        self._last = Id(self._last.epoch, self._last.number + 1)
        self._running, self._asked, self._due = _Running(self._last, now, self._asked), [], False
        return self._last

    def on_part(self, server: int, id: Id, stamp: Stamp, fetched: int) -> list[Stamp] | None:
        """A server's part is there. When all are: the stamps, in the servers' order, for the manifest."""
        running = self._running
        if running is None or running.id != id or server in running.stamps:
            return None
        running.stamps[server] = stamp
        running.fetched += fetched
        if len(running.stamps) < self._servers:
            return None
        if running.fetched < self._elements:
            reason = "not all keys of the checkpoint that the job goes on from are initialised yet"
            self.fail(id, CheckpointError(path=str(id), reason=reason))
            return None
        running.whole = True
        return [running.stamps[rank] for rank in range(self._servers)]

    def complete(self, id: Id, path: str) -> None:
        """The manifest is there."""
        if self._running is not None and self._running.id == id:
            self.written, self.path, self.error = self.written + 1, path, None
            self._end(path, None)

    def fail(self, id: Id, error: PSError, of_files: bool = False) -> bool:
        """It cannot be written; whether that is news.

        ``of_files``: our own. When all parts are there it does not matter any more what becomes of the other servers.
        """
        if self._running is None or self._running.id != id or (self._running.whole and not of_files):
            return False
        self.failed += 1
        self.error = str(error)
        self._end(None, error)
        return True

    def on_server_ended(self, error: PSError) -> None:
        """No part will come from there any more."""
        if self._running is not None:
            self.fail(self._running.id, error)

    def missing(self, mine: Callable[[Any], bool]) -> list[str]:
        """Who the request whose token is ``mine`` waits for."""
        running = self._running
        tickets = [*self._asked, *(running.asked if running is not None else [])]
        if running is None or not any(mine(ticket.token) for ticket in tickets):
            return []
        return self._absent(running)

    def _absent(self, running: _Running) -> list[str]:
        absent = [rank for rank in range(self._servers) if rank not in running.stamps]
        return [f"server {rank} (to write its part of checkpoint {running.id})" for rank in absent or [0]]

    def _end(self, path: str | None, error: PSError | None) -> None:
        assert self._running is not None
        for ticket in self._running.asked:
            ticket.body, ticket.error = path, error
        self.done += self._running.asked
        self._running = None

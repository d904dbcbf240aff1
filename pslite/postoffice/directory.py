"""The directory: which names exist and where they live, held by the scheduler. A state machine without I/O.

A record is whatever the publisher says about a name. Looking a name up waits until it is published, so that
``init`` is a rendezvous at the key and not a barrier of processes.
"""

from __future__ import annotations

from typing import Any

from pslite import ids
from pslite.errors import ConflictError, PSError
from pslite.wire import Message

from .barrier import Answer


class Directory:
    """Published records by name, and the look-ups that wait for names."""

    def __init__(self) -> None:
        self._records: dict[str, Any] = {}
        self._waiting: list[tuple[list[str], Message]] = []
        self.publisher = 0  # rank of the worker that publishes what is missing

    def publish(self, request: Message, records: dict[str, Any], rank: int) -> list[Answer]:
        """Add records; equal ones again are a no-op, different ones a ConflictError. Answers complete look-ups."""
        for name, record in records.items():
            if name in self._records and self._records[name] != record:
                was = self._records[name]
                error = ConflictError(what=f"the record of {name!r}", rank=rank, got=str(record), expected=str(was))
                return [Answer(request, error=error)]
        self._records.update(records)
        answers = [Answer(request)]
        still = []
        for names, waiter in self._waiting:
            if all(name in self._records for name in names):
                answers.append(Answer(waiter, {name: self._records[name] for name in names}))
            else:
                still.append((names, waiter))
        self._waiting = still
        return answers

    def lookup(self, request: Message, names: list[str]) -> list[Answer]:
        """Answer with ``{name: record}`` once every name is published."""
        if all(name in self._records for name in names):
            return [Answer(request, {name: self._records[name] for name in names})]
        self._waiting.append((names, request))
        return []

    def answer_publisher(self) -> list[Answer]:
        """Who publishes does not wait for anybody else: it gets what there is."""
        mine = [waiting for waiting in self._waiting if waiting[1].sender == ids.worker_id(self.publisher)]
        self._waiting = [waiting for waiting in self._waiting if waiting not in mine]
        return [Answer(w, {name: self._records[name] for name in names if name in self._records}) for names, w in mine]

    def missing(self, request: Message) -> list[str]:
        """The names that this request waits for."""
        for names, waiter in self._waiting:
            if waiter is request:
                by = f"worker {self.publisher}"
                return [f"the init of {name!r} by {by}" for name in names if name not in self._records]
        return []

    def fail(self, error: PSError) -> list[Answer]:
        """The publisher is gone: every look-up that waits gets the error."""
        waiting, self._waiting = self._waiting, []
        return [Answer(request, error=error) for _, request in waiting]

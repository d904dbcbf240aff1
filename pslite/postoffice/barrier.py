"""Barriers: sets of nodes per group, held by the scheduler. A state machine without I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pslite import ids
from pslite.errors import PSError, WorkerFinished
from pslite.wire import Message


@dataclass(slots=True)
class Answer:
    """An action: answer this request with a body, or with an error."""

    request: Message
    body: Any = None
    error: PSError | None = None


@dataclass(slots=True)
class _Barrier:
    members: frozenset[int]
    arrived: dict[int, Message] = field(default_factory=dict)  # node id -> its request

    @property
    def missing(self) -> list[int]:
        return sorted(self.members - self.arrived.keys())


class Barriers:
    """All barriers that somebody waits at, by (group, customer)."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], _Barrier] = {}

    def enter(self, request: Message, group: int, members: Iterable[int]) -> list[Answer]:
        """A node arrived; answers everybody once all members of the group have. Arriving twice counts once."""
        key = (group, request.customer)
        barrier = self._waiting.setdefault(key, _Barrier(frozenset(members)))
        again = barrier.arrived.get(request.sender)
        barrier.arrived[request.sender] = request
        answers = [Answer(again)] if again is not None else []  # it stopped waiting for that one
        if barrier.missing:
            return answers
        del self._waiting[key]
        return answers + [Answer(r) for r in barrier.arrived.values()]

    def on_gone(self, node: int, error: PSError) -> list[Answer]:
        """A node ended: whoever waits for it gets the error, and if it died so do those who wait with it."""
        died = not isinstance(error, WorkerFinished)
        answers = []
        for key, barrier in list(self._waiting.items()):
            if node in barrier.members and (died or node not in barrier.arrived):
                del self._waiting[key]
                answers += [Answer(r, error=error) for r in barrier.arrived.values()]
        return answers

    def missing(self, request: Message) -> list[str]:
        """Who this request waits for."""
        for barrier in self._waiting.values():
            if any(r is request for r in barrier.arrived.values()):
                return [ids.name_of(n) for n in barrier.missing]
        return []

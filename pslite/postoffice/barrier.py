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
    numbers: dict[int, int] = field(default_factory=dict)  # node id -> which of its barriers this is

    @property
    def missing(self) -> list[int]:
        return sorted(self.members - self.arrived.keys())


class Barriers:
    """All barriers that somebody waits at, by (group, customer)."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], _Barrier] = {}
        self._passed: dict[tuple[int, int, int], int] = {}  # the last number, by group, customer and node

    def enter(self, request: Message, group: int, members: Iterable[int], number: int = 0) -> list[Answer]:
        """A node arrived; answers everybody once all members of the group have. Arriving twice counts once.

        ``number``: grows with each barrier of a node, from 1. A node that was restarted comes to those it has passed.
        """
        key = (group, request.customer)
        if 0 < number <= self._passed.get((*key, request.sender), 0):
            return [Answer(request)]
        barrier = self._waiting.setdefault(key, _Barrier(frozenset(members)))
        again = barrier.arrived.get(request.sender)
        barrier.arrived[request.sender], barrier.numbers[request.sender] = request, number
        answers = [Answer(again)] if again is not None else []  # it stopped waiting for that one
        return answers + self._open(key)

    def _open(self, key: tuple[int, int]) -> list[Answer]:
        """Answer everybody at a barrier that all have reached."""
        barrier = self._waiting[key]
        if barrier.missing:
            return []
        del self._waiting[key]
        self._passed.update(((*key, node), barrier.numbers[node]) for node in barrier.arrived)
        return [Answer(r) for r in barrier.arrived.values()]

    def on_away(self, node: int) -> None:
        """A node died, and will come again."""
        for barrier in self._waiting.values():
            barrier.arrived.pop(node, None)

    def on_dropped(self, node: int) -> list[Answer]:
        """A node died, and the others go on without it."""
        self.on_away(node)
        answers = []
        for key, barrier in list(self._waiting.items()):
            barrier.members -= {node}
            answers += self._open(key)
        return answers

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

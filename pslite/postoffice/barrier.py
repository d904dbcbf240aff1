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


Late = tuple[int, ...] | None
"""The workers that came later and count at a barrier, as its members say; None: all that are there."""


class Barriers:
    """All barriers that somebody waits at, by (group, customer).

    Where workers may come later, those that are steps apart differ in who is a member: their barriers are not the same.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int, Late], _Barrier] = {}
        self._passed: dict[tuple[int, int, int], int] = {}  # the last number, by group, customer and node
        self._opened: dict[tuple[int, int], int] = {}  # how many were opened: the last one's serial
        self._owed: set[tuple[int, int, int]] = set()  # who was let pass the last one, and did not hear of it

    def enter(
        self, request: Message, group: int, members: Iterable[int], number: int = 0, late: Late = None
    ) -> list[Answer]:
        """A node arrived; answers everybody once all members of the group have. Arriving twice counts once.

        ``number``: grows with each barrier of a node, from 1. A node that was restarted comes to those it has passed.
        The answer is ``[serial, number]``: of the last barrier that this node has passed.
        """
        if (done := self.passed(request, group, number)) is not None:
            return [done]
        key = (group, request.customer, late)
        barrier = self._waiting.setdefault(key, _Barrier(frozenset(members)))
        again = barrier.arrived.get(request.sender)
        barrier.arrived[request.sender], barrier.numbers[request.sender] = request, number
        answers = [Answer(again, [0, 0])] if again is not None else []  # it stopped waiting for that one
        return answers + self._open(key)

    def passed(self, request: Message, group: int, number: int) -> Answer | None:
        """The answer to a node that comes to a barrier that was opened for it before, whoever has ended since."""
        key = (group, request.customer)
        passed = self._passed.get((*key, request.sender), 0)
        if 0 < number <= passed:
            return Answer(request, [self._opened.get(key, 0), passed])
        if (*key, request.sender) in self._owed:
            self._owed.discard((*key, request.sender))
            return self._pass(key, request, number)
        return None

    def _open(self, at: tuple[int, int, Late]) -> list[Answer]:
        """Answer everybody at a barrier that all have reached."""
        barrier, key = self._waiting[at], at[:2]
        if barrier.missing:
            return []
        del self._waiting[at]
        self._opened[key] = self._opened.get(key, 0) + 1
        return [self._pass(key, r, barrier.numbers[node]) for node, r in barrier.arrived.items()]

    def _pass(self, key: tuple[int, int], request: Message, number: int) -> Answer:
        self._passed.update({(*key, request.sender): number})
        return Answer(request, [self._opened[key], number])

    def restore(self, passed: dict[int, dict[tuple[int, int], tuple[int, int]]], nodes: Iterable[int]) -> None:
        """What nodes have passed, by (group, customer): serial and number.

        Who says nothing of a barrier that others have passed was there, with their number: else it had not opened.
        """
        keys = {key for each in passed.values() for key in each}
        for key in keys:
            serial = max(each[key][0] for each in passed.values() if key in each)
            number = max(each[key][1] for each in passed.values() if key in each and each[key][0] == serial)
            self._opened[key] = serial
            for node in nodes:
                own = passed.get(node, {}).get(key)
                self._passed.update({(*key, node): number if own is None else own[1]})
                if own is not None and own[0] < serial:
                    self._owed.add((*key, node))

    def of(self, node: int) -> list[list[int]]:
        """``[group, customer, serial, number]`` of the last barriers that a node has passed."""
        passed = {key[:2]: number for key, number in self._passed.items() if key[2] == node}
        return [[*key, self._opened[key], number] for key, number in passed.items() if key in self._opened]

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

"""A key of a server with the requests that wait for it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvstore.rows import Ids, Received
from kvstore.rules import Rule
from kvstore.spec import Place
from kvstore.steps import step_of
from kvstore.value import Value

from .ticket import Ticket

Number = int | NDArray[np.uint64]
"""The number of a worker's push of a key, or in a bundle of each of its keys. It grows with every push."""


@dataclass(slots=True, eq=False)
class Contribution:
    """One key of a request: a push (with content) or a pull that waits behind one (without)."""

    ticket: Ticket
    index: int
    content: Received | None
    ids: Ids | None  # the rows that a pull wants; None: all
    rule: Rule | None  # in force when it arrived; rank order decides whose counts
    number: Number = 0  # of the push, by its worker; of a pull 0
    past: bool = False  # its worker died; the successor has not come so far yet

    @property
    def step(self) -> int:
        """The step of the push."""
        return step_of(self.number if isinstance(self.number, int) else int(self.number[0]))


@dataclass(slots=True, eq=False)
class Entry:
    """A key with what waits for it."""

    value: Value
    split: bool  # a piece of an array whose other pieces are on other servers
    queues: dict[int, deque[Contribution]] = field(default_factory=dict)  # by rank
    rounds: int = 0  # rounds that were applied, or failed in user code
    taken: dict[int, Number] = field(default_factory=dict)  # by rank: its last push that is here, or was applied
    applied: dict[int, Number] = field(default_factory=dict)  # by rank: its last push that is in the value, or failed
    bundle: Entry | None = None  # which has its value now, and what waits for it
    told: int = 0  # number of its last change, as its log counts them
    place: Place | None = None  # of a piece; None: it is the whole array

    @property
    def keys(self) -> int:
        """How many keys this is."""
        return 1

    @property
    def version(self) -> int | NDArray[np.uint64]:
        """What answers tell."""
        return self.value.version

    def add(self, rank: int, contribution: Contribution) -> None:
        """Put it behind what this process asked for before.

        A restarted worker redoes a step: what its predecessor pushed for later ones does not hold it up, for that may
        wait for others which wait for this one.
        """
        queue = self.queues.setdefault(rank, deque())
        if not queue or contribution.past:
            queue.append(contribution)
        elif contribution.content is not None:
            for earlier in queue:
                earlier.past = False
            queue.append(contribution)
        else:
            queue.insert(self._place(queue, contribution), contribution)

    def _place(self, queue: deque[Contribution], pull: Contribution) -> int:
        """Behind the push that it belongs to, if that was taken in before; else behind all of this process."""
        for place, earlier in enumerate(queue):
            if isinstance(pull.number, int) and isinstance(earlier.number, int):
                earlier.past = earlier.past and earlier.number > pull.number
            if earlier.past:
                return place
        return len(queue)

    def leave(self, rank: int) -> None:
        """The process of this rank died, and another one will take its place."""
        last: Number = 0
        for contribution in self.queues.get(rank, ()):
            if isinstance(contribution.number, int) and contribution.number == 0:
                contribution.number = last  # a pull is passed with the push before it
            last, contribution.past = contribution.number, True

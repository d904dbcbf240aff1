"""A request that the server's brain has taken in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import Array
from kvstore.commands import WHOLE
from kvstore.compression import Codec


@dataclass(slots=True, eq=False)
class Answer:
    """What a pull gets for one key."""

    arrays: list[Array]
    codes: list[int]  # of dtypes, for each array
    version: int | NDArray[np.uint64]  # of a bundle those of its keys
    kind: int = WHOLE
    fresh: bool = False  # the arrays were made for this answer: nobody else refers to them


UNASKED = object()
"""The token of a key's own ticket until the worker asks for its outcome."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One request that is being served. ``token`` is the shell's; the rest is the brain's."""

    token: Any
    rank: int
    pull: bool = False
    codec: Codec | None = None  # for what it pulls
    due: int = 0  # keys that are not done
    answers: list[Answer | None] = field(default_factory=list)  # of a pull, by the request's order of keys
    error: Exception | None = None
    body: Any = None  # of the answer to a collective call
    what: str = ""  # the user code that raised the error
    finished: bool = False
    number: int | None = None  # of a burst: its worker's calls have an end each, not one together
    apart: list[Ticket] = field(default_factory=list)  # of a burst that is served key by key: its keys' own
    whole: Ticket | None = None  # of such a key: its burst
    hurried: bool = False  # a burst whose worker does not wait for all of it
    needs: int = 0  # the change that others must have before it is answered: they may take this server's place
    told: bool = False  # that it is served key by key

    def per_key(self, count: int) -> list[tuple[Ticket, int]]:
        """Where each of so many keys is answered, with its place there."""
        self.due, self.answers = count, [None] * count
        if self.number is None:
            return [(self, index) for index in range(count)]
        self.apart = [Ticket(UNASKED, self.rank, self.pull, None, 1, [None], whole=self) for _ in range(count)]
        return [(ticket, 0) for ticket in self.apart]

"""A request that the server's brain has taken in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvstore.arrays import Array


@dataclass(slots=True, eq=False)
class Answer:
    """What a pull gets for one key."""

    arrays: list[Array]
    code: int
    version: int


@dataclass(slots=True, eq=False)
class Ticket:
    """One request that is being served. ``token`` is the shell's; the rest is the brain's."""

    token: Any
    rank: int
    pull: bool = False
    due: int = 0  # keys that are not done
    answers: list[Answer | None] = field(default_factory=list)  # of a pull, by the request's order of keys
    error: Exception | None = None
    what: str = ""  # the user code that raised the error
    finished: bool = False

"""A request that the server's brain has taken in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvstore.arrays import Array


@dataclass(slots=True, eq=False)
class Ticket:
    """One request that is being served. ``token`` is the shell's; the rest is the brain's."""

    token: Any
    rank: int
    pull: bool = False
    due: int = 0  # keys that are not done
    values: list[Array] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    error: Exception | None = None
    what: str = ""  # the user code that raised the error
    finished: bool = False

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

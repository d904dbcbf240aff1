"""A worker begins with rank 0's duties, because all workers before it are lost and the job goes on without them.

Who that is the scheduler decides, and tells everybody. A server that says that it knows takes nothing from those
workers any more, so when all have, what is there of the keys that they were creating stays as it is: those that the
directory has are kept, the others removed, for nobody knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pslite import Postoffice

from .commands import HELD_AT_ONCE
from .keys import Key
from .saver import in_batches


@dataclass(frozen=True, slots=True)
class Share:
    """What a server has: keys on the wire are used up to an ordinal, and how many bytes there are."""

    used: int
    nbytes: int


def succeed(ask: Callable[[str, Any], list[Any]], office: Postoffice) -> list[Share]:
    """Have all servers take this worker for the one that makes keys; returns what each has. ``ask`` asks them all.

    It changes nothing that is known to others, so a worker that dies meanwhile is succeeded likewise.
    """
    ask("lead", None)
    first = 0
    while True:
        answers = ask("held", first)
        orphans = _orphans(office, [(int(wire), key) for *_, keys in answers for wire, key in keys])
        if orphans:
            ask("forget", orphans)
        shares = [Share(used, nbytes) for used, nbytes, _ in answers]
        first += HELD_AT_ONCE
        if first >= max(share.used for share in shares):
            return shares


def _orphans(office: Postoffice, untouched: list[tuple[int, Key]]) -> list[int]:
    """The keys on the wire, of these, that the directory does not have."""
    known: set[int] = set()
    for batch in in_batches(list({key for _, key in untouched})):
        found = office.lookup([repr(key) for key in batch])
        known |= {wire for _, _, pieces, *_ in found.values() for wire, _, _ in pieces}
    return [wire for wire, _ in untouched if wire not in known]

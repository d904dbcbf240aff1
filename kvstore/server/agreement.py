"""Collective settings: rank 0 decides, the other ranks must say the same. A state machine without I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pslite.errors import ConflictError, PeerError, PSError

from .ticket import Ticket

KEPT_CHANGES = 100  # of a setting: a slow rank may be that many behind


@dataclass(slots=True, eq=False)
class _Said:
    """A setting as rank 0 gave it; ``error``: why it does not count."""

    number: int
    value: Any
    error: PSError | None


class Agreement:
    """What the ranks say about each setting. Ranks may be some changes apart: each follows rank 0 at its own pace."""

    def __init__(self, adopt: Callable[[str, Any], PSError | None]) -> None:
        self._adopt = adopt  # makes a setting count from now on, or says why it cannot
        self._said: dict[str, deque[_Said]] = {}  # by rank 0: changes only, oldest first
        self._heard: dict[tuple[str, int], int] = {}  # the number of what another rank agreed to last
        self._waiting: list[tuple[str, Any, Ticket]] = []  # other ranks' calls that came before rank 0's
        self._gone: PeerError | None = None  # why rank 0 will say nothing more

    def say(self, ticket: Ticket, what: str, value: Any) -> list[Ticket]:
        """A rank's call; returns the tickets that are decided now. Saying the same again changes nothing."""
        if ticket.rank != 0:
            self._waiting.append((what, value, ticket))
            return self._compare()
        said = self._said.setdefault(what, deque(maxlen=KEPT_CHANGES))
        if not said or said[-1].value != value or said[-1].error is not None:
            number = said[-1].number + 1 if said else 1
            said.append(_Said(number, value, self._adopt(what, value)))
        ticket.error = said[-1].error
        return [ticket, *self._compare()]

    def follows(self, rank: int, what: str) -> bool:
        """Whether a rank has said the same as rank 0 did last."""
        said = self._said.get(what)
        if not said:
            return False
        return rank == 0 or self._heard.get((what, rank)) == said[-1].number

    def to_kept(self) -> dict[str, Any]:
        """What was decided, as plain data for ``from_kept``; calls that wait come again."""
        said = {
            what: [[s.number, s.value, None if s.error is None else s.error.to_wire()] for s in known]
            for what, known in self._said.items()
        }
        return {"said": said, "heard": [[what, rank, number] for (what, rank), number in self._heard.items()]}

    def from_kept(self, kept: dict[str, Any]) -> None:
        """Go on with what a predecessor had decided."""
        for what, known in kept["said"].items():
            said = [_Said(n, value, None if error is None else PSError.from_wire(error)) for n, value, error in known]
            self._said[what] = deque(said, maxlen=KEPT_CHANGES)
        self._heard = {(what, rank): number for what, rank, number in kept["heard"]}

    def on_decider_gone(self, error: PeerError) -> list[Ticket]:
        """Rank 0 has ended: what it has not decided never will be."""
        self._gone = error
        return self._compare()

    def _compare(self) -> list[Ticket]:
        waiting, self._waiting = self._waiting, []
        done = []
        for what, value, ticket in waiting:
            if self._decide(what, value, ticket):
                done.append(ticket)
            else:
                self._waiting.append((what, value, ticket))
        return done

    def _decide(self, what: str, value: Any, ticket: Ticket) -> bool:
        """Whether rank 0 has answered this call, or never will; sets the ticket's error."""
        said = self._said.get(what, ())
        heard = self._heard.get((what, ticket.rank), 0)
        new = [s for s in said if s.number > heard or (s.number == heard and s.error is None)]
        match = next((s for s in new if s.value == value), None)
        other = next((s for s in said if s.number > heard), None)
        if match is not None:
            self._heard[what, ticket.rank] = match.number
            ticket.error = match.error
        elif other is not None:
            got, expected = _differences(value, other.value)
            ticket.error = ConflictError(what=f"the {what}", rank=ticket.rank, got=got, expected=expected)
        else:
            ticket.error = self._gone
            return self._gone is not None
        return True

    def missing(self, mine: Callable[[Any], bool]) -> list[str]:
        """Who the call whose token is ``mine`` waits for."""
        return [
            f"worker 0 (to set the {what} as this worker did)"
            for what, _, ticket in self._waiting
            if mine(ticket.token)
        ]


def _differences(got: Any, expected: Any) -> tuple[str, str]:
    """Two settings as text: of lists that are equal besides, and of dicts, only what differs."""
    if isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        differing = [(g, e) for g, e in zip(got, expected, strict=True) if g != e]
        if len(differing) == 1:
            return _differences(*differing[0])
    if isinstance(got, dict) and isinstance(expected, dict):
        keys = [key for key in sorted({*got, *expected}) if got.get(key) != expected.get(key)]
        return ", ".join(f"{k}={got.get(k)!r}" for k in keys), ", ".join(f"{k}={expected.get(k)!r}" for k in keys)
    return str(got), str(expected)

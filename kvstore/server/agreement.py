"""Collective settings: the lead decides, the other ranks must say the same. A state machine without I/O.

The lead is rank 0, or the lowest rank that is left.
"""

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
    """A setting as the lead gave it; ``error``: why it does not count."""

    number: int
    value: Any
    error: PSError | None
    made: Any = None  # what became of it


class Agreement:
    """What the ranks say about each setting. Ranks may be some changes apart: each follows the lead at its own pace."""

    def __init__(self, adopt: Callable[[str, Any], Any], follow: Callable[[str, int, Any, bool], None]) -> None:
        """``adopt`` makes a setting count from now on, and returns what became of it; it raises PSError if it cannot.

        ``follow``: a rank has come to a setting, as it was made; whether that is the newest.
        """
        self._adopt = adopt
        self._follow = follow
        self._lead = 0
        self._said: dict[str, deque[_Said]] = {}  # by the lead: changes only, oldest first
        self._heard: dict[tuple[str, int], int] = {}  # the number of what a rank agreed to last
        self._waiting: list[tuple[str, Any, Ticket]] = []  # other ranks' calls that came before the lead's
        self._gone: PeerError | None = None  # why the lead will say nothing more

    def say(self, ticket: Ticket, what: str, value: Any) -> list[Ticket]:
        """A rank's call; returns the tickets that are decided now. Saying the same again changes nothing."""
        self._waiting.append((what, value, ticket))
        return self._compare()

    def follows(self, rank: int, what: str) -> bool:
        """Whether a rank has said the same as the lead did last."""
        said = self._said.get(what)
        return said is not None and self._heard.get((what, rank)) == said[-1].number

    def heard(self, what: str) -> list[int]:
        """The ranks that have agreed to one of a setting's values, whichever."""
        return [rank for setting, rank in self._heard if setting == what]

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

    def on_lead(self, lead: int, gone: PeerError | None) -> list[Ticket]:
        """``lead`` decides from now on; if it has ended, what is not decided never will be."""
        self._lead, self._gone = lead, gone
        return self._compare()

    def _compare(self) -> list[Ticket]:
        waiting, self._waiting = sorted(self._waiting, key=lambda call: call[2].rank != self._lead), []
        done = []
        for what, value, ticket in waiting:
            if self._decide(what, value, ticket):
                done.append(ticket)
            else:
                self._waiting.append((what, value, ticket))
        return done

    def _decide(self, what: str, value: Any, ticket: Ticket) -> bool:
        """Whether the lead has answered this call, or never will; sets the ticket's error."""
        said = self._said.get(what, ())
        heard = self._heard.get((what, ticket.rank), 0)
        new = [s for s in said if s.number > heard or (s.number == heard and s.error is None)]
        match = next((s for s in new if s.value == value), None)
        if match is None and ticket.rank == self._lead:
            match = self._add(what, value)
        other = next((s for s in said if s.number > heard), None)
        if match is not None:
            self._heard[what, ticket.rank] = match.number
            ticket.error = match.error
            if match.number != heard and match.error is None:
                self._follow(what, ticket.rank, match.made, match is self._said[what][-1])
        elif other is not None:
            got, expected = _differences(value, other.value)
            ticket.error = ConflictError(what=f"the {what}", rank=ticket.rank, got=got, expected=expected)
        else:
            ticket.error = self._gone
            return self._gone is not None
        return True

    def _add(self, what: str, value: Any) -> _Said:
        said = self._said.setdefault(what, deque(maxlen=KEPT_CHANGES))
        new = _Said(said[-1].number + 1 if said else 1, value, None)
        try:
            new.made = self._adopt(what, value)
        except PSError as error:
            new.error = error
        said.append(new)
        return new

    def missing(self, mine: Callable[[Any], bool]) -> list[str]:
        """Who the call whose token is ``mine`` waits for."""
        return [
            f"worker {self._lead} (to set the {what} as this worker did)"
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

"""Collective calls that the lead carries out for all: save and load. A state machine without I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pslite.errors import ConflictError, PeerError, PSError, WorkerDropped, WorkerLeft

from .members import Members
from .ticket import Ticket

_Here = tuple[str, Ticket, int]
"""What a rank has come for, its call, and in which step."""


class Meeting:
    """All ranks come and say what for; then the lead acts, and tells the others what came of it.

    The lead's call is answered with ``[ranks that are here, None]``, those of others with ``[None, result]``. If the
    lead is lost meanwhile, in a job that goes on without it, the next one acts, from the beginning.
    """

    def __init__(self, members: Members) -> None:
        self._members = members
        self._left: set[int] = set()  # ranks that are not waited for
        self._here: dict[int, _Here] = {}  # who waits for the rest
        self._acting: int | None = None
        self._waiting: dict[int, _Here] = {}  # the other ranks, while that one acts
        self._gone: dict[int, PeerError] = {}  # ranks that will not come any more, and why

    def enter(self, ticket: Ticket, what: str, step: int = 0) -> list[Ticket]:
        """A rank is there; returns the tickets that are done now. The lead's is when all are there."""
        before = self._here.pop(ticket.rank, None)
        self._here[ticket.rank] = what, ticket, step
        if before is None:
            return self._advance()
        before[1].error = ConflictError(what="a collective call", rank=ticket.rank, got=what, expected="one at a time")
        return [before[1], *self._advance()]  # nobody waits for that one any more

    def decide(self, ticket: Ticket, error: PSError | None, result: Any) -> list[Ticket]:
        """The lead has acted."""
        others = self._end()
        for other in others:
            other.error, other.body = error, [None, result]
        return [*others, ticket]

    def on_peer_ended(self, rank: int, error: PeerError) -> list[Ticket]:
        """Who waits for this rank gets the error, unless it left the others alone, or they go on without it.

        ``Members`` has heard of it before.
        """
        self._gone[rank] = error
        if isinstance(error, (WorkerLeft, WorkerDropped)):
            self._left.add(rank)
            self._here.pop(rank, None)
            self._waiting.pop(rank, None)
        if rank == self._acting and isinstance(error, WorkerDropped):
            self._here = self._waiting | self._here
            self._end()
        return [*self._give_up_waiting(rank, error), *self._advance()]

    def on_peer_away(self, rank: int, error: PeerError) -> list[Ticket]:
        """A rank died, and its successor comes to the meeting anew."""
        self._here.pop(rank, None)
        return self._give_up_waiting(rank, error)

    def _give_up_waiting(self, rank: int, error: PeerError) -> list[Ticket]:
        """What a rank was about to do for all it will not."""
        failed = self._end() if rank == self._acting else []
        for ticket in failed:
            ticket.error = error
        return failed

    def _end(self) -> list[Ticket]:
        """Nobody acts any more; returns the calls of those that waited for it."""
        others = [ticket for _, ticket, _ in self._waiting.values()]
        self._acting, self._waiting = None, {}
        return others

    def missing(self, mine: Callable[[Any], bool]) -> list[str]:
        """Who the call whose token is ``mine`` waits for."""
        for what, ticket, _ in self._here.values():
            if mine(ticket.token):
                return [f"worker {rank} (to call {what})" for rank in sorted(self._due() - self._here.keys())]
        waits = any(mine(ticket.token) for _, ticket, _ in self._waiting.values())
        return [f"worker {self._acting} (to finish the call)"] if waits else []

    def _due(self) -> set[int]:
        """Who takes part in the lowest step that anybody is here for: a newcomer may be ahead of the others."""
        step = min((step for *_, step in self._here.values()), default=0)
        return {self._members.lead, *(self._members.due(step) - self._left)}

    def _advance(self) -> list[Ticket]:
        if not self._here:
            return []
        due = self._due()
        gone = next((self._gone[rank] for rank in sorted(due - self._here.keys()) if rank in self._gone), None)
        if gone is None and not self._here.keys() >= due:
            return []
        here = {rank: own for rank, own in self._here.items() if rank in due}
        self._here = {rank: own for rank, own in self._here.items() if rank not in due}
        tickets = [here[rank][1] for rank in sorted(here)]
        expected = here[min(here)][0] if here else ""
        differs = next((rank for rank in sorted(here) if here[rank][0] != expected), None)
        if gone is not None or differs is not None:
            for ticket in tickets:
                ticket.error = gone or ConflictError(
                    what="the collective call", rank=differs, got=here[differs or 0][0], expected=expected
                )
            return tickets
        self._acting, *_ = ranks = sorted(here)
        self._waiting = {rank: here[rank] for rank in ranks[1:]}
        tickets[0].body = [ranks, None]
        return tickets[:1]

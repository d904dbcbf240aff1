"""Collective calls that rank 0 carries out for all: save and load. A state machine without I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pslite.errors import ConflictError, PeerError, PSError, WorkerDropped, WorkerLeft

from .ticket import Ticket


class Meeting:
    """All ranks come and say what for; then rank 0 acts, and tells the others what came of it."""

    def __init__(self, due: Callable[[int], set[int]]) -> None:
        self._due = due  # the ranks that are members in a step
        self._left: set[int] = set()  # ranks that are not waited for
        self._here: dict[int, tuple[str, Ticket, int]] = {}  # who waits for the rest, what for, and in which step
        self._waiting: list[Ticket] = []  # the other ranks', while rank 0 acts
        self._gone: dict[int, PeerError] = {}  # ranks that will not come any more, and why

    def enter(self, ticket: Ticket, what: str, step: int = 0) -> list[Ticket]:
        """A rank is there; returns the tickets that are done now. Rank 0's is when all are there."""
        before = self._here.pop(ticket.rank, None)
        self._here[ticket.rank] = what, ticket, step
        if before is None:
            return self._advance()
        before[1].error = ConflictError(what="a collective call", rank=ticket.rank, got=what, expected="one at a time")
        return [before[1], *self._advance()]  # nobody waits for that one any more

    def decide(self, ticket: Ticket, error: PSError | None, result: Any) -> list[Ticket]:
        """Rank 0 has acted."""
        waiting, self._waiting = self._waiting, []
        for other in waiting:
            other.error, other.body = error, result
        return [*waiting, ticket]

    def on_peer_ended(self, rank: int, error: PeerError) -> list[Ticket]:
        """Who waits for this rank gets the error, unless it left the others alone."""
        self._gone[rank] = error
        if isinstance(error, (WorkerLeft, WorkerDropped)) and rank != 0:
            self._left.add(rank)
            self._here.pop(rank, None)
        return [*self._give_up_waiting(rank, error), *self._advance()]

    def on_peer_away(self, rank: int, error: PeerError) -> list[Ticket]:
        """A rank died, and its successor comes to the meeting anew."""
        self._here.pop(rank, None)
        return self._give_up_waiting(rank, error)

    def _give_up_waiting(self, rank: int, error: PeerError) -> list[Ticket]:
        """What rank 0 was about to do for all it will not."""
        failed: list[Ticket] = []
        if rank == 0:
            failed, self._waiting = self._waiting, []
            for ticket in failed:
                ticket.error = error
        return failed

    def missing(self, mine: Callable[[Any], bool]) -> list[str]:
        """Who the call whose token is ``mine`` waits for."""
        for what, ticket, _ in self._here.values():
            if mine(ticket.token):
                return [f"worker {rank} (to call {what})" for rank in sorted(self._members() - self._here.keys())]
        return ["worker 0 (to finish the call)"] if any(mine(ticket.token) for ticket in self._waiting) else []

    def _members(self) -> set[int]:
        """Who takes part in the lowest step that anybody is here for: a newcomer may be ahead of the others."""
        return {0, *self._due(min((step for *_, step in self._here.values()), default=0))} - self._left

    def _advance(self) -> list[Ticket]:
        if not self._here:
            return []
        members = self._members()
        gone = next((self._gone[rank] for rank in sorted(members - self._here.keys()) if rank in self._gone), None)
        if gone is None and not self._here.keys() >= members:
            return []
        here = {rank: own for rank, own in self._here.items() if rank in members}
        self._here = {rank: own for rank, own in self._here.items() if rank not in members}
        tickets = [here[rank][1] for rank in sorted(here)]
        expected = here[min(here)][0]
        differs = next((rank for rank in sorted(here) if here[rank][0] != expected), None)
        if gone is not None or differs is not None:
            for ticket in tickets:
                ticket.error = gone or ConflictError(
                    what="the collective call", rank=differs, got=here[differs or 0][0], expected=expected
                )
            return tickets
        tickets[0].body = sorted(here)
        self._waiting = tickets[1:]
        return tickets[:1]

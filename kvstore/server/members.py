"""Which workers a round needs, by the step it belongs to. A state machine without I/O.

A worker that comes later is due from its first step on. Server 0 gives it: one more than any step of which anybody
has asked who is due in it. Whoever begins that step tells all servers so, ahead of its pushes; when all have, the
newcomer may begin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pslite.errors import PeerError, ProtocolError, WorkerDropped, WorkerLeft

from .ticket import Ticket

CALLS = ("begin", "join", "start", "due", "lead")  # what workers may ask of ``Members.ask``


class Members:
    """The ranks of one job, as one server knows them. Changed by the store and its service only."""

    def __init__(self, num_workers: int) -> None:
        self.needed = set(range(num_workers))  # ranks that rounds wait for, those in ``late`` from their first step on
        self.late: dict[int, int] = {}  # by rank of who came later: its first step
        self.gone: dict[int, PeerError] = {}  # ranks that will not push any more, and why
        self.lead = 0  # the lowest rank that is not lost for good: it has rank 0's duties
        self._ranks = set(range(num_workers))  # that there have been
        self._claims: list[Ticket] = []  # ranks that say they lead, which is not known here yet
        self._begun = dict.fromkeys(self.needed, 0)  # by rank: the latest step that it asked about; for server 0
        self._told: dict[int, set[int]] = {}  # by late rank: those that have begun its first step
        self._joining: list[Ticket] = []  # newcomers' questions for their first step
        self._starting: list[Ticket] = []  # newcomers that wait for the others to begin that

    # -- rounds -------------------------------------------------------------------------------------------------------

    def due(self, step: int) -> set[int]:
        """The ranks that a round of this step needs."""
        return {rank for rank in self.needed if self.late.get(rank, 0) <= step} if self.late else self.needed

    def round_of(self, heads: Mapping[int, int]) -> tuple[list[int], set[int]]:
        """Of the ranks that are here, with the steps of their next contributions: those in the next round, and
        who is missing in it.

        It is the lowest step's. Who comes later does not change that: it is missing, or its first step is a later one.
        """
        step = min(max(own, self.late.get(rank, 0)) for rank, own in heads.items())
        ranks = [rank for rank in heads if self.late.get(rank, 0) <= step]
        return ranks, self.due(step).difference(ranks)

    # -- what workers ask ---------------------------------------------------------------------------------------------

    def ask(self, ticket: Ticket, what: str, value: Any) -> list[Ticket]:
        """A worker's call; returns the tickets that are done now.

        Of all servers: "lead" is answered when this rank leads here, too: what its predecessor asks from then on is
        refused. Of server 0: "begin", who is due in a step, answered with ``[[rank, first step], ...]`` of those who
        came later; "join", answered with the first step. Of all servers: "due" tells such a list, for the step that
        its sender begins; so does a newcomer's "start", which is answered when all others have come to its first step.
        """
        if what == "lead":
            self._claims.append(ticket)
            return self._claimed()
        if what == "join":
            self._joining.append(ticket)
            return self._give_steps()
        if what == "begin":
            return self._begin(ticket, _checked(value))
        for rank, first in _pairs(value):
            self._add(rank, first)
            self._told.setdefault(rank, set()).add(ticket.rank)
        if what == "start":
            if ticket.rank not in self.late:
                raise ProtocolError(f"worker {ticket.rank} starts before it has joined")
            self._starting.append(ticket)
            return self._start()
        return [ticket, *self._start()]

    def _begin(self, ticket: Ticket, step: int) -> list[Ticket]:
        self._begun[ticket.rank] = max(self._begun.get(ticket.rank, 0), step)
        done = self._give_steps()
        ticket.body = [[rank, first] for rank, first in self.late.items() if first <= step]
        return [ticket, *done]

    def _give_steps(self) -> list[Ticket]:
        """Let newcomers in, if all say which step they are in: a server that was restarted has to hear it again."""
        if not self._joining or self._unheard():
            return []
        joining, self._joining = self._joining, []
        for ticket in joining:
            if ticket.rank not in self.late:
                self._begun[ticket.rank] = 1 + max(self._begun.values(), default=0)
                self._add(ticket.rank, self._begun[ticket.rank])
            ticket.body = self.late[ticket.rank]
        return joining

    def _unheard(self) -> set[int]:
        return self.needed - self._begun.keys() - self.gone.keys()

    def _add(self, rank: int, first: int) -> None:
        if rank not in self.late:
            self.late[rank] = first
            if not isinstance(self.gone.get(rank), (WorkerLeft, WorkerDropped)):
                self.needed.add(rank)

    def _start(self) -> list[Ticket]:
        """The newcomers that all others have come to, or never will."""
        done = []
        for ticket in self._starting:
            behind = self._behind(ticket.rank)
            ticket.error = next((self.gone[rank] for rank in sorted(behind) if rank in self.gone), None)
            if not behind or ticket.error is not None:
                done.append(ticket)
        self._starting = [ticket for ticket in self._starting if ticket not in done]
        return done

    def _behind(self, rank: int) -> set[int]:
        """Who may still push something of a step before a newcomer's first one."""
        return self.due(self.late[rank] - 1) - self._told.get(rank, set())

    def came(self, rank: int) -> None:
        """A worker has joined the running job."""
        self._ranks.add(rank)

    def _claimed(self) -> list[Ticket]:
        done = [ticket for ticket in self._claims if ticket.rank == self.lead]
        self._claims = [ticket for ticket in self._claims if ticket.rank != self.lead]
        return done

    # -- ends ---------------------------------------------------------------------------------------------------------

    def on_peer_ended(self, rank: int, error: PeerError) -> list[Ticket]:
        """A worker finished, failed or was lost; rounds go on without it if it left them."""
        self.gone[rank] = error
        if isinstance(error, (WorkerLeft, WorkerDropped)):
            self.needed.discard(rank)
        self.on_peer_away(rank)
        self.lead = min((r for r in self._ranks if not isinstance(self.gone.get(r), WorkerDropped)), default=self.lead)
        return [*self._claimed(), *self._give_steps(), *self._start()]

    def on_peer_away(self, rank: int) -> None:
        """A worker died, and its successor asks again."""
        self._claims = [ticket for ticket in self._claims if ticket.rank != rank]
        self._joining = [ticket for ticket in self._joining if ticket.rank != rank]
        self._starting = [ticket for ticket in self._starting if ticket.rank != rank]

    def missing(self, mine: Callable[[Any], bool]) -> list[str]:
        """Who the call whose token is ``mine`` waits for."""
        if any(mine(ticket.token) for ticket in self._claims):
            return [f"a server (to hear of the end of worker {self.lead})"]
        if any(mine(ticket.token) for ticket in self._joining):
            return [f"worker {rank} (to begin its next step)" for rank in sorted(self._unheard())]
        starting = next((ticket.rank for ticket in self._starting if mine(ticket.token)), None)
        if starting is None:
            return []
        return [f"worker {rank} (to begin step {self.late[starting]})" for rank in sorted(self._behind(starting))]

    # -- what outlives a server ---------------------------------------------------------------------------------------

    def to_kept(self) -> list[Any]:
        """Who has come, as plain data for ``from_kept``."""
        return [[rank, first, sorted(self._told.get(rank, ()))] for rank, first in self.late.items()]

    def from_kept(self, kept: Sequence[Any]) -> None:
        """Go on with what a predecessor knew; which steps have begun it did not write down."""
        self._begun = {}
        for rank, first, told in kept:
            self._add(rank, first)
            self._told[rank] = set(told)


def _checked(step: Any) -> int:
    if type(step) is not int or not 0 <= step < 2**31:
        raise ProtocolError(f"{step!r:.80} is no step")
    return step


def _pairs(value: Any) -> list[tuple[int, int]]:
    try:
        return [(_checked(rank), _checked(first)) for rank, first in value]
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"{value!r:.80} are no newcomers and their first steps") from error

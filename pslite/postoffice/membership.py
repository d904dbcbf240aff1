"""Who is in the job: held by the scheduler. A state machine without I/O; time is an argument.

A process joins with the rank it wishes for; the answer, with everybody's addresses, comes when all are there. A
member is lost when it cannot be reached for ``LOST_AFTER`` seconds although its connection has had time to come back.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pslite import ids
from pslite.errors import (
    JoinError,
    PeerError,
    PeerLost,
    PSError,
    RendezvousTimeout,
    WorkerFailed,
    WorkerFinished,
    WorkerLeft,
)
from pslite.wire import Link, Message

from .barrier import Answer

BEAT_INTERVAL = 0.25  # seconds between two looks at every member's connection
LOST_AFTER = 0.5  # seconds without a connection: ZeroMQ reconnects within 0.1


class State(enum.Enum):
    """A member's state; FINISHED, FAILED and LOST are final."""

    JOINING = "joining"
    UP = "up"
    FINISHED = "finished"
    FAILED = "failed"
    LOST = "lost"


@dataclass(slots=True)
class Member:
    """One process of the job."""

    role: str
    incarnation: int
    addresses: list[str]
    host: str
    pid: int
    link: Link
    join: Message
    wish: int | None = None
    rank: int = -1  # given when the job is complete
    state: State = State.JOINING
    unreachable_since: float | None = None
    beat_failed: bool = False  # the last beat to it found no connection
    disconnected: bool = False  # it has left, and closed its connection
    error: PeerError | None = None  # why it will not contribute any more

    @property
    def node(self) -> int:
        return ids.node_id(self.role, self.rank)

    @property
    def here(self) -> bool:
        return self.state in (State.JOINING, State.UP)

    @property
    def name(self) -> str:
        """How errors call it."""
        rank = self.rank if self.rank >= 0 else self.wish
        where = f" (pid {self.pid} on {self.host})" if self.pid else ""
        return self.role + (f" {rank}" if rank is not None else "") + where

    def entry(self) -> list[Any]:
        """Its line in the roster that every member gets."""
        return [self.node, self.incarnation, self.addresses, self.host, self.pid]


@dataclass(slots=True)
class Hint:
    """What the launcher knows about a process of the job, whether it has joined or not."""

    role: str
    rank: int
    pid: int
    exit: int | None  # None while it runs, and while it is being started again
    restarts: int = 0  # how often it was started again


@dataclass(slots=True)
class Outcome:
    """What a step of membership asks for: answers to send, and members that have just ended."""

    answers: list[Answer] = field(default_factory=list)
    ended: list[Member] = field(default_factory=list)
    complete: bool = False  # everybody has joined just now
    failure: PSError | None = None  # the job could not be formed

    def after(self, earlier: Outcome) -> Outcome:
        """Both outcomes, in order."""
        return Outcome(
            earlier.answers + self.answers,
            earlier.ended + self.ended,
            earlier.complete or self.complete,
            earlier.failure or self.failure,
        )


class Membership:
    """The scheduler's table of members."""

    def __init__(self, num_workers: int, num_servers: int, job: str, deadline: float | None, now: float) -> None:
        self.job = job
        self.members: list[Member] = []
        self.complete = False
        self.wanted = {"worker": num_workers, "server": num_servers}
        self._started = now
        self._deadline = deadline
        self._judged_at = now
        self._hints: list[Hint] = []
        self._leaving: list[Message] = []  # LEAVE requests that wait for all workers

    # -- joining ------------------------------------------------------------------------------------------------------

    def join(self, link: Link, request: Message) -> Outcome:
        """A process wants to be a member: ``body = [role, rank or None, addresses, host, pid]``."""
        problem, role, wish, addresses, host, pid = self._read_join(request.body)
        if problem:
            error = JoinError(node=f"{role} {'' if wish is None else wish}".strip(), reason=problem)
            return Outcome([Answer(request, error=error)])
        self.members.append(Member(role, request.incarnation, addresses, host, pid, link, request, wish))
        if self.missing():
            return Outcome()
        return self._form()

    def _read_join(self, body: Any) -> tuple[str, str, int | None, list[str], str, int]:
        if not _is_join(body) or body[0] not in self.wanted:
            return "the join request is malformed", "a process", None, [], "", 0
        role, wish, addresses, host, pid = body
        count = self.wanted[role]
        present = [m for m in self.members if m.role == role and m.here]
        problem = ""
        if wish is not None and not (isinstance(wish, int) and 0 <= wish < count):
            problem = f"rank {wish!r} is not among the {count} {role}s of this job: ranks are 0 to {count - 1}"
        elif self.complete or len(present) >= count:
            problem = (
                f"the job has its {count} {role}s already; see DMLC_NUM_WORKER, DMLC_NUM_SERVER and the root address"
            )
        elif wish is not None and any(m.wish == wish for m in present):
            other = next(m for m in present if m.wish == wish)
            problem = f"{other.name} has that rank: give every {role} its own DMLC_RANK, or none"
        return problem, role, wish, addresses, host, pid

    def _form(self) -> Outcome:
        for role, rank, member in self._assignment():
            assert member is not None and member.role == role
            member.rank, member.state = rank, State.UP
        self.complete = True
        roster = [m.entry() for m in self.members]
        return Outcome([Answer(m.join, self._welcome(m, roster)) for m in self.members], complete=True)

    def _welcome(self, member: Member, roster: list[Any]) -> dict[str, Any]:
        counts = {"workers": self.wanted["worker"], "servers": self.wanted["server"]}
        return {"node": member.node, "job": self.job, "roster": roster, **counts}

    def _assignment(self) -> Iterable[tuple[str, int, Member | None]]:
        """Every rank of every role with the member that has it: wishes first, the rest in order of arrival."""
        for role, count in self.wanted.items():
            present = [m for m in self.members if m.role == role and m.here]
            wished = {m.wish: m for m in present if m.wish is not None}
            others = iter([m for m in present if m.wish is None])
            for rank in range(count):
                yield role, rank, wished.get(rank) or next(others, None)

    def missing(self) -> list[str]:
        """Who has not joined, with what the launcher knows about it."""
        return [self._describe(role, rank) for role, rank, member in self._assignment() if member is None]

    def _describe(self, role: str, rank: int) -> str:
        for hint in self._hints:
            if (hint.role, hint.rank) == (role, rank):
                if hint.exit is None:
                    return f"{role} {rank} (pid {hint.pid} runs, but has not called create())"
                return f"{role} {rank} (pid {hint.pid} ended with status {hint.exit} before it joined)"
        return f"{role} {rank}"

    def on_hints(self, hints: Sequence[Hint], now: float) -> Outcome:
        """The launcher's view: a process that ended before it joined fails the job at once."""
        self._hints = list(hints)
        if not self.complete and any("ended" in name for name in self.missing()):
            return self._give_up(now)
        return Outcome()

    def _give_up(self, now: float) -> Outcome:
        error = RendezvousTimeout(missing=self.missing(), seconds=round(now - self._started, 1))
        answers = [Answer(m.join, error=error) for m in self.members if m.here]
        for member in self.members:
            member.state = State.FAILED
        self.complete, self._deadline = True, None
        return Outcome(answers, failure=error)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def leave(self, member: Member, request: Message) -> Outcome:
        """``body = [how, reason, wait]``: how is finished, left (rounds go on without it) or failed.

        ``wait`` delays the answer until all workers left.
        """
        how, reason, wait = request.body
        if how == "failed":
            self._end(member, State.FAILED, WorkerFailed(node=member.name, reason=reason))
        else:
            kind = WorkerLeft if how == "left" else WorkerFinished
            self._end(member, State.FINISHED, kind(node=member.name, reason=reason or "later rounds"))
        if wait:
            self._leaving.append(request)
        outcome = Outcome([] if wait else [Answer(request)], [member])
        outcome.answers += self._release()
        return outcome

    def _release(self) -> list[Answer]:
        """Answer those who wait at the exit: when all workers are gone, or with the error of one that died."""
        bad = next((m.error for m in self.members if m.state in (State.FAILED, State.LOST)), None)
        if bad is None and any(m.role == "worker" and m.here for m in self.members):
            return []
        leaving, self._leaving = self._leaving, []
        return [Answer(request, error=bad) for request in leaving]

    def leaving_waits_for(self, request: Message) -> list[str]:
        """Who a LEAVE request waits for."""
        if not any(r is request for r in self._leaving):
            return []
        return [m.name for m in self.members if m.role == "worker" and m.here]

    def _end(self, member: Member, state: State, error: PeerError) -> None:
        member.state, member.error = state, error

    # -- liveness -----------------------------------------------------------------------------------------------------

    def next_timer(self) -> float:
        """When ``on_timer`` is due."""
        return self._judged_at + BEAT_INTERVAL

    def on_unreachable(self, link: Link, now: float) -> None:
        """A beat found no connection to a member."""
        for member in self.members:
            if member.link == link and member.here:
                member.beat_failed = True
                member.unreachable_since = member.unreachable_since or now
            elif member.link == link:
                member.disconnected = True

    def on_timer(self, now: float) -> Outcome:
        """Judge every member by its last beat (the caller sends the next ones), and the deadline for joining."""
        late = now - self._judged_at - BEAT_INTERVAL
        self._judged_at = now
        outcome = Outcome()
        for member in [m for m in self.members if m.here]:
            if not member.beat_failed:
                member.unreachable_since = None
            elif late > BEAT_INTERVAL:
                member.unreachable_since = now  # a judge that slept itself does not know how long the others did
            elif member.unreachable_since is not None and now - member.unreachable_since >= LOST_AFTER:
                outcome = self.lose(member, "its connection broke and did not come back").after(outcome)
            member.beat_failed = False
        if not self.complete and self._deadline is not None and now >= self._deadline:
            return self._give_up(now)
        return outcome

    def lose(self, member: Member, reason: str) -> Outcome:
        """A member died. Before the job is complete that is the end of it, for everybody who has joined."""
        if not self.complete:
            others = ", ".join(name for name in self.missing() if not member.name.startswith(name))
            reason += f" while the job was waiting for {others}" if others else ""
        error = PeerLost(node=member.name, reason=reason)
        self._end(member, State.LOST, error)
        if self.complete:
            return Outcome(self._release(), [member])
        self.complete = True
        answers = [Answer(m.join, error=error) for m in self.members if m.here]
        for other in self.members:
            if other.here:
                other.state = State.FAILED
        return Outcome(answers, failure=error)

    # -- looking up ---------------------------------------------------------------------------------------------------

    def find(self, node: int) -> Member | None:
        """The member with this node id."""
        return next((m for m in self.members if m.rank >= 0 and m.node == node), None)

    def here(self, role: str) -> list[Member]:
        """The members of a role that have neither left nor died."""
        return [m for m in self.members if m.role == role and m.here]

    @property
    def clean(self) -> bool:
        """Whether no member failed or was lost."""
        return all(m.state not in (State.FAILED, State.LOST) for m in self.members)


def _is_join(body: Any) -> bool:
    """Whether a JOIN's body is ``[role, wish, addresses, host, pid]``; servers have addresses, workers none."""
    if not (isinstance(body, list) and len(body) == 5):
        return False
    role, _, addresses, host, pid = body
    if not (isinstance(role, str) and isinstance(host, str) and isinstance(pid, int)):
        return False
    listed = isinstance(addresses, list) and all(isinstance(address, str) for address in addresses)
    return listed and bool(addresses) == (role == "server")

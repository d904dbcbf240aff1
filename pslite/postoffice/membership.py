"""Who is in the job: held by the scheduler. A state machine without I/O; time is an argument.

A process joins with the rank it wishes for; the answer, with everybody's addresses, comes when all are there. A
member is lost when it cannot be reached for ``LOST_AFTER`` seconds although its connection has had time to come back.

What then becomes of it is the job's policy (``Policy``). A member whose successor is awaited is AWAY. The successor is
a new incarnation: it is RETURNING until all others have acknowledged that, and so refuse whatever the old one sends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pslite import ids
from pslite.errors import (
    JoinError,
    PeerError,
    PeerLost,
    PSError,
    RendezvousTimeout,
    StateLost,
    WorkerDropped,
    WorkerFailed,
    WorkerFinished,
    WorkerLeft,
)
from pslite.wire import Link, Message

from .barrier import Answer
from .growth import Growth
from .roster import LOST_AFTER

BEAT_INTERVAL = 0.25  # seconds between two looks at every member's connection
MAX_ADDRESSES = 8  # of a server
MAX_NAME = 256  # characters of a host name or an address; those of a Unix socket are 107 at most
KNOCK_FOR = 3.0  # seconds that a process may wish for a rank whose member is not known to be dead yet


@dataclass(frozen=True, slots=True)
class Policy:
    """What becomes of members that die."""

    servers: str = "raise"  # the job fails, or 'wait' for the successor
    workers: str = "raise"  # likewise, or 'shrink': the others go on
    wait: float | None = None  # seconds after which nobody waits for a successor any more
    replicas: int = 0  # of a server: only who has one of a server that dies can take its place

    def of(self, role: str) -> str:
        """The policy for a role."""
        return self.workers if role == "worker" else self.servers


class State(enum.Enum):
    """A member's state; FINISHED, FAILED and LOST are final."""

    JOINING = "joining"
    UP = "up"
    AWAY = "away"  # it died, and a successor is awaited
    RETURNING = "returning"  # the successor is here, and the others are being told
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
    error: PeerError | None = None  # why it will not contribute any more, or is away
    restarts: int = 0  # how often the launcher had started it again, or at least how many had its place before
    again: bool = False  # it took the place of one that died
    away_since: float = 0.0
    untold: set[int] = field(default_factory=set)  # nodes that have not acknowledged its return

    @property
    def node(self) -> int:
        return ids.node_id(self.role, self.rank)

    @property
    def here(self) -> bool:
        """Whether its process is in the job."""
        return self.state in (State.JOINING, State.UP, State.RETURNING)

    @property
    def is_new(self) -> bool:
        """Whether it came to a running job, and was not welcomed yet."""
        return self.state == State.RETURNING and not self.again

    @property
    def expected(self) -> bool:
        """Whether it will contribute, as far as is known: it is here, or will be again."""
        return self.here or self.state == State.AWAY

    @property
    def name(self) -> str:
        """How errors call it."""
        rank = self.rank if self.rank >= 0 else self.wish
        host = f" on {self.host}" if self.host else ""  # the launcher's table of processes has none
        where = f" (pid {self.pid}{host})" if self.pid else ""
        return self.role + (f" {rank}" if rank is not None else "") + where

    @property
    def wished(self) -> str:
        """How it is called when it is refused."""
        return self.role if self.wish is None else f"{self.role} {self.wish}"

    def entry(self) -> list[Any]:
        """Its line in the roster that every member gets."""
        return [self.node, self.incarnation, self.addresses, self.host, self.pid, self.restarts]


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
    away: list[Member] = field(default_factory=list)  # have just died, and are awaited
    back: list[Member] = field(default_factory=list)  # their successors, of whom the others must be told
    complete: bool = False  # everybody has joined just now
    failure: PSError | None = None  # the job could not be formed

    def after(self, earlier: Outcome) -> Outcome:
        """Both outcomes, in order."""
        return Outcome(
            earlier.answers + self.answers,
            earlier.ended + self.ended,
            earlier.away + self.away,
            earlier.back + self.back,
            earlier.complete or self.complete,
            earlier.failure or self.failure,
        )


class Membership:
    """The scheduler's table of members."""

    def __init__(
        self,
        num_workers: int,
        num_servers: int,
        job: str,
        deadline: float | None,
        now: float,
        policy: Policy = Policy(),
        max_workers: int = 0,
    ) -> None:
        self.job = job
        self.policy = policy
        self.epoch = 0  # of the table of members: changes since all had joined
        self.members: list[Member] = []
        self.complete = False
        self.wanted = {"worker": num_workers, "server": num_servers}  # whom the job begins with
        self.growth = Growth(num_workers, max_workers)
        self._started = now
        self._deadline = deadline
        self._never: PSError | None = None  # why the job did not begin
        self._judged_at = now
        self._hints: list[Hint] = []
        self._leaving: list[Message] = []  # LEAVE requests that wait for all workers
        self._asked = ""  # the policy for workers that one of them asked for
        self._replaced: list[Member] = []  # servers that others have taken over, for nobody starts them again
        self._knocking: list[Member] = []  # successors of members that are not known to be dead yet

    # -- joining ------------------------------------------------------------------------------------------------------

    def join(self, link: Link, request: Message, now: float = 0.0) -> Outcome:
        """A process wants to be a member.

        ``body = [role, rank or None, addresses, host, pid, restarts, on_worker_lost]``.
        """
        if not _is_join(request.body) or request.body[0] not in self.wanted:
            return _refused(request, "a process", "the join request is malformed")
        if self._never is not None:
            return Outcome([Answer(request, error=self._never)])
        role, wish, addresses, host, pid, restarts, on_worker_lost = request.body
        new = Member(role, request.incarnation, addresses, host, pid, link, request, wish, restarts=restarts)
        new.away_since = now
        known = next((m for m in self.members if m.incarnation == new.incarnation and m.here), None)
        if self.complete and known is not None:  # it is of the table that others knew, but was not welcomed itself
            known.link, known.join, known.state = link, request, State.RETURNING
            known.again = known.restarts > 0 and self.epoch > 1
            return self._tell(known).after(self._without(known))
        count = self.wanted[role]
        present = [m for m in self.members if m.role == role and m.here]
        newcomer = self.growth.is_newcomer(role, wish, self.complete, len(present))
        if wish is not None and not (wish >= 0 and (wish < count or newcomer)):
            what = f"rank {wish!r} is not among the {count} {role}s of this job"
            return _refused(request, new.wished, f"{what}: ranks are 0 to {count - 1}")
        if self.complete and self.policy.of(role) == "wait" and (before := self._predecessor(new)) is not None:
            if self._is_replicated(before) and not self._is_backup(new, before):
                return _refused(request, new.wished, "its place is for the process that has its replica")
            return self._succeed(before, new, now)
        if on_worker_lost and self._asked and on_worker_lost != self._asked:
            reason = f"its on_worker_lost={on_worker_lost!r} must be that of the others, {self._asked!r}"
            return _refused(request, new.wished, reason)
        self._asked = self._asked or on_worker_lost
        if newcomer:
            return self._let_in(new)
        if self.complete or len(present) >= count:
            what = f"the job has its {count} {role}s already"
            return _refused(request, new.wished, f"{what}; see DMLC_NUM_WORKER, DMLC_NUM_SERVER and the root address")
        other = next((m for m in present if wish is not None and m.wish == wish), None)
        if other is not None:
            return _refused(request, new.wished, _taken(other))
        self.members.append(new)
        return Outcome() if self.missing() else self._form()

    def _form(self) -> Outcome:
        for role, rank, member in self._assignment():
            assert member is not None and member.role == role
            member.rank, member.state = rank, State.UP
        self.complete = True
        if self._asked:
            self.policy = replace(self.policy, workers=self._asked)
        table = self.table()
        outcome = Outcome([Answer(m.join, self._welcome(m, table)) for m in self.members], complete=True)
        for new in self.growth.early:
            outcome = self._let_in(new).after(outcome)
        return outcome

    def _let_in(self, new: Member) -> Outcome:
        """A worker joins a running job, or one that will be."""
        if not self.complete:
            self.growth.early.append(new)
            return Outcome()
        workers = [m for m in self.members if m.role == "worker"]
        if reason := self.growth.refusal(new, workers):
            return _refused(new.join, new.wished, reason)
        new.rank = self.growth.rank_for(new, workers, [h.rank for h in self._hints if h.role == "worker"])
        new.state = State.RETURNING
        self.members.append(new)
        self.epoch += 1
        return self._tell(new)

    def _welcome(self, member: Member, table: dict[str, Any]) -> dict[str, Any]:
        counts = {"workers": self.wanted["worker"], "servers": self.wanted["server"]}
        told = {"node": member.node, "job": self.job, "again": member.again, "most": self.growth.most}
        return {**told, **table, **counts}

    def table(self) -> dict[str, Any]:
        """What every member may know of all others."""
        return {
            "roster": [m.entry() for m in self.members],
            "gone": {m.node: m.error.to_wire() for m in self.members if m.error is not None and not m.expected},
            "away": [m.node for m in self.away()],
            "policy": self.policy.workers,
            "epoch": self.epoch,
        }

    def restore(self, members: list[Member], policy: str | None, epoch: int, now: float) -> None:
        """Go on with the members of a scheduler that died."""
        self.members, self.complete, self.epoch, self._judged_at = members, True, epoch + 1, now
        if policy is not None:
            self.policy = replace(self.policy, workers=policy)

    # -- coming again -------------------------------------------------------------------------------------------------

    def _predecessor(self, new: Member) -> Member | None:
        """The member that a process would replace: the one of its rank, or any of its role that is awaited."""
        same = [m for m in self.members if m.role == new.role and m.expected]
        return next((m for m in same if (m.rank == new.wish if new.wish is not None else m.state == State.AWAY)), None)

    def _succeed(self, before: Member, new: Member, now: float) -> Outcome:
        """A process takes the place of a member that is away; if that is not known to be dead, it waits for that."""
        if before.state != State.AWAY:
            self._knocking.append(new)
            if new.restarts > before.restarts:
                return self.lose(before, "the launcher started it again", now)
            return Outcome()
        new.rank, new.state, new.error, new.again = before.rank, State.RETURNING, None, True
        new.restarts = max(new.restarts, before.restarts + 1)
        self.members[self.members.index(before)] = new
        if self._is_replicated(before):
            self._replaced.append(before)
        self.epoch += 1
        return self._tell(new)

    def _tell(self, new: Member) -> Outcome:
        """Let all others know of a process before it is welcome."""
        new.untold = {m.node for m in self.members if m.here and m is not new}
        return Outcome([] if new.untold else self._admit(new), back=[new])

    def acknowledged(self, node: int, incarnation: int, by: int) -> list[Answer]:
        """A node knows of a successor, or has ended itself; the successor is welcome when all know it."""
        member = self.find(node)
        if member is None or member.incarnation != incarnation or member.state != State.RETURNING:
            return []
        member.untold.discard(by)
        return [] if member.untold else self._admit(member)

    def _without(self, member: Member) -> Outcome:
        """Let those in who waited for this one to hear of them: it is not welcome yet, and will hear with its welcome.

        Else each would wait for the other.
        """
        others = [m for m in self.members if m.state == State.RETURNING and m is not member]
        return Outcome([a for m in others for a in self.acknowledged(m.node, m.incarnation, member.node)])

    def _admit(self, member: Member) -> list[Answer]:
        member.state = State.UP
        return [Answer(member.join, self._welcome(member, self.table()))]

    def _answer_knocks(self, now: float) -> Outcome:
        """Let those in whose predecessors are found dead; refuse those whose predecessors live."""
        outcome, knocking = Outcome(), self._knocking
        self._knocking = []
        for new in knocking:
            before = self._predecessor(new)
            if before is not None and before.state == State.AWAY:
                outcome = self._succeed(before, new, now).after(outcome)
            elif before is None or now - new.away_since >= KNOCK_FOR:
                reason = "it is not awaited any more" if before is None else _taken(before)
                outcome = _refused(new.join, new.wished, reason).after(outcome)
            else:
                self._knocking.append(new)
        return outcome

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
        if not self.complete:
            return self._give_up(now) if any("ended" in name for name in self.missing()) else Outcome()
        outcome = Outcome()
        for hint in hints:
            member = self.find(ids.node_id(hint.role, hint.rank)) if hint.role in self.wanted else None
            if member is None:
                continue
            if member.here and hint.restarts > member.restarts:
                outcome = self.lose(member, "its process ended", now).after(outcome)
            elif member.here and member.pid == hint.pid and hint.exit is not None and self._has_replica(member):
                outcome = self.lose(member, f"it ended with status {hint.exit}", now).after(outcome)
            elif member.state == State.AWAY and hint.exit is not None and not self._has_replica(member):
                reason = f"it ended with status {hint.exit} and is not started again"
                outcome = self._end_lost(member, PeerLost(node=member.name, reason=reason)).after(outcome)
        return outcome

    def _give_up(self, now: float) -> Outcome:
        error = RendezvousTimeout(missing=self.missing(), seconds=round(now - self._started, 1))
        answers = [Answer(m.join, error=error) for m in [*self.members, *self.growth.early] if m.here]
        for member in self.members:
            member.state = State.FAILED
        self.complete, self._deadline, self._never = True, None, error
        return Outcome(answers, failure=error)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def leave(self, member: Member, request: Message) -> Outcome:
        """``body = [how, reason, wait]``: how is finished, left (rounds go on without it) or failed.

        A server that fails has nothing to go on with. ``wait`` delays the answer until all workers left.
        """
        how, reason, wait = request.body
        if how == "failed":
            failure = WorkerFailed if member.role == "worker" else StateLost
            self._end(member, State.FAILED, failure(node=member.name, reason=reason))
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
        if isinstance(bad, WorkerDropped):
            bad = None
        if bad is None and any(m.role == "worker" and m.expected for m in self.members):
            return []
        leaving, self._leaving = self._leaving, []
        return [Answer(request, error=bad) for request in leaving]

    def leaving_waits_for(self, request: Message) -> list[str]:
        """Who a LEAVE request waits for."""
        if not any(r is request for r in self._leaving):
            return []
        return [m.name for m in self.members if m.role == "worker" and m.expected]

    def _end(self, member: Member, state: State, error: PeerError) -> None:
        member.state, member.error = state, error

    # -- liveness -----------------------------------------------------------------------------------------------------

    def next_timer(self) -> float:
        """When ``on_timer`` is due."""
        return self._judged_at + BEAT_INTERVAL

    def heard(self, node: int) -> None:
        """A member has a connection again: however often it breaks, it is not dead."""
        member = self.find(node)
        if member is not None:
            member.beat_failed, member.unreachable_since = False, None

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
                outcome = self.lose(member, "its connection broke and did not come back", now).after(outcome)
            member.beat_failed = False
        for member in self.away():
            if self.policy.wait is not None and now - member.away_since >= self.policy.wait:
                reason = f"it died, and was not started again within {self.policy.wait:g} s"
                outcome = self._end_lost(member, PeerLost(node=member.name, reason=reason)).after(outcome)
        if self._knocking:
            outcome = self._answer_knocks(now).after(outcome)
        if not self.complete and self._deadline is not None and now >= self._deadline:
            return self._give_up(now)
        return outcome

    def lose(self, member: Member, reason: str, now: float = 0.0) -> Outcome:
        """A member died. Before the job is complete that is the end of it, for everybody who has joined."""
        if self.complete and self.policy.of(member.role) == "wait" and self._can_return(member):
            member.away_since = now
            self._end(member, State.AWAY, PeerLost(node=member.name, reason=reason))
            self.epoch += 1
            return self._answer_knocks(now).after(Outcome(away=[member])).after(self._lose_without_replica(member))
        if self.complete and (self.policy.of(member.role) == "shrink" or member.is_new):
            return self._end_lost(member, WorkerDropped(node=member.name, reason=reason))
        if not self.complete:
            others = ", ".join(name for name in self.missing() if not member.name.startswith(name))
            reason += f" while the job was waiting for {others}" if others else ""
        error = PeerLost(node=member.name, reason=reason)
        if self.complete:
            return self._end_lost(member, error)
        self._end(member, State.LOST, error)
        self.complete, self._never = True, error
        answers = [Answer(m.join, error=error) for m in [*self.members, *self.growth.early] if m.here]
        for other in self.members:
            if other.here:
                other.state = State.FAILED
        return Outcome(answers, failure=error)

    def _is_replicated(self, member: Member) -> bool:
        return member.role == "server" and self.policy.replicas > 0

    def _is_backup(self, new: Member, before: Member) -> bool:
        """Whether a process has what the server had whose place it asks for."""
        backup = self.find(ids.backup_of(before.node, self.wanted["server"]))
        return self._has_replica(before) and backup is not None and (new.pid, new.host) == (backup.pid, backup.host)

    def _can_return(self, member: Member) -> bool:
        """Whether another process can take a member's place if it dies now."""
        return not self._is_replicated(member) or self._has_replica(member)

    def _has_replica(self, member: Member) -> bool:
        """Whether a process has what a server had: its backup, unless one of the two has its place from another one."""
        if not self._is_replicated(member):
            return False
        backup = self.find(ids.backup_of(member.node, self.wanted["server"]))
        return backup is not None and backup.here and not backup.restarts and not member.restarts

    def _lose_without_replica(self, backup: Member) -> Outcome:
        """A server died, and so nobody takes the place of the one that it was the backup of, if that is away."""
        outcome = Outcome()
        for member in self.away():
            if member is not backup and not self._can_return(member):
                reason = f"it died, and so did its backup, {backup.name}"
                outcome = self._end_lost(member, PeerLost(node=member.name, reason=reason)).after(outcome)
        return outcome

    def _end_lost(self, member: Member, error: PeerError) -> Outcome:
        self._end(member, State.LOST, error)
        self.epoch += 1
        return Outcome(self._release(), [member])

    # -- looking up ---------------------------------------------------------------------------------------------------

    def find(self, node: int) -> Member | None:
        """The member with this node id."""
        return next((m for m in self.members if m.rank >= 0 and m.node == node), None)

    def nodes(self, group: int, late: Sequence[int] | None = None) -> set[int]:
        """The nodes of a group. ``late``: which of the workers that came later are in it; None: all."""
        nodes = set(ids.members(group, self.wanted["server"], self.wanted["worker"]))
        if late is None:
            late = [m.rank for m in self.members if m.rank >= self.growth.first and m.role == "worker" and not m.is_new]
        return nodes | {ids.worker_id(r) for r in late} if group < 8 and group & ids.WORKER_GROUP else nodes

    def here(self, role: str) -> list[Member]:
        """The members of a role that have neither left nor died."""
        return [m for m in self.members if m.role == role and m.here]

    def away(self) -> list[Member]:
        """The members whose successors are awaited."""
        return [m for m in self.members if m.state == State.AWAY]

    def given_up(self) -> list[Member]:
        """The members that are taken for dead in a job that goes on, and those whose place others have by now."""
        return self._replaced + [m for m in self.members if m.state == State.AWAY or isinstance(m.error, WorkerDropped)]

    def expected(self, role: str) -> list[Member]:
        """The members of a role that are here, or will be again."""
        return [m for m in self.members if m.role == role and m.expected]

    @property
    def clean(self) -> bool:
        """Whether no member failed, and none was lost but those that the others can do without."""
        bad = [m for m in self.members if m.state in (State.FAILED, State.LOST)]
        return all(isinstance(m.error, WorkerDropped) for m in bad)


def _is_join(body: Any) -> bool:
    """Whether a JOIN's body is as ``Membership.join`` says; servers have addresses, workers none."""
    if not (isinstance(body, list) and len(body) == 7):
        return False
    role, wish, addresses, host, pid, restarts, on_worker_lost = body
    if on_worker_lost not in ("", "raise", "wait", "shrink"):
        return False
    if wish is not None and type(wish) is not int:
        return False
    if not (isinstance(role, str) and _is_name(host) and type(pid) is int and 0 <= pid < 2**31):
        return False
    if type(restarts) is not int:
        return False
    listed = isinstance(addresses, list) and len(addresses) <= MAX_ADDRESSES and all(map(_is_name, addresses))
    return listed and bool(addresses) == (role == "server")


def _refused(request: Message, node: str, reason: str) -> Outcome:
    return Outcome([Answer(request, error=JoinError(node=node, reason=reason))])


def _taken(other: Member) -> str:
    return f"{other.name} has that rank: give every {other.role} its own DMLC_RANK, or none"


def _is_name(text: Any) -> bool:
    """Whether a host or an address is one: it ends up in everybody's roster, logs and errors."""
    return isinstance(text, str) and len(text) <= MAX_NAME and text.isprintable()

"""The scheduler's services: membership, barriers and the directory, behind one interface. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pslite import ids
from pslite.errors import JoinError, PeerError, PeerLost, ProtocolError, PSError, WorkerDropped, WorkerFinished
from pslite.wire import Link, Message, Op

from .barrier import Answer, Barriers
from .directory import Directory
from .membership import Hint, Member, Membership, Outcome
from .recovery import Hello, Recovery


@dataclass(slots=True)
class Step:
    """What the services decided: an Outcome, plus whom to tell."""

    answers: list[Answer] = field(default_factory=list)
    ended: list[tuple[int, PeerError]] = field(default_factory=list)
    events: list[tuple[int, list[Any]]] = field(default_factory=list)  # node, body of an EVENT request
    away: list[tuple[int, PeerError]] = field(default_factory=list)  # nodes that have just died, and are awaited
    back: list[Member] = field(default_factory=list)  # their successors: all in ``untold`` must be told
    beats: list[Link] = field(default_factory=list)
    complete: bool = False
    hellos: list[tuple[Hello, Any]] = field(default_factory=list)  # and the answers to them: the table, or an error
    joins: list[tuple[Link, Message]] = field(default_factory=list)  # to be served now that there is a table
    failure: PSError | None = None
    over: bool | None = None  # all workers are gone; whether none of them failed


class Scheduler:
    """The services of one job."""

    def __init__(self, membership: Membership, recovery: Recovery | None = None) -> None:
        self.membership = membership
        self._recovery = recovery  # None: a scheduler's death is the end of its job
        self._unheard: set[int] = set()  # workers that have not told yet all they know of the directory
        self._barriers = Barriers()
        self._directory = Directory()
        self._over = False

    def on_request(self, link: Link, request: Message, now: float = 0.0) -> Step:
        """Serve one request; the answer may come with a later step."""
        if request.op == Op.JOIN:
            if self._recovery is None or self._recovery.began is None or self.membership.complete:
                return self._carry(self.membership.join(link, request, now))
            self._recovery.joins.append((link, request))
            return self._recover(self._recovery, now)
        if not _is_well_formed(request):
            return Step([Answer(request, error=ProtocolError(f"the body of operation {request.op} is malformed"))])
        member = self.membership.find(request.sender)
        if request.op == Op.LEAVE and member is not None:
            return self._carry(self.membership.leave(member, request))
        if request.op == Op.BARRIER:
            return Step(self._barrier(request))
        if request.op == Op.PUBLISH:
            if not request.body:
                return Step([Answer(request), *self._heard(request.sender)])
            return Step(self._directory.publish(request, request.body, ids.rank_of(request.sender)))
        if request.op == Op.LOOKUP:
            return Step(self._lookup(request))
        return Step([Answer(request, error=ProtocolError(f"the scheduler does not serve operation {request.op}"))])

    def _barrier(self, request: Message) -> list[Answer]:
        group, number, *counted = request.body
        if (done := self._barriers.passed(request, group, number)) is not None:
            return [done]
        late = tuple(counted[0]) if counted else None
        members = self.membership.nodes(group, late)
        for member in [m for m in self.membership.members if not m.expected and m.node in members]:
            if not isinstance(member.error, WorkerDropped):
                return [Answer(request, error=_at("this barrier", member))]
            members.discard(member.node)
        return self._barriers.enter(request, group, members, number, late)

    def _lookup(self, request: Message) -> list[Answer]:
        return self._directory.lookup(request, request.body) or self._settle_lookups()

    def _settle_lookups(self) -> list[Answer]:
        """Worker 0 publishes what is looked for; if it is lost and the others go on, the next one.

        Nobody will if that one is gone. It is told what there is once all others have told what they know.
        """
        workers = [m for m in self.membership.members if m.role == "worker" and not isinstance(m.error, WorkerDropped)]
        publisher = min(workers, key=lambda m: m.rank, default=None)
        if self._unheard or publisher is None:
            return []
        self._directory.publisher = publisher.rank
        if not publisher.expected:
            return self._directory.fail(_at("the init of this key", publisher))
        return self._directory.answer_publisher() if publisher.rank else []

    def _heard(self, node: int) -> list[Answer]:
        self._unheard.discard(node)
        return self._settle_lookups()

    # -- in place of a scheduler that died ----------------------------------------------------------------------------

    def on_hello(self, link: Link, message: Message, now: float) -> Step:
        """A member's connection to its scheduler broke, and it found this one."""
        hello = Hello.read(link, message)
        if self.membership.complete:
            return Step(hellos=[(hello, self._answer(hello))])
        if self._recovery is None:
            return Step()
        if self._recovery.began is None:
            self._recovery.joins = [(member.link, member.join) for member in self.membership.members]
            self.membership.members = []
        self._recovery.add(hello, now)
        return self._recover(self._recovery, now)

    def _answer(self, hello: Hello) -> Any:
        """The table for one that is in it, else why it is not."""
        member = self.membership.find(hello.node)
        if member is None or member.incarnation != hello.incarnation:
            return JoinError(node=ids.name_of(hello.node), reason="another process has its place")
        if not member.here and not isinstance(member.error, WorkerFinished):
            return JoinError(node=member.name, reason=f"it was taken for dead: {member.error}")
        member.link = hello.link
        self.membership.heard(hello.node)
        return self.membership.table()

    def _recover(self, recovery: Recovery, now: float) -> Step:
        """Make the table when all are accounted for."""
        if self.membership.complete or not recovery.due(now):
            return Step()
        hellos = recovery.hellos
        recovery.joins += [(member.link, member.join) for member in self.membership.members]  # if nobody said HELLO
        self.membership.restore(recovery.members(now), recovery.policy, recovery.epoch, now)
        nodes = [ids.SCHEDULER, *(member.node for member in self.membership.members)]
        passed = {node: hello.barriers for node, hello in hellos.items()}
        passed |= {-node: hello.of_others for node, hello in hellos.items()}
        self._barriers.restore(passed, nodes)
        self._unheard = {node for node in hellos if ids.role_of(node) == "worker"}
        step = self._carry(Outcome(complete=True))
        step.joins = recovery.joins
        step.hellos = [(hello, self._answer(hello)) for hello in hellos.values()]
        return step

    def on_timer(self, now: float) -> Step:
        """Judge the members and send the next beats."""
        if now < self.membership.next_timer():
            return Step()
        if self._recovery is not None and (recovered := self._recover(self._recovery, now)).complete:
            return recovered
        step = self._carry(self.membership.on_timer(now))
        step.beats = [m.link for m in self.membership.members if m.here]
        return step

    def next_timer(self) -> float:
        """When ``on_timer`` is due."""
        return self.membership.next_timer()

    def connected(self) -> list[Link]:
        """The links of members that have not closed them."""
        return [m.link for m in self.membership.members if not m.disconnected]

    @property
    def alone(self) -> bool:
        """Whether every member has left and closed its connection, or died."""
        return not any(m.here or not m.disconnected for m in self.membership.members)

    def on_hints(self, hints: Sequence[Hint], now: float) -> Step:
        """The launcher's table of processes was read."""
        if self._recovery is not None and not self.membership.complete and self._recovery.on_hints(hints, now):
            return self._recover(self._recovery, now)
        return self._carry(self.membership.on_hints(hints, now))

    def acknowledged(self, node: int, incarnation: int, by: int) -> Step:
        """A node knows of another one's successor, or will not hear of it any more."""
        return Step(self.membership.acknowledged(node, incarnation, by))

    def missing(self, request: Message) -> list[str]:
        """Who a parked request waits for."""
        if request.op == Op.JOIN:
            return self.membership.missing()
        if request.op == Op.BARRIER:
            return self._barriers.missing(request)
        if request.op == Op.LOOKUP:
            return self._directory.missing(request)
        return self.membership.leaving_waits_for(request)

    def _carry(self, outcome: Outcome) -> Step:
        """Turn a change of membership into answers, events and the end of the job."""
        step = Step(outcome.answers, complete=outcome.complete, failure=outcome.failure, back=outcome.back)
        for member in outcome.ended:
            step = self._end(member, step)
        for member in outcome.away:
            assert member.error is not None
            self._barriers.on_away(member.node)
            step.events += self._tell_all(["away", member.node, member.error.to_wire()])
            step.away.append((member.node, member.error))
        if self._over:  # their predecessors may not have heard it
            step.events += [(m.node, ["over", self.membership.clean]) for m in outcome.back if m.role == "server"]
        if (
            self.membership.members
            and self.membership.complete
            and not self._over
            and not self.membership.expected("worker")
        ):
            self._over, step.over = True, self.membership.clean
            step.events += [(m.node, ["over", self.membership.clean]) for m in self.membership.here("server")]
        return step

    def _end(self, member: Member, step: Step) -> Step:
        error = member.error
        assert error is not None
        if isinstance(error, WorkerDropped):
            step.answers += self._barriers.on_dropped(member.node)
        else:
            step.answers += self._barriers.on_gone(member.node, _at("this barrier", member))
        step.answers += self._heard(member.node)
        step.events += self._tell_all(["ended", member.node, error.to_wire(), self._barriers.of(member.node)])
        step.ended.append((member.node, error))
        return step

    def _tell_all(self, body: list[Any]) -> list[tuple[int, list[Any]]]:
        about = body[1]  # whose successor may be here already
        return [(m.node, body) for m in self.membership.members if m.here and m.node != about]


def _is_well_formed(request: Message) -> bool:
    """Whether the body is what its operation takes: a peer that is broken must not stop the scheduler."""
    body = request.body
    if request.op == Op.LEAVE:
        return isinstance(body, list) and [type(part) for part in body] == [str, str, bool]
    if request.op == Op.PUBLISH:
        return isinstance(body, dict) and all(isinstance(name, str) for name in body)
    if request.op == Op.LOOKUP:
        return isinstance(body, list) and all(isinstance(name, str) for name in body)
    if request.op == Op.BARRIER:
        return isinstance(body, list) and _is_barrier(*body[:3]) and len(body) <= 3
    return True


def _is_barrier(group: Any = None, number: Any = None, late: Any = ()) -> bool:
    return [type(group), type(number)] == [int, int] and all(type(rank) is int for rank in late)


def _at(what: str, member: Member) -> PeerError:
    """Why a wait for this member is over."""
    error = member.error or PeerLost(node=member.name, reason="it left")
    return WorkerFinished(node=member.name, reason=what) if isinstance(error, WorkerFinished) else error

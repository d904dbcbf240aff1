"""A scheduler dies, and the one that is started in its place learns from the members what it must know. No I/O.

A member whose connection to the scheduler broke says HELLO when there is one again, until it is answered. A scheduler
that was there all the time answers, and nothing changes. A successor waits for the HELLOs of all, for
``HELLO_WITHIN`` seconds at most, and answers with the table that it makes of them.

What members saw may differ, for the old scheduler died between telling one and telling another. Of a rank the line
with most restarts counts; an end that anybody has seen is one; so is a death, if it is of the process of that line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from pslite import ids
from pslite.errors import PeerError, PeerLost, WorkerFailed, WorkerFinished
from pslite.wire import MAX_BODY, Kind, Link, Message, Op

from .membership import Hint, Member, State
from .roster import Peer, peer_error

HELLO_EVERY = 0.5  # seconds between two HELLOs of a member that has no answer
HELLO_WITHIN = 2.0  # seconds that a successor waits for members: they find it within 1, ZeroMQ's longest pause
START_WITHIN = 4.0  # seconds from its start on that it waits for a first one
BATCH = MAX_BODY // 2  # bytes of records in one message


def routing_id(job: str, role: str, incarnation: int) -> str:
    """How a process is called on the connections that it makes."""
    return f"{job}/{role}/{incarnation:016x}"


@dataclass(slots=True)
class Search:
    """A member looks for its scheduler."""

    since: float
    greet_at: float | None = None  # when to say HELLO, again; None while there is no connection


class Recollection:
    """What a member knows that a new scheduler must know, too. Changes under the postoffice's lock only."""

    def __init__(self) -> None:
        self._barriers: dict[tuple[int, int], tuple[int, int]] = {}  # (group, customer): serial, number
        self._of_others: dict[tuple[int, int], tuple[int, int]] = {}  # what those had passed who have ended
        self.heard = 1  # what any scheduler has asked of us has a lower number
        self._records: dict[str, Any] = {}  # of the directory: those that it published or looked up

    def answered(self, request: Message, reply: Message) -> None:
        """The scheduler has carried out a request."""
        if request.op == Op.BARRIER:
            key, (serial, number) = (request.body[0], request.customer), reply.body
            self._barriers[key] = max((serial, number), self._barriers.get(key, (0, 0)))
        elif request.op == Op.PUBLISH:
            self._records.update(request.body)
        elif request.op == Op.LOOKUP:
            self._records.update(reply.body)

    def ended(self, barriers: Iterable[Sequence[int]]) -> None:
        """A node has ended, and cannot say any more which barriers it has passed."""
        for group, customer, *passed in barriers:
            serial, number = passed
            self._of_others[group, customer] = max((serial, number), self._of_others.get((group, customer), (0, 0)))

    def hello(self, roster: Iterable[Peer], policy: str, epoch: int) -> dict[str, Any]:
        """The body of a HELLO."""
        peers = [peer for peer in roster if peer.node != ids.SCHEDULER]
        return {
            "roster": [peer.entry() for peer in peers],
            "gone": {peer.node: peer.ended.to_wire() for peer in peers if peer.ended is not None},
            "away": [peer.node for peer in peers if peer.away],
            "barriers": [[*key, *passed] for key, passed in self._barriers.items()],
            "of others": [[*key, *passed] for key, passed in self._of_others.items()],
            "policy": policy,
            "epoch": epoch,
            "heard": self.heard,
        }

    def batches(self) -> Iterator[dict[str, Any]]:
        """The records, in parts that can travel; an empty one says that these were all."""
        batch: dict[str, Any] = {}
        size = 0
        for name, record in self._records.items():
            nbytes = len(msgpack.packb([name, record]))
            if size + nbytes > BATCH and batch:
                yield batch
                batch, size = {}, 0
            batch[name] = record
            size += nbytes
        if batch:
            yield batch
        yield {}


@dataclass(slots=True)
class Hello:
    """What a member said."""

    link: Link
    node: int
    incarnation: int
    seen: dict[int, Peer]
    barriers: dict[tuple[int, int], tuple[int, int]]
    of_others: dict[tuple[int, int], tuple[int, int]]
    policy: str
    epoch: int
    scheduler: int = 0  # the incarnation of the one that it knew
    next: int = 1  # what it asks for from now on has this number, or a higher one
    heard: int = 1  # what it was asked for has a lower one

    @staticmethod
    def read(link: Link, message: Message) -> Hello:
        """Raises LookupError, TypeError or ValueError for a malformed one."""
        body = message.body
        seen = {entry[0]: _peer(*entry) for entry in body["roster"]}
        for node, error in body["gone"].items():
            seen[node].ended = peer_error(node, error)
        for node in body["away"]:
            seen[node].away = True
        if seen[message.sender].incarnation != message.incarnation or type(body["epoch"]) is not int:
            raise ValueError("who it is, or what it has seen")
        barriers, of_others = (
            {(group, customer): (int(serial), int(n)) for group, customer, serial, n in body[what]}
            for what in ("barriers", "of others")
        )
        numbers = [body[name] for name in ("scheduler", "next", "heard")]
        if any(type(number) is not int for number in numbers):
            raise ValueError("whom it knew, what it will ask for, or what it was asked for")
        policy, epoch = str(body["policy"]), body["epoch"]
        told = barriers, of_others, policy, epoch, *numbers
        return Hello(link, message.sender, message.incarnation, seen, *told)


@dataclass
class Recovery:
    """What a scheduler hears before it has a table of members. Changed by Scheduler only."""

    job: str
    counts: dict[str, int]  # of processes by role
    started: float
    successor: bool  # the launcher says that another one was here before
    began: float | None = None  # when the first HELLO came
    hellos: dict[int, Hello] = field(default_factory=dict)  # by node
    joins: list[tuple[Link, Message]] = field(default_factory=list)  # JOINs that came meanwhile
    _hints: dict[tuple[str, int], Hint] = field(default_factory=dict)

    def add(self, hello: Hello, now: float) -> None:
        """A member said HELLO, perhaps again."""
        self.began = now if self.began is None else self.began
        self.hellos[hello.node] = hello

    def on_hints(self, hints: Sequence[Hint], now: float) -> bool:
        """The launcher's view. False if it is that of a job that is yet to begin, for the membership to judge."""
        self._hints = {(hint.role, hint.rank): hint for hint in hints}
        return self.began is not None or self._finished or (self.successor and now - self.started < START_WITHIN)

    @property
    def _finished(self) -> bool:
        """Whether all workers have ended well, or all members somehow: then nobody need be left to say HELLO."""
        ends = {place: hint.exit for place, hint in self._hints.items() if place[0] in self.counts}
        well = all(ends.get(("worker", rank)) == 0 for rank in range(self.counts["worker"]))
        gone = None not in [*ends.values(), *(ends.get(place) for place in self._places())]
        return self.successor and (well or gone)

    def due(self, now: float) -> bool:
        """Whether all are accounted for that may be expected to, or the time for that is over."""
        if self.began is None and not self._finished:
            return False
        since = self.started if self.began is None else self.began
        return now - since >= HELLO_WITHIN or all(self._is_known(*place) for place in self._places())

    def _places(self) -> Iterator[tuple[str, int]]:
        """Those that the job began with, and the workers that came later."""
        first = ids.worker_id(self.counts["worker"])
        late = {node for hello in self.hellos.values() for node in hello.seen if node >= first}
        yield from ((role, rank) for role, count in self.counts.items() for rank in range(count))
        yield from (("worker", ids.rank_of(node)) for node in sorted(late) if ids.role_of(node) == "worker")

    def _is_known(self, role: str, rank: int) -> bool:
        node, hint = ids.node_id(role, rank), self._hints.get((role, rank))
        if node in self.hellos or (hint is not None and hint.exit is not None):
            return True
        if any(request.body[:2] == [role, rank] for _, request in self.joins):
            return True
        lines = [hello.seen[node] for hello in self.hellos.values() if node in hello.seen]
        latest = max((line.restarts for line in lines), default=-1)
        if hint is not None and lines and hint.restarts > latest:
            return True  # it is being started again
        return any(line.ended is not None or (line.away and line.restarts == latest) for line in lines)

    def members(self, now: float) -> list[Member]:
        """The table."""
        members = [self._member(role, rank, now) for role, rank in self._places()]
        return [member for member in members if member is not None]

    def _member(self, role: str, rank: int, now: float) -> Member | None:
        node, hint = ids.node_id(role, rank), self._hints.get((role, rank))
        lines = [hello.seen[node] for hello in self.hellos.values() if node in hello.seen]
        if not lines:
            lines = [Peer(node, 0, [], "", hint.pid, hint.restarts)] if hint is not None else []
        if not lines:
            return None
        latest = max(lines, key=lambda line: line.restarts)
        hello = self.hellos.get(node)
        link: Link = routing_id(self.job, role, latest.incarnation).encode()
        if hello is not None and hello.incarnation == latest.incarnation:
            link = hello.link
        peer = (latest.addresses, latest.host, latest.pid, link, Message(Kind.REQUEST), rank, rank)
        member = Member(role, latest.incarnation, *peer, restarts=latest.restarts)
        error = next((line.ended for line in lines if line.ended is not None), None)
        if error is None and hello is None and hint is not None and hint.exit == 0:
            error = WorkerFinished(node=member.name, reason="later rounds")
        member.state, member.error = _state(error), error
        if error is None and any(line.away for line in lines if line.restarts == latest.restarts):
            member.state, member.away_since = State.AWAY, now
            member.error = PeerLost(node=member.name, reason="the former scheduler had taken it for dead")
        return member

    @property
    def policy(self) -> str | None:
        """What becomes of the others when a worker dies, as they know it."""
        return next((hello.policy for hello in self.hellos.values()), None)

    @property
    def epoch(self) -> int:
        """How often the table has changed, as far as anybody knows."""
        return max((hello.epoch for hello in self.hellos.values()), default=0)


def _peer(node: Any, incarnation: Any, addresses: Any, host: Any, pid: Any, restarts: Any) -> Peer:
    """A line of a HELLO's roster; raises ValueError if a field has another type."""
    numbers = {type(number) for number in (node, incarnation, pid, restarts)}
    if numbers != {int} or type(host) is not str or not all(type(address) is str for address in addresses):
        raise ValueError("a line of the roster")
    return Peer(node, incarnation, list(addresses), host, pid, restarts)


def _state(error: PeerError | None) -> State:
    if error is None:
        return State.UP
    if isinstance(error, WorkerFinished):
        return State.FINISHED
    return State.FAILED if isinstance(error, WorkerFailed) else State.LOST

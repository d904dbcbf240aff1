"""The brain of one process: delivery, the roster, and on the scheduler the services of the job. No I/O.

Every method takes the time and returns the actions that the shell must carry out, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pslite import ids
from pslite.delivery import Delivery, Pending, Send, error_of
from pslite.errors import (
    AuthError,
    JoinError,
    NoMemoryError,
    PeerError,
    PeerLost,
    ProtocolError,
    PSError,
    WorkerFinished,
)
from pslite.flow import cost
from pslite.van.base import LinkDown, LinkRefused, LinkUp, Received, Rejected, VanEvent
from pslite.wire import Flag, Kind, Link, Message, Op

from .actions import Action, Connect, Deliver, Disconnect, Forget, Log, PeerAway, PeerBack, PeerEnded, Refuse
from .membership import Hint
from .permissions import permitted
from .recovery import HELLO_EVERY, Recollection, Search
from .roster import Outage, Peer, peer_error
from .scheduler import Scheduler
from .steps import carry_out
from .strikes import Strikes

LOOPBACK: Link = 0  # the link of a process to itself
FOR_EVER = float("inf")
MAX_EARLY = 1024  # requests kept while the welcome is on its way


@dataclass
class Core:
    """The state machine of a process. All attributes change under the postoffice's lock only."""

    role: str
    delivery: Delivery
    scheduler: Scheduler | None = None  # on the scheduler only
    num_workers: int = 0
    num_servers: int = 0
    most: int = 0  # workers at a time, if they may join a running job; else 0
    roster: dict[int, Peer] = field(default_factory=dict)
    ready: bool = False  # joined: node id, counts and roster are known
    job_over: bool = False  # every worker has left
    job_clean: bool = True  # none of them failed
    joining: Pending | None = None  # our JOIN request
    fatal: PSError | None = None  # why this process cannot go on
    first_failure: PeerError | None = None  # the first peer that failed or was lost; others follow it
    why: Callable[[Message], list[str]] = lambda _: []  # what a parked application request waits for
    has_room: Callable[[Link, int], bool] = lambda *_: True  # whether there is memory for another message of this size
    again: bool = False  # this process took the place of one that died
    policy: str = "raise"  # what becomes of the others when a worker dies
    epoch: int = 0  # of the table of members, as the scheduler told it last
    returns: bool = False  # who dies comes again: a broken connection is the scheduler's to judge, or may be its death
    replicas: int = 0  # servers that have what a server has, and take its place: who dies is the scheduler's to judge
    backup: int | None = None  # of a server: the node that it replicates to; None from that one's end on
    patience: float | None = None  # seconds that another scheduler is awaited
    recollection: Recollection = field(default_factory=Recollection)  # for a scheduler that takes another one's place
    _search: Search | None = None  # while the scheduler is not there
    acknowledged_by: list[tuple[int, int, int]] = field(default_factory=list)  # successors that nodes have heard of
    strikes: Strikes = field(default_factory=Strikes)  # of those who send what is no message of ours
    _early: list[tuple[Link, Message]] = field(default_factory=list)  # requests that came before the welcome
    _known_links: set[int] = field(default_factory=set)  # links of ours that were up once, by node
    _outages: dict[int, Outage] = field(default_factory=dict)  # links of ours that are broken, by node

    @property
    def node(self) -> int:
        """Our node id, 0 before the handshake."""
        return self.delivery.node

    # -- joining ------------------------------------------------------------------------------------------------------

    def join(
        self, now: float, wish: int | None, addresses: list[str], host: str, pid: int,
        restarts: int = 0, on_worker_lost: str = ""
    ) -> list[Action]:  # fmt: skip
        """Ask the scheduler for membership; the answer comes when everybody is there."""
        self.delivery.open(ids.SCHEDULER, ids.SCHEDULER)
        body = [self.role, wish, addresses, host, pid, restarts, on_worker_lost]
        message = Message(Kind.REQUEST, op=Op.JOIN, body=body)
        self.joining, sends = self.delivery.request(now, ids.SCHEDULER, message, self._on_welcome)
        return list(sends)

    def _on_welcome(self, reply: Message | PSError) -> None:
        error = error_of(reply)
        if error is not None:
            self.fatal = error
            return
        assert isinstance(reply, Message)
        try:
            body = reply.body
            self.delivery.node, self.delivery.job = body["node"], body["job"]
            scheduler = [ids.SCHEDULER, reply.incarnation, [], "", 0]
            self._fill_roster(body["workers"], body["servers"], [scheduler, *body["roster"]])
            self.policy, self.again, self.epoch = body["policy"], body.get("again", False), body.get("epoch", 0)
            self.most = body.get("most", 0)
            for node, error in body.get("gone", {}).items():
                self.roster[node].ended = peer_error(node, error)
            for node in body.get("away", ()):
                self._suspend(node)
        except (LookupError, TypeError) as problem:
            self.fatal = ProtocolError(f"the scheduler's welcome is malformed: {problem!r:.200}")

    def _fill_roster(self, workers: int, servers: int, entries: Sequence[Sequence[Any]]) -> None:
        self.num_workers, self.num_servers = workers, servers
        self.roster = {entry[0]: Peer(*entry) for entry in entries}
        if self.node != ids.SCHEDULER:
            self.delivery.open(self.node, LOOPBACK)
        for node in self.roster:
            if node != self.node and self.delivery.link_to(node) is None:
                self.delivery.open(node, ids.SCHEDULER)  # relayed, unless there is a connection of our own
        self.ready = True

    def connections(self) -> list[Action]:
        """The connections to make after joining: a worker's to the servers, a server's to its backup."""
        if self.role == "server" and self.replicas and not self.again:
            self.backup = ids.backup_of(self.node, self.num_servers)
        if self.role != "worker" and self.backup is None:
            return []
        wanted = [node for node in self.roster if self._connects_to(node)]
        servers = [self.roster[node] for node in wanted if not self.roster[node].away]
        for peer in servers:
            self.delivery.open(peer.node, peer.node)
        return [Connect(peer.node, peer.addresses) for peer in servers]

    def _connects_to(self, node: int) -> bool:
        """Whether what we ask a node takes a connection of its own, and not that of the scheduler."""
        return node == self.backup or (self.role == "worker" and ids.role_of(node) == "server")

    def linked(self, node: int) -> bool:
        """Whether there is, or has been, a connection of our own to a node as it is now."""
        return node in self._known_links

    def unreached(self) -> list[Peer]:
        """Those in the job that we connect to, while there has been no connection."""
        wanted = [peer for node, peer in self.roster.items() if self._connects_to(node) and not self.linked(node)]
        return [peer for peer in wanted if peer.ended is None and not peer.away]

    # -- events -------------------------------------------------------------------------------------------------------

    def on_event(self, now: float, event: VanEvent) -> list[Action]:
        """Something came from the van."""
        if isinstance(event, Received):
            self.strikes.clear(event.link)
            actions = self._on_message(now, event.link, event.message)
            if self._early and self.ready:
                early, self._early = self._early, []
                for link, message in early:
                    actions += self._on_message(now, link, message)
            return actions
        if isinstance(event, Rejected):
            too_many = event.strike and self.strikes.count(event.link)
            actions = self._warn(now, f"dropped a message: {event.reason}")
            return [*actions, Refuse(event.link)] if too_many else actions
        assert isinstance(event.link, int)
        if isinstance(event, LinkRefused):
            return self._on_link_refused(event.link, event.reason)
        if isinstance(event, LinkUp):
            again = event.link in self._known_links
            self._known_links.add(event.link)
            self._outages.pop(event.link, None)
            if again and self._may_change(event.link):
                return self._greet(now)
            here = self.beats([ids.SCHEDULER]) if again and event.link == ids.SCHEDULER and self.node else []
            return [*here, *self.delivery.probe(now, event.link)] if again else []
        assert isinstance(event, LinkDown)
        if event.link in self._known_links:  # else nobody of this protocol has answered there yet
            self._outages.setdefault(event.link, Outage(now))
            if self._search is not None and event.link == ids.SCHEDULER:
                self._search.greet_at = None
        return []

    def _on_link_refused(self, node: int, reason: str) -> list[Action]:
        error = AuthError(node=ids.name_of(node), reason=reason)
        self.fatal = self.fatal or error
        for pending in self.delivery.fail(node):
            pending.on_reply(error)
        return [Log("error", str(error))]

    def _warn(self, now: float, text: str) -> list[Action]:
        line = self.strikes.line(now, text)
        return [] if line is None else [Log("warning", line)]

    def _on_message(self, now: float, link: Link, message: Message) -> list[Action]:
        if message.job and self.delivery.job and message.job != self.delivery.job:
            reason = f"it belongs to job {message.job!r}, this is job {self.delivery.job!r}"
            return self._refuse(now, link, message, reason)
        if message.recver not in (0, self.node) and self.node:
            return [] if self.scheduler is None else self._relay(link, message)
        if message.kind == Kind.REQUEST:
            return self._on_request(now, link, message)
        known = self.roster.get(message.sender)
        refusal = message.kind == Kind.REPLY and message.flags & Flag.REFUSED and not self._may_change(message.sender)
        if known is not None and (known.incarnation != message.incarnation or known.away) and not refusal:
            if message.kind == Kind.HELLO:
                return self._on_hello(now, link, message)
            if self._may_change(message.sender):
                return self._greet(now) if self._search is None else []
            return self._refuse(now, link, message, "another process has its place")
        if message.kind == Kind.REPLY:
            pending, sends = self.delivery.on_reply(now, link, message)
            if pending is not None:
                if message.sender == ids.SCHEDULER and self.returns and not message.flags & Flag.ERROR:
                    self.recollection.answered(pending.message, message)
                pending.on_reply(message)
            return [*sends, *self._settle(now)]
        if message.kind in (Kind.PROBE, Kind.ACK) and not self._is_of_its_incarnation(link, message):
            return self._refuse(now, link, message, "this process is not a member of the job")
        if message.kind == Kind.PROBE:
            return [*self._on_missing(now, link, message), *self.delivery.on_probe(link, message, self._why)]
        if message.kind == Kind.STATUS:
            return list(self.delivery.on_status(now, link, message))
        if message.kind == Kind.CREDIT:
            return list(self.delivery.on_credit(now, link, message))
        if message.kind == Kind.ACK:
            return list(self.delivery.on_ack(link, message))
        if message.kind == Kind.HELLO:
            return self._on_hello(now, link, message)
        if self.scheduler is not None:  # a beat: its connection is back
            self.scheduler.membership.heard(message.sender)
        return []

    def _is_of_its_incarnation(self, link: Link, message: Message) -> bool:
        """Whether the sender is the process that it talks about: all members know each other's incarnation."""
        if message.sender == 0:  # it has not been welcomed yet: it is where its JOIN came from
            return self.delivery.origin(message.incarnation) in (None, link)
        known = self.roster.get(message.sender)
        return not self.ready or (known is not None and known.incarnation == message.incarnation)

    def _on_request(self, now: float, link: Link, message: Message) -> list[Action]:
        if not self.ready and message.op != Op.JOIN and self.scheduler is None:
            self._early = [*self._early, (link, message)][-MAX_EARLY:]  # what is cut off is asked for by a probe
            return []
        known = self.roster.get(message.sender)
        changed = known is None or known.incarnation != message.incarnation
        if known is not None and (changed or known.away) and self._may_change(known.node):
            return self._greet(now) if self._search is None else []
        if known is None or changed:
            if message.op != Op.JOIN and self.returns and not self.ready:
                return []  # it was for a scheduler that died: its sender will say HELLO, and ask again
            if message.op != Op.JOIN or self.scheduler is None:
                return self._refuse(now, link, message, "this process is not a member of the job")
            if message.seq != 1:  # it would be kept until its predecessors come
                return self._refuse(now, link, message, "the first request of a process is to join")
        if known is not None and known.ended is not None and not isinstance(known.ended, WorkerFinished):
            return self._refuse(now, link, message, f"it was given up: {known.ended}")
        if known is not None and known.away:
            return self._refuse(now, link, message, "it was taken for dead, and its successor is awaited")
        if message.op == Op.JOIN and not self._is_of_its_incarnation(link, message):
            return self._refuse(now, link, message, "its incarnation is that of another process")
        ready, actions = self.delivery.on_request(link, message)
        result: list[Action] = list(actions)
        for request in ready:
            result += self._dispatch(now, link, request)
        return result

    def _dispatch(self, now: float, link: Link, request: Message) -> list[Action]:
        sender = ids.role_of(request.sender) if request.sender else "worker"  # or a server: it is about to join
        if not permitted(request.op, sender, self.role):
            problem = f"operation {request.op} is not for a {sender} to ask of {ids.name_of(self.node)}"
            return [*self._warn(now, problem), *self.answer(request, error=ProtocolError(problem))]
        if request.op in (Op.DATA, Op.SIMPLE, Op.REPLICATE):
            if (nbytes := cost(request)) and not self.has_room(link, nbytes):
                return self._no_memory(request, nbytes)
            return [Deliver(request)]
        if request.op == Op.EVENT:
            return self._on_scheduler_event(now, request)
        assert self.scheduler is not None  # it alone answers the rest
        return carry_out(self, now, self.scheduler.on_request(link, request, now))

    def _on_missing(self, now: float, link: Link, probe: Message) -> list[Action]:
        """Refuse a request that is sent again and again for want of memory here: nothing else would end that."""
        found = self.delivery.missing(probe) if self.ready else None
        if found is None or self.has_room(link, found[1]):
            return []
        [request, *others], sends = self.delivery.on_request(link, found[0])
        actions = [*sends, *self._no_memory(request, found[1])]
        return actions + [action for other in others for action in self._dispatch(now, link, other)]

    def _no_memory(self, request: Message, nbytes: int) -> list[Action]:
        error = NoMemoryError(node=ids.name_of(self.node), what=f"a request of {nbytes} bytes")
        return [*self.answer(request, error=error), Log("error", f"refused a request: {error}")]

    def _refuse(self, now: float, link: Link, message: Message, reason: str) -> list[Action]:
        if message.kind not in (Kind.REQUEST, Kind.PROBE):
            return []
        error = JoinError(node=ids.name_of(message.sender) if message.sender else "this process", reason=reason)
        reply = Message(Kind.REPLY, job=message.job, sender=self.node or ids.SCHEDULER, recver=message.sender)
        # Of the requests that a probe asks about, the oldest is refused, and by the next probes the others.
        reply.seq = message.floor if message.kind == Kind.PROBE else message.seq
        reply.flags, reply.body = Flag.ERROR | Flag.REFUSED, error.to_wire()
        reply.incarnation = self.delivery.incarnation
        return [Send(link, reply), *self._warn(now, f"refused a request: {error}")]

    def on_malformed(self, now: float, event: VanEvent, error: Exception) -> list[Action]:
        """A message could not be understood: its sender gets the error if it waits for an answer."""
        actions = self._warn(now, f"dropped a malformed message: {error!r:.300}")
        if isinstance(event, Received) and event.message.kind == Kind.REQUEST:
            problem = ProtocolError(f"malformed request: {error!r:.300}")
            actions += self.answer(event.message, error=problem)
        return actions

    def _relay(self, link: Link, message: Message) -> list[Action]:
        onward = self.delivery.link_to(message.recver)
        peer = self.roster.get(message.recver)
        if onward is None or peer is None or peer.ended is not None or peer.away or onward == link:
            return []  # the sender hears of lost members by an event
        if self.delivery.link_to(message.sender) != link:
            return []  # not a member, or not the one that it says
        return [Send(onward, message)]

    def _on_scheduler_event(self, now: float, request: Message) -> list[Action]:
        """``[kind, ...]``: "ended" (node, error, barriers), "away" (node, error), "back" (entry), or "over" (clean)."""
        kind, *rest = request.body
        actions = self.answer(request)
        if kind == "over":
            self.job_over, self.job_clean = True, bool(rest[0])
            return actions
        self.epoch += 1
        if kind == "back":
            return actions + self.back(now, Peer(*rest[0]))
        error = peer_error(rest[0], rest[1])
        if kind == "ended" and self.returns:
            self.recollection.ended(rest[2])
        return actions + (self.away(rest[0], error) if kind == "away" else self.lose(rest[0], error))

    # -- the end of peers ---------------------------------------------------------------------------------------------

    def lose(self, node: int, error: PeerError) -> list[Action]:
        """A peer has ended: give up what we asked it, and tell the application."""
        peer = self.roster.get(node)
        if peer is None or peer.ended is not None:
            return []
        peer.ended = error
        actions: list[Action] = []
        if not isinstance(error, WorkerFinished):  # whose last request may yet be repeated
            self.delivery.forget(peer.incarnation)
            actions.append(Forget(peer.incarnation))
            self.first_failure = self.first_failure or error
        for pending in self.delivery.fail(node):
            pending.on_reply(error)
        return [*actions, *self._lose_backup(node, error), PeerEnded(node, error)]

    def away(self, node: int, error: PeerError) -> list[Action]:
        """A peer died, and its successor is awaited."""
        peer = self.roster.get(node)
        if peer is None or peer.ended is not None or peer.away:
            return []
        self._suspend(node)
        if self.scheduler is not None:  # it asks members for nothing that outlives them
            for pending in self.delivery.fail(node):
                pending.on_reply(error)
        return [Forget(peer.incarnation), *self._lose_backup(node, error), PeerAway(node, error)]

    def _lose_backup(self, node: int, error: PeerError) -> list[Action]:
        """Whoever takes the backup's place is no backup."""
        if node != self.backup:
            return []
        self.backup = None
        for pending in self.delivery.withdraw(node, Op.REPLICATE):
            pending.on_reply(error)
        return [Disconnect(node)]

    def _suspend(self, node: int) -> None:
        peer = self.roster[node]
        peer.away = True
        self.delivery.suspend(node, peer.incarnation)
        self._outages.pop(node, None)
        self._known_links.discard(node)

    def back(self, now: float, peer: Peer, link: Link = ids.SCHEDULER) -> list[Action]:
        """A process has the place of a peer, or a new one, by a link of its own if it is one that we connect to."""
        before = self.roster.get(peer.node)
        if before is not None and before.incarnation == peer.incarnation and not before.away:
            return []
        actions: list[Action] = []
        if before is not None and not before.away:
            actions += self.away(peer.node, PeerLost(node=before.name, reason="another process has its place"))
        self.roster = {**self.roster, peer.node: peer}  # threads of users may be reading the old one
        if self._connects_to(peer.node):
            actions.append(Connect(peer.node, peer.addresses))
            link = peer.node
        return [*actions, *self.delivery.resume(now, peer.node, link), PeerBack(peer.node)]

    def _settle(self, now: float) -> list[Action]:
        """Let the scheduler hear of what nodes have acknowledged; those that ended count as told."""
        actions: list[Action] = []
        while self.acknowledged_by:
            assert self.scheduler is not None
            actions += carry_out(self, now, self.scheduler.acknowledged(*self.acknowledged_by.pop()))
        return actions

    # -- the scheduler's own end --------------------------------------------------------------------------------------

    def _lose_scheduler(self, now: float, since: float) -> list[Action]:
        if self.job_over:
            return []  # it has nothing left to say
        if self.returns and not self.ready:
            return []  # joining has a deadline of its own
        if self._may_change(ids.SCHEDULER):
            self._pause(since)
            return [Log("info", "the scheduler is gone, and another one is awaited")]
        return self._give_up(PeerLost(node="scheduler", reason=f"no connection for {now - since:.1f} s"))

    def _give_up(self, error: PSError) -> list[Action]:
        self.fatal, self._search = self.fatal or error, None
        for pending in self.delivery.fail(ids.SCHEDULER):
            pending.on_reply(error)
        return [Log("info", str(error))]

    def _may_change(self, node: int) -> bool:
        """Whether a node is the scheduler, and another process may take its place without anybody saying so."""
        return node == ids.SCHEDULER and self.returns and self.ready and self.scheduler is None and self.fatal is None

    def _pause(self, since: float) -> None:
        """From now on nothing goes to the scheduler, and what comes from it does not count: it will come again."""
        self._search = self._search or Search(since)
        self.roster[ids.SCHEDULER].away = True
        self.delivery.pause(ids.SCHEDULER)

    def _greet(self, now: float) -> list[Action]:
        """Say HELLO to the scheduler, be it another one or not."""
        if not self._may_change(ids.SCHEDULER):
            return []
        self._pause(now)
        assert self._search is not None
        self._search.greet_at = now + HELLO_EVERY
        hello = Message(Kind.HELLO, self.delivery.job, self.node, ids.SCHEDULER, self.delivery.incarnation)
        known = self.roster[ids.SCHEDULER].incarnation
        self.recollection.heard = max(self.recollection.heard, self.delivery.next_from(known))
        hello.body = self.recollection.hello(self.roster.values(), self.policy, self.epoch)
        hello.body["scheduler"] = known
        hello.body["next"] = self.delivery.next_to(ids.SCHEDULER)
        return [Send(ids.SCHEDULER, hello)]

    def _on_hello(self, now: float, link: Link, message: Message) -> list[Action]:
        if self.scheduler is not None:
            return carry_out(self, now, self.scheduler.on_hello(link, message, now))
        if self._search is None or message.sender != ids.SCHEDULER:
            return []
        if message.flags & Flag.ERROR:
            return self._give_up(PSError.from_wire(message.body))
        self._search = None
        self._outages.pop(ids.SCHEDULER, None)
        scheduler = self.roster[ids.SCHEDULER]
        if scheduler.incarnation == message.incarnation:
            scheduler.away = False
            return list(self.delivery.unpause(now, ids.SCHEDULER))
        return self._follow(now, scheduler.incarnation, message)

    def _follow(self, now: float, before: int, welcome: Message) -> list[Action]:
        """Another scheduler has made its table: take over what differs, and let it have what is for it."""
        body = welcome.body
        self.delivery.forget(before)
        self.roster[ids.SCHEDULER] = Peer(ids.SCHEDULER, welcome.incarnation, [], "", 0)
        self.policy, self.epoch = body["policy"], body["epoch"]
        actions: list[Action] = [Log("info", "another scheduler has taken the place of the one that died")]
        actions += self.delivery.resume(now, ids.SCHEDULER, ids.SCHEDULER)
        for entry in body["roster"]:
            actions += self.back(now, Peer(*entry))
        for node in body["away"]:
            actions += self.away(node, PeerLost(node=self.roster[node].name, reason="it died"))
        for node, error in body["gone"].items():
            actions += self.lose(node, peer_error(node, error))
        if self.role == "worker":
            for batch in self.recollection.batches():
                message = Message(Kind.REQUEST, op=Op.PUBLISH, body=batch)
                actions += self.request(now, ids.SCHEDULER, message, lambda _: None)[1]
        for node in self.roster:
            if self.delivery.link_to(node) == ids.SCHEDULER:  # what it relays may have been lost with it
                actions += self.delivery.probe(now, node)
        return actions

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(
        self, now: float, node: int, message: Message, on_reply: Callable[[Message | PSError], None]
    ) -> tuple[Pending | None, list[Action]]:
        """Send a request to a node; fails at once if the node has ended."""
        peer = self.roster.get(node)
        if peer is not None and peer.ended is not None:
            on_reply(peer.ended)
            return None, []
        if node == ids.SCHEDULER and self.fatal is not None:
            on_reply(self.fatal)
            return None, []
        if message.op == Op.REPLICATE and node != self.backup:
            on_reply(PeerLost(node=ids.name_of(node), reason="it has no replica of this server any more"))
            return None, []
        if self.delivery.link_to(node) is None:
            on_reply(PeerLost(node=ids.name_of(node), reason="this process has no way to reach it"))
            return None, []
        pending, sends = self.delivery.request(now, node, message, on_reply)
        return pending, list(sends)

    def answer(self, request: Message, body: Any = None, error: PSError | None = None) -> list[Action]:
        """Answer a request of a service."""
        reply = Message(Kind.REPLY, body=error.to_wire() if error else body, flags=Flag.ERROR if error else 0)
        return list(self.delivery.reply(request, reply))

    def _why(self, request: Message) -> list[str]:
        if request.op in (Op.DATA, Op.SIMPLE):
            return self.why(request)
        return [] if self.scheduler is None else self.scheduler.missing(request)

    # -- time ---------------------------------------------------------------------------------------------------------

    def on_timer(self, now: float) -> list[Action]:
        """Probes that are due, links that stay down, and on the scheduler the liveness of all."""
        actions: list[Action] = list(self.delivery.on_timer(now))
        for node, outage in list(self._outages.items()):
            if not outage.is_final(now):
                continue
            del self._outages[node]
            if node == ids.SCHEDULER:
                actions += self._lose_scheduler(now, outage.since)
            elif not (self.returns or (self.replicas and ids.role_of(node) == "server")):
                reason = f"its connection broke {now - outage.since:.1f} s ago and did not come back"
                actions += self.lose(node, PeerLost(node=self.roster[node].name, reason=reason))
        if self._search is not None:
            actions += self._look_for_scheduler(now, self._search)
        if self.scheduler is not None:
            actions += carry_out(self, now, self.scheduler.on_timer(now))
        return actions + self._settle(now)

    def _look_for_scheduler(self, now: float, search: Search) -> list[Action]:
        if self.patience is not None and now - search.since >= self.patience:
            waited = f"no connection for {now - search.since:.1f} s, and no other one was started"
            return self._give_up(PeerLost(node="scheduler", reason=waited))
        return self._greet(now) if search.greet_at is not None and now >= search.greet_at else []

    def next_timer(self) -> float:
        """When ``on_timer`` is due."""
        probe = self.delivery.next_timer()
        due = FOR_EVER if probe is None else probe
        due = min([due, *(outage.until for outage in self._outages.values())])
        if self._search is not None:
            until = FOR_EVER if self.patience is None else self._search.since + self.patience
            due = min(due, until, FOR_EVER if self._search.greet_at is None else self._search.greet_at)
        return due if self.scheduler is None else min(due, self.scheduler.next_timer())

    # -- the scheduler's part -----------------------------------------------------------------------------------------

    def on_hints(self, now: float, hints: Sequence[Hint]) -> list[Action]:
        """The launcher's table of processes was read."""
        assert self.scheduler is not None
        return carry_out(self, now, self.scheduler.on_hints(hints, now)) + self._settle(now)

    def given_up(self) -> list[tuple[str, int, int]]:
        """Role, rank and pid of the processes that are taken for dead, and may only be stopped."""
        assert self.scheduler is not None
        return [(m.role, m.rank, m.pid) for m in self.scheduler.membership.given_up()]

    def on_unreachable(self, now: float, link: Link) -> None:
        """The van found no connection for a message."""
        if self.scheduler is not None:
            self.scheduler.membership.on_unreachable(link, now)

    def beat_all(self, now: float) -> list[Action]:
        """Look at the connection of every member that had one, also of those that left."""
        assert self.scheduler is not None
        return self.beats(self.scheduler.connected())

    def is_member(self, request: Message) -> bool:
        """Whether a request is of a process that the scheduler let in."""
        assert self.scheduler is not None
        return any(member.incarnation == request.incarnation for member in self.scheduler.membership.members)

    def beats(self, links: Sequence[Link]) -> list[Action]:
        """A beat by each of these links."""
        beat = Message(Kind.BEAT, self.delivery.job, self.node, incarnation=self.delivery.incarnation)
        return [Send(link, beat) for link in links]

    def scheduler_ready(self) -> None:
        """The scheduler's own welcome: everybody has joined."""
        assert self.scheduler is not None
        membership = self.scheduler.membership
        self.delivery.open(ids.SCHEDULER, LOOPBACK)
        for member in membership.members:
            self.delivery.open(member.node, member.link)
        own = [ids.SCHEDULER, self.delivery.incarnation, [], "", 0]
        counts, self.policy = membership.wanted, membership.policy.workers
        self._fill_roster(counts["worker"], counts["server"], [own, *(m.entry() for m in membership.members)])
        for member in membership.members:
            if not member.expected:
                self.roster[member.node].ended = member.error
            elif not member.here:
                self._suspend(member.node)

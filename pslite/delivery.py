"""Delivery: every request is done exactly once, whatever the connection loses, doubles or delays.

All traffic is request and reply. A request has a sequence number per (sender incarnation, receiver) and is kept until
its reply arrives; the reply is the acknowledgement, and the replies received are named in the next request so that
the receiver can forget them. The receiver works through a sender's requests in order and remembers what it has
answered: a duplicate is answered again, never applied again (RIFL, SOSP'15). A request that has no answer for a
while is not sent again but asked for with a header-only probe, because it may be parked in an unfinished round.

No I/O here: time is an argument, and what must be sent is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import PSError
from .wire import MAX_ACKS, Flag, Kind, Link, Message

MAX_PROBE_INTERVAL = 30.0  # seconds
MAX_HELD = 1024  # messages of one sender that arrived before a predecessor


@dataclass(slots=True)
class Send:
    """An action for the shell: put this message on this link."""

    link: Link
    message: Message


@dataclass(slots=True, eq=False)
class Pending:
    """A request that has no reply yet. Changed by Outbox only."""

    message: Message
    on_reply: Callable[[Message | PSError], None]
    waiting_for: list[str] = field(default_factory=list)  # what the receiver said last about why it is not done
    asked_at: float = float("-inf")  # when it said so


@dataclass(slots=True)
class Outbox:
    """Our requests to one node."""

    node: int
    link: Link
    resend_timeout: float
    next_seq: int = 1
    pending: dict[int, Pending] = field(default_factory=dict)  # by sequence number, in sending order
    acks: list[int] = field(default_factory=list)  # replies that the next request will acknowledge
    probes: int = 0  # sent since the last sign of progress
    probe_at: float | None = None

    def add(self, now: float, message: Message, on_reply: Callable[[Message | PSError], None]) -> Pending:
        """Number the request and remember it until it is answered."""
        message.seq = self.next_seq
        message.acks, self.acks = self.acks[:MAX_ACKS], self.acks[MAX_ACKS:]
        self.next_seq += 1
        pending = self.pending[message.seq] = Pending(message, on_reply)
        message.floor = next(iter(self.pending))
        if self.probe_at is None:
            self.probe_at = now + self.resend_timeout
        return pending

    def answered(self, now: float, seq: int) -> Pending | None:
        """Take out the request that a reply is for; None if the reply is a duplicate."""
        pending = self.pending.pop(seq, None)
        if pending is not None:
            _append_range(self.acks, seq)
            self.probes = 0
            self.probe_at = now + self.resend_timeout if self.pending else None
        return pending

    def status(self, now: float, have: list[int], upto: int, why: list[str]) -> list[Message]:
        """The receiver has these requests in hand; the others below ``upto`` must be sent again."""
        held = set(_within(have, self.pending))
        lost = []
        for seq, pending in self.pending.items():
            if seq in held:
                pending.waiting_for, pending.asked_at = why, now
            elif seq < upto:
                lost.append(pending.message)
        if lost:  # they are sent anew, and may be lost anew: ask as soon as after a first sending
            self.probes, self.probe_at = 0, now + self.resend_timeout
        return lost


@dataclass(slots=True)
class Inbox:
    """The requests of one incarnation of one sender."""

    link: Link
    expected: int
    active: dict[int, Message] = field(default_factory=dict)  # delivered to the application, not answered
    done: dict[int, Message | None] = field(default_factory=dict)  # answered, not acknowledged; None: recompute
    held: dict[int, Message] = field(default_factory=dict)  # arrived before a predecessor

    def accept(self, message: Message) -> tuple[list[Message], bool]:
        """The requests that may be delivered now, in order, and whether a gap was just found."""
        if message.seq > self.expected:
            gap = not self.held
            if len(self.held) < MAX_HELD:
                self.held[message.seq] = message
            return [], gap
        ready = [message]
        self.expected += 1
        while (successor := self.held.pop(self.expected, None)) is not None:
            ready.append(successor)
            self.expected += 1
        self.active.update((m.seq, m) for m in ready)
        return ready, False

    def forget(self, acks: list[int], floor: int) -> None:
        """Drop what the sender has the answers of: those that it names, and in time all below what it waits for."""
        for seq in _within(acks, self.done):
            self.done.pop(seq, None)  # ranges of a peer may overlap
        while self.done and (first := next(iter(self.done))) < floor:
            del self.done[first]


class Delivery:
    """The delivery state of one process towards all its peers. Used under the postoffice's lock only."""

    def __init__(self, incarnation: int, resend_timeout: float) -> None:
        self.incarnation = incarnation
        self.node = 0  # our own id, once the scheduler gave one
        self.job = ""
        self._resend_timeout = resend_timeout
        self._outboxes: dict[int, Outbox] = {}  # by node id
        self._inboxes: dict[int, Inbox] = {}  # by the sender's incarnation
        self.resent_requests = 0

    # -- our requests -------------------------------------------------------------------------------------------------

    def open(self, node: int, link: Link) -> None:
        """Requests to ``node`` go by ``link`` from now on; what is unanswered keeps its numbers."""
        outbox = self._outboxes.get(node)
        if outbox is None:
            self._outboxes[node] = Outbox(node, link, self._resend_timeout)
        else:
            outbox.link = link

    def link_to(self, node: int) -> Link | None:
        """The link that requests to this node take."""
        outbox = self._outboxes.get(node)
        return None if outbox is None else outbox.link

    def request(
        self, now: float, node: int, message: Message, on_reply: Callable[[Message | PSError], None]
    ) -> tuple[Pending, Send]:
        """Send a request; ``on_reply`` gets the reply, or the error that makes one impossible."""
        outbox = self._outboxes[node]
        self._stamp(message, node)
        return outbox.add(now, message, on_reply), Send(outbox.link, message)

    def on_reply(self, now: float, link: Link, reply: Message) -> Pending | None:
        """The request that this reply answers; None for a duplicate, and for one from somebody else's connection."""
        outbox = self._outboxes.get(reply.sender)
        return None if outbox is None or outbox.link != link else outbox.answered(now, reply.seq)

    def fail(self, node: int) -> list[Pending]:
        """Give up all requests to a node that is lost."""
        outbox = self._outboxes.get(node)
        if outbox is None:
            return []
        failed, outbox.pending, outbox.probe_at = list(outbox.pending.values()), {}, None
        return failed

    # -- their requests -----------------------------------------------------------------------------------------------

    def on_request(self, link: Link, message: Message) -> tuple[list[Message], list[Send]]:
        """Requests to deliver to the application, in the sender's order, and what to send."""
        inbox = self._inboxes.get(message.incarnation)
        if inbox is None:
            inbox = self._inboxes[message.incarnation] = Inbox(link, expected=max(message.floor, 1))
        inbox.link = link
        inbox.forget(message.acks, message.floor)
        if message.seq >= inbox.expected:
            ready, gap = inbox.accept(message)
            return ready, [self._status(inbox, message, message.seq + 1, [])] if gap else []
        if message.seq not in inbox.done:
            return [], []  # parked, or answered and acknowledged: nothing is missing
        cached = inbox.done.pop(message.seq)
        if cached is not None:
            inbox.done[message.seq] = cached
            return [], [Send(link, cached)]
        message.flags |= Flag.REPLAY
        inbox.active[message.seq] = message
        return [message], []

    def reply(self, request: Message, reply: Message) -> list[Send]:
        """Answer a request; nothing is sent if its sender is gone or it was answered before."""
        inbox = self._inboxes.get(request.incarnation)
        if inbox is None or inbox.active.pop(request.seq, None) is None:
            return []
        reply.kind = Kind.REPLY
        reply.seq = request.seq
        reply.op, reply.app, reply.customer, reply.timestamp = (
            request.op,
            request.app,
            request.customer,
            request.timestamp,
        )
        self._stamp(reply, request.sender)
        inbox.done[request.seq] = None if reply.arrays else reply
        return [Send(inbox.link, reply)]

    def forget(self, incarnation: int) -> None:
        """Drop what is known of a sender that has ended."""
        self._inboxes.pop(incarnation, None)

    # -- probes -------------------------------------------------------------------------------------------------------

    def on_probe(self, link: Link, probe: Message, why: Callable[[Message], Iterable[str]]) -> Send:
        """Tell the sender which of its requests are here, and what the oldest one waits for."""
        inbox = self._inboxes.get(probe.incarnation)
        if inbox is None:
            inbox = Inbox(link, expected=0)  # nothing known, nothing kept
        inbox.link = link
        oldest = min(inbox.active, default=None)
        waits = [] if oldest is None else list(why(inbox.active[oldest]))
        return self._status(inbox, probe, int(probe.seq), waits)

    def on_status(self, now: float, link: Link, status: Message) -> list[Send]:
        """Send again what the receiver does not have."""
        outbox = self._outboxes.get(status.sender)
        if outbox is None or outbox.link != link or not _is_status(status.body):
            return []
        have, why = status.body
        lost = outbox.status(now, have[:MAX_ACKS], status.seq, [str(w) for w in why])
        self.resent_requests += len(lost)
        return [Send(outbox.link, message) for message in lost]

    def probe(self, now: float, node: int) -> list[Send]:
        """Ask a node now which of our requests it has: at its deadline, or after its connection came back."""
        outbox = self._outboxes.get(node)
        if outbox is None or not outbox.pending:
            return []
        outbox.probes += 1
        outbox.probe_at = now + min(self._resend_timeout * 2 ** min(outbox.probes, 10), MAX_PROBE_INTERVAL)
        message = Message(Kind.PROBE, seq=outbox.next_seq, floor=next(iter(outbox.pending)))
        self._stamp(message, node)
        return [Send(outbox.link, message)]

    def on_timer(self, now: float) -> list[Send]:
        """Probe every node whose answer is overdue."""
        due = [o.node for o in self._outboxes.values() if o.probe_at is not None and o.probe_at <= now]
        return [send for node in due for send in self.probe(now, node)]

    def next_timer(self) -> float | None:
        """When ``on_timer`` is due."""
        return min((o.probe_at for o in self._outboxes.values() if o.probe_at is not None), default=None)

    def _status(self, inbox: Inbox, about: Message, upto: int, why: list[str]) -> Send:
        have: list[int] = []
        for seq in sorted([*inbox.active, *inbox.held]):
            _append_range(have, seq)
        if len(have) > MAX_ACKS:  # what is cut off is not lost: say nothing about it
            have = have[:MAX_ACKS]
            upto = have[-2] + have[-1]
        status = Message(Kind.STATUS, seq=upto, body=[have, why])
        self._stamp(status, about.sender)
        return Send(inbox.link, status)

    def _stamp(self, message: Message, recver: int) -> None:
        message.job, message.sender, message.recver, message.incarnation = self.job, self.node, recver, self.incarnation

    def __repr__(self) -> str:
        waiting = sum(len(o.pending) for o in self._outboxes.values())
        parked = sum(len(i.active) for i in self._inboxes.values())
        kept = sum(len(i.done) + len(i.held) for i in self._inboxes.values())
        return f"<Delivery node={self.node} unanswered={waiting} parked={parked} remembered={kept}>"


def _append_range(ranges: list[Any], number: int) -> None:
    """Add a number to ``[start, count, start, count, ...]``."""
    if ranges and ranges[-2] + ranges[-1] == number:
        ranges[-1] += 1
    else:
        ranges += [number, 1]


def _is_status(body: Any) -> bool:
    if not (isinstance(body, list) and len(body) == 2 and all(isinstance(part, list) for part in body)):
        return False
    return all(type(number) is int for number in body[0])


def _within(ranges: list[Any], known: dict[int, Any]) -> list[int]:
    """The known numbers that are in ``[start, count, ...]``; costs no more than there are known numbers and ranges."""
    found = []
    for start, count in zip(ranges[::2], ranges[1::2], strict=False):
        if count == 1:
            found += [start] if start in known else []
        else:
            found += [number for number in known if start <= number < start + count]
    return found

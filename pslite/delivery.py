"""Delivery: every request is done exactly once, whatever the connection loses, doubles or delays.

All traffic is request and reply. A request has a sequence number per (sender incarnation, receiver) and is kept until
its reply arrives; the reply is the acknowledgement, and the replies received are named in the next request so that
the receiver can forget them. The receiver works through a sender's requests in order and remembers what it has
answered: a duplicate is answered again, never applied again (RIFL, SOSP'15). A request that has no answer for a
while is not sent again but asked for with a header-only probe, because it may be parked in an unfinished round.

A request gets its number when it leaves. Until then it may wait for room in the receiver's window, where those of
higher priority overtake it; likewise a reply with arrays. ``flow.py`` has the rules.

No I/O here: time is an argument, and what must be sent is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import PSError
from .flow import SAY_AFTER, Window, cost
from .wire import MAX_ACKS, Array, Flag, Kind, Link, Message, append_range, within

MAX_PROBE_INTERVAL = 30.0  # seconds
MAX_UNSAID = 16 * MAX_ACKS  # numbers of replies to name; what is left out the receiver forgets later, by ``floor``
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
    away: bool = False  # the node died, and its successor is awaited: everything waits
    window: Window[Pending] = field(default_factory=Window)  # what waits for room, and what is not taken in yet
    pending: dict[int, Pending] = field(default_factory=dict)  # by sequence number, in sending order
    acks: list[int] = field(default_factory=list)  # replies that the next request will acknowledge
    unsaid: int = 0  # bytes of replies that came since we last named any
    missing: int = 0  # the first request that had to be sent again, when the receiver said last what it has; 0: none
    probes: int = 0  # sent since the last sign of progress
    probe_at: float | None = None

    def add(
        self, now: float, message: Message, on_reply: Callable[[Message | PSError], None]
    ) -> tuple[Pending, list[Message]]:
        """Number the request if it may leave now; else it waits for ``release``. Also returns what leaves."""
        pending = Pending(message, on_reply)
        if not self.away and self.window.admits(message):
            return pending, [self._number(now, pending)]
        self.window.wait(message, pending)
        return pending, self.release(now)

    def release(self, now: float, room: bool = True) -> list[Message]:
        """Number those that may leave by now, and return them; without ``room`` all that wait."""
        released = []
        while not self.away and (pending := self.window.pop(room)) is not None:
            released.append(self._number(now, pending))
        if released:  # they may be lost: ask as soon as after a first sending
            self.probes, self.probe_at = 0, now + self.resend_timeout
        return released

    def restart(self, now: float, link: Link) -> list[Message]:
        """The node is another process now: number anew what is unanswered, in the order of calls; what leaves.

        No number is used twice, for what was sent before may still reach it.
        """
        unanswered = [*self.pending.values(), *self.window.clear()]
        self.link, self.away, self.pending, self.acks, self.unsaid = link, False, {}, [], 0
        self.missing = self.probes = 0
        self.probe_at = None
        for pending in unanswered:
            self.window.wait(pending.message, pending)
        return self.release(now)

    def _number(self, now: float, pending: Pending) -> Message:
        message = pending.message
        message.seq = self.next_seq
        message.acks, self.acks = self.acks[:MAX_ACKS], self.acks[MAX_ACKS:]
        self.unsaid = 0
        self.next_seq += 1
        self.pending[message.seq] = pending
        message.floor = self.floor
        self.window.left(message)
        if self.probe_at is None:
            self.probe_at = now + self.resend_timeout
        return message

    @property
    def floor(self) -> int:
        """The lowest number that we wait for."""
        return next(iter(self.pending), self.next_seq)

    def answered(self, now: float, reply: Message) -> Pending | None:
        """Take out the request that a reply is for; None if the reply is a duplicate."""
        seq = reply.seq
        if self.window.under_way:
            self.window.arrived_below(max(seq + 1, reply.floor))  # what is answered is taken in, with all before it
        self.unsaid += cost(reply)
        pending = self.pending.pop(seq, None)
        if pending is not None:
            self.probes = 0
            self.probe_at = now + self.resend_timeout if self.pending else None
        # Of a duplicate too: its bytes were under way. A peer may send them without end, though.
        if 0 < seq < self.next_seq and len(self.acks) < MAX_UNSAID:
            append_range(self.acks, seq)
        return pending

    def acknowledge(self, message: Message) -> Message:
        """Name the replies that came. The next request does so again, for this message may be lost."""
        message.acks, message.floor, self.unsaid = self.acks[-MAX_ACKS:], self.floor, 0
        return message

    def too_large(self) -> list[int] | None:
        """Number and bytes of a request that was sent again, and may be more than the receiver has memory for."""
        pending = self.pending.get(self.missing)
        return [self.missing, cost(pending.message)] if pending is not None and cost(pending.message) else None

    def status(self, now: float, have: list[int], upto: int, why: list[str]) -> list[Message]:
        """The receiver has these requests in hand; the others below ``upto`` must be sent again."""
        held = set(within(have, self.pending))
        lost = []
        for seq, pending in self.pending.items():
            if seq in held:
                pending.waiting_for, pending.asked_at = why, now
            elif seq < upto:
                pending.message.flags |= Flag.BY_VALUE  # the receiver may have been unable to read our memory
                lost.append(pending.message)
        self.missing = lost[0].seq if lost else 0
        if lost:  # they are sent anew, and may be lost anew: ask as soon as after a first sending
            self.probes, self.probe_at = 0, now + self.resend_timeout
        return lost


@dataclass(slots=True)
class Inbox:
    """The requests of one incarnation of one sender."""

    link: Link
    expected: int  # all below were accepted
    active: dict[int, Message] = field(default_factory=dict)  # delivered to the application, not answered
    done: dict[int, Message | None] = field(default_factory=dict)  # answered, not acknowledged; None: recompute
    lent: dict[int, list[Array]] = field(default_factory=dict)  # arrays of answers, until these are acknowledged
    held: dict[int, Message] = field(default_factory=dict)  # arrived before a predecessor
    unsaid: int = 0  # bytes of requests that were accepted since we last told ``expected``
    replies: Window[Message] = field(default_factory=Window)  # what waits for room, and what is not acknowledged yet

    def accept(self, message: Message) -> tuple[list[Message], bool]:
        """The requests that may be delivered now, in order, and whether a gap was just found."""
        if self.expected < message.floor <= message.seq:
            self._skip(message.floor)
        gap = not self.held
        if message.seq == self.expected or len(self.held) < MAX_HELD:
            self.held[message.seq] = message
        ready = []
        while (successor := self.held.pop(self.expected, None)) is not None:
            ready.append(successor)
            self.active[successor.seq] = successor
            self.unsaid += cost(successor)
            self.expected += 1
        return ready, gap and not ready

    def _skip(self, floor: int) -> None:
        """What has not come of lower numbers never will: its sender took us for another one, and has numbered anew."""
        self.expected = floor
        self.held = {seq: message for seq, message in self.held.items() if seq >= floor}

    def forget(self, acks: list[int], floor: int) -> None:
        """Drop what the sender has the answers of: those that it names, and in time all below what it waits for."""
        for seq in within(acks, self.done):
            self.drop(seq)
        while self.done and (first := next(iter(self.done))) < floor:
            self.drop(first)

    def drop(self, seq: int) -> None:
        """Forget an answer, which has come or was lost."""
        self.done.pop(seq, None)  # ranges of a peer may overlap
        self.lent.pop(seq, None)
        if self.replies.under_way:
            self.replies.arrived(seq)

    def release(self, room: bool = True) -> list[Send]:
        """The replies that may leave by now; without ``room`` all that wait."""
        sends = []
        while (reply := self.replies.pop(room)) is not None:
            sends.append(self.answer(reply))
        return sends

    def answer(self, reply: Message) -> Send:
        """This reply leaves: from now on a duplicate of its request gets it again."""
        self.done[reply.seq] = None if reply.arrays else reply
        if reply.lent:
            self.lent[reply.seq] = reply.arrays
        self.replies.left(reply)
        return Send(self.link, self.tell(reply))

    def tell(self, message: Message) -> Message:
        """Say which requests were taken in."""
        message.floor, self.unsaid = self.expected, 0
        return message

    @property
    def in_hand(self) -> list[int]:
        """The numbers of all requests that are here and not answered yet."""
        return sorted([*self.active, *self.held, *(reply.seq for reply in self.replies.waiting())])


class Delivery:
    """The delivery state of one process towards all its peers. Used under the postoffice's lock only."""

    def __init__(
        self,
        incarnation: int,
        resend_timeout: float,
        weigh: Callable[[Link, Message], int] = lambda _, message: cost(message),
    ) -> None:
        self.incarnation = incarnation
        self.node = 0  # our own id, once the scheduler gave one
        self.job = ""
        self._resend_timeout = resend_timeout
        self._weigh = weigh  # the bytes of a message that travel on a link
        self._outboxes: dict[int, Outbox] = {}  # by node id
        self._inboxes: dict[int, Inbox] = {}  # by the sender's incarnation
        self.resent_requests = 0

    # -- our requests -------------------------------------------------------------------------------------------------

    def open(self, node: int, link: Link) -> None:
        """Requests to ``node`` go by ``link`` from now on; what is unanswered keeps its numbers."""
        outbox = self._outboxes.get(node)
        if outbox is None:
            outbox = self._outboxes[node] = Outbox(node, link, self._resend_timeout)
            outbox.window = Window(lambda message: self._weigh(outbox.link, message))
        else:
            outbox.link = link

    def next_to(self, node: int) -> int:
        """The number of the next request to this node."""
        return self._outboxes[node].next_seq

    def next_from(self, incarnation: int) -> int:
        """All requests of this process with lower numbers have come."""
        inbox = self._inboxes.get(incarnation)
        return 1 if inbox is None else inbox.expected

    def link_to(self, node: int) -> Link | None:
        """The link that requests to this node take."""
        outbox = self._outboxes.get(node)
        return None if outbox is None else outbox.link

    def request(
        self, now: float, node: int, message: Message, on_reply: Callable[[Message | PSError], None]
    ) -> tuple[Pending, list[Send]]:
        """Send a request when there is room; ``on_reply`` gets the reply, or the error that makes one impossible."""
        outbox = self._outboxes[node]
        self._stamp(message, node)
        pending, leaving = outbox.add(now, message, on_reply)
        return pending, [Send(outbox.link, each) for each in leaving]

    def on_reply(self, now: float, link: Link, reply: Message) -> tuple[Pending | None, list[Send]]:
        """The request that this reply answers, and what may leave now.

        None for a duplicate, and for a reply from somebody else's connection.
        """
        outbox = self._outboxes.get(reply.sender)
        if outbox is None or outbox.link != link:
            return None, []
        pending = outbox.answered(now, reply)
        sends = self._release(now, outbox) if len(outbox.window) else []
        if outbox.unsaid >= SAY_AFTER:
            sends.append(self._ask(outbox, Kind.ACK))
        return pending, sends

    def on_credit(self, now: float, link: Link, credit: Message) -> list[Send]:
        """What may leave now that the receiver has taken in more."""
        outbox = self._outboxes.get(credit.sender)
        if outbox is None or outbox.link != link:
            return []
        outbox.window.arrived_below(credit.floor)
        return self._release(now, outbox)

    def _release(self, now: float, outbox: Outbox, room: bool = True) -> list[Send]:
        return [Send(outbox.link, message) for message in outbox.release(now, room)]

    def suspend(self, node: int, incarnation: int) -> None:
        """A node died, and another process will take its place: what is for it waits."""
        self.forget(incarnation)
        self.pause(node)

    def pause(self, node: int) -> None:
        """Let what is for a node wait, and ask it nothing."""
        outbox = self._outboxes.get(node)
        if outbox is not None:
            outbox.away, outbox.probe_at = True, None

    def unpause(self, now: float, node: int) -> list[Send]:
        """It is the same process still: what waits may leave, and something may have been lost."""
        outbox = self._outboxes[node]
        outbox.away = False
        return [*self._release(now, outbox), *self.probe(now, node)]

    def resume(self, now: float, node: int, link: Link) -> list[Send]:
        """Another process has taken the place of a node: it gets all that was not answered."""
        outbox = self._outboxes.get(node)
        if outbox is None:
            self.open(node, link)
            return []
        leaving = outbox.restart(now, link)
        self.resent_requests += len(leaving)
        return [Send(outbox.link, message) for message in leaving]

    def begin_at(self, now: float, node: int, seq: int) -> list[Send]:
        """Requests to a node have no lower number than this: answers to those may be for another process."""
        outbox = self._outboxes[node]
        if min([outbox.next_seq, *outbox.pending]) >= seq:
            return []
        outbox.next_seq = max(outbox.next_seq, seq)
        return self.resume(now, node, outbox.link)

    def fail(self, node: int) -> list[Pending]:
        """Give up all requests to a node that is lost."""
        outbox = self._outboxes.get(node)
        if outbox is None:
            return []
        failed = [*outbox.pending.values(), *outbox.window.clear()]
        outbox.pending, outbox.probe_at = {}, None
        return failed

    def withdraw(self, node: int, op: int) -> list[Pending]:
        """Give up the requests of one sort to a node that is away; the others wait."""
        outbox = self._outboxes[node]
        waiting = outbox.window.clear()
        given_up = [p for p in [*outbox.pending.values(), *waiting] if p.message.op == op]
        outbox.pending = {seq: p for seq, p in outbox.pending.items() if p.message.op != op}
        for pending in waiting:
            if pending.message.op != op:
                outbox.window.wait(pending.message, pending)
        return given_up

    def flush(self, now: float) -> list[Send]:
        """All that waits for room, because this process ends: nothing will come that should overtake it."""
        requests = [send for outbox in self._outboxes.values() for send in self._release(now, outbox, room=False)]
        return requests + [send for inbox in self._inboxes.values() for send in inbox.release(room=False)]

    # -- their requests -----------------------------------------------------------------------------------------------

    def on_request(self, link: Link, message: Message) -> tuple[list[Message], list[Send]]:
        """Requests to deliver to the application, in the sender's order, and what to send."""
        inbox = self._inboxes.get(message.incarnation)
        if inbox is None:
            inbox = self._open_inbox(message.incarnation, link, max(message.floor, 1))
        inbox.link = link
        inbox.forget(message.acks, message.floor)
        sends = inbox.release() if len(inbox.replies) else []
        if message.seq >= inbox.expected:
            ready, gap = inbox.accept(message)
            if gap:
                sends.append(self._status(inbox, message, message.seq + 1, []))
            elif inbox.unsaid >= SAY_AFTER:
                credit = inbox.tell(Message(Kind.CREDIT))
                self._stamp(credit, message.sender)
                sends.append(Send(link, credit))
            return ready, sends
        if message.seq not in inbox.done:
            return [], sends  # parked, or answered and acknowledged: nothing is missing
        cached = inbox.done[message.seq]
        if cached is not None:
            return [], [*sends, Send(link, cached)]
        inbox.drop(message.seq)  # what came of it, if it did, is not wanted
        message.flags |= Flag.REPLAY
        inbox.active[message.seq] = message
        return [message], sends

    def _open_inbox(self, incarnation: int, link: Link, expected: int) -> Inbox:
        inbox = self._inboxes[incarnation] = Inbox(link, expected)
        inbox.replies = Window(lambda message: self._weigh(inbox.link, message))
        return inbox

    def expect(self, incarnation: int, link: Link, seq: int) -> None:
        """The requests of a sender begin with this number: what has a lower one was for another process."""
        inbox = self._inboxes.get(incarnation)
        if inbox is None or inbox.expected < seq:
            self._open_inbox(incarnation, link, seq)

    def origin(self, incarnation: int) -> Link | None:
        """Where the requests of a process came from; None if there were none."""
        inbox = self._inboxes.get(incarnation)
        return None if inbox is None else inbox.link

    def on_ack(self, link: Link, ack: Message) -> list[Send]:
        """The replies that may leave now that more of them have come."""
        inbox = self._inboxes.get(ack.incarnation)
        if inbox is None:
            return []
        inbox.link = link
        inbox.forget(ack.acks, ack.floor)
        return inbox.release()

    def reply(self, request: Message, reply: Message) -> list[Send]:
        """Answer a request, now or when there is room; never if its sender is gone or it was answered before."""
        inbox = self._inboxes.get(request.incarnation)
        if inbox is None or inbox.active.pop(request.seq, None) is None:
            return []
        reply.kind = Kind.REPLY
        reply.seq = request.seq
        reply.op, reply.app = request.op, request.app
        reply.customer, reply.timestamp = request.customer, request.timestamp
        self._stamp(reply, request.sender)
        if not reply.arrays or inbox.replies.admits(reply):
            return [inbox.answer(reply)]
        inbox.replies.wait(reply, reply)
        return inbox.release()

    def forget(self, incarnation: int) -> None:
        """Drop what is known of a sender that has ended."""
        inbox = self._inboxes.pop(incarnation, None)
        if inbox is not None:
            inbox.lent.clear()  # at once: its window refers to the inbox, so that is there until garbage is collected

    # -- probes -------------------------------------------------------------------------------------------------------

    def missing(self, probe: Message) -> tuple[Message, int] | None:
        """What a probe says of a request that was sent in vain: one with its number, to be answered, and its bytes.

        None if it says nothing, or if that has come by now, or is not the next.
        """
        if probe.body is None:
            return None
        seq, nbytes = probe.body
        if (type(seq), type(nbytes)) != (int, int) or seq != max(self.next_from(probe.incarnation), probe.floor):
            return None
        return Message(Kind.REQUEST, probe.job, probe.sender, probe.recver, probe.incarnation, seq, probe.floor), nbytes

    def on_probe(self, link: Link, probe: Message, why: Callable[[Message], Iterable[str]]) -> list[Send]:
        """Tell the sender which of its requests are here, and what the oldest one waits for."""
        inbox = self._inboxes.get(probe.incarnation)
        if inbox is None:
            inbox = Inbox(link, expected=0)  # nothing known, nothing kept
        inbox.link = link
        inbox.forget(probe.acks, probe.floor)
        oldest = min(inbox.active, default=None)
        waits = [] if oldest is None else list(why(inbox.active[oldest]))
        return [self._status(inbox, probe, int(probe.seq), waits), *inbox.release()]

    def on_status(self, now: float, link: Link, status: Message) -> list[Send]:
        """Send again what the receiver does not have, and what may leave now."""
        outbox = self._outboxes.get(status.sender)
        if outbox is None or outbox.link != link or not _is_status(status.body):
            return []
        have, why = status.body
        lost = outbox.status(now, have[:MAX_ACKS], status.seq, [str(w) for w in why])
        self.resent_requests += len(lost)
        outbox.window.arrived_below(status.floor)
        return [Send(outbox.link, message) for message in lost] + self._release(now, outbox)

    def probe(self, now: float, node: int) -> list[Send]:
        """Ask a node now which of our requests it has: at its deadline, or after its connection came back."""
        outbox = self._outboxes.get(node)
        if outbox is None or not outbox.pending:
            return []
        if outbox.away:
            outbox.probe_at = None
            return []
        outbox.probes += 1
        outbox.probe_at = now + min(self._resend_timeout * 2 ** min(outbox.probes, 10), MAX_PROBE_INTERVAL)
        return [self._ask(outbox, Kind.PROBE)]

    def on_timer(self, now: float) -> list[Send]:
        """Probe every node whose answer is overdue."""
        due = [o.node for o in self._outboxes.values() if o.probe_at is not None and o.probe_at <= now]
        return [send for node in due for send in self.probe(now, node)]

    def next_timer(self) -> float | None:
        """When ``on_timer`` is due."""
        due = [o.probe_at for o in self._outboxes.values() if o.probe_at is not None]
        return min(due) if due else None

    def _ask(self, outbox: Outbox, kind: Kind) -> Send:
        body = outbox.too_large() if kind == Kind.PROBE else None
        message = outbox.acknowledge(Message(kind, seq=outbox.next_seq, body=body))
        self._stamp(message, outbox.node)
        return Send(outbox.link, message)

    def _status(self, inbox: Inbox, about: Message, upto: int, why: list[str]) -> Send:
        have: list[int] = []
        for seq in inbox.in_hand:
            append_range(have, seq)
        if len(have) > MAX_ACKS:  # what is cut off is not lost: say nothing about it
            have = have[:MAX_ACKS]
            upto = have[-2] + have[-1]
        status = inbox.tell(Message(Kind.STATUS, seq=upto, body=[have, why]))
        self._stamp(status, about.sender)
        return Send(inbox.link, status)

    def _stamp(self, message: Message, recver: int) -> None:
        message.job, message.sender, message.recver, message.incarnation = self.job, self.node, recver, self.incarnation

    def __repr__(self) -> str:
        waiting = sum(len(o.pending) + len(o.window.waiting()) for o in self._outboxes.values())
        parked = sum(len(i.active) for i in self._inboxes.values())
        kept = sum(len(i.done) + len(i.held) for i in self._inboxes.values())
        return f"<Delivery node={self.node} unanswered={waiting} parked={parked} remembered={kept}>"


def _is_status(body: Any) -> bool:
    if not (isinstance(body, list) and len(body) == 2 and all(isinstance(part, list) for part in body)):
        return False
    return all(type(number) is int for number in body[0])


def error_of(reply: Message | PSError) -> PSError | None:
    """The error that a reply carries, or None."""
    if isinstance(reply, PSError):
        return reply
    return PSError.from_wire(reply.body) if reply.flags & Flag.ERROR else None

"""What leaves next while there is no room for everything: driven directly, without a network."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pslite.delivery import Delivery, Pending, Send
from pslite.errors import PSError
from pslite.flow import SAY_AFTER, SMALL, WINDOW, Arrivals
from pslite.wire import Flag, Kind, Message, Op, decode, encode

SERVER, WORKER = 8, 9
CHUNK = WINDOW // 8  # so many bytes has a message here, if not said otherwise
ROOM = WINDOW // CHUNK


def message(name: Any, keys: list[int], priority: int = 0, nbytes: int = CHUNK, kind: Kind = Kind.REQUEST) -> Message:
    values = np.zeros(max(nbytes - 8 * len(keys), 0), np.uint8)
    return Message(
        kind, op=Op.DATA, priority=priority, body=name, arrays=[np.array(keys, np.uint64), values], sender=WORKER
    )


def fence(name: Any) -> Message:
    return Message(Kind.REQUEST, op=Op.SIMPLE, body=name)


class Sender:
    """A worker's delivery, and what it has put on the wire to the server."""

    def __init__(self, node: int = WORKER) -> None:
        self.delivery = Delivery(incarnation=node, resend_timeout=1.0)
        self.delivery.node = node
        self.delivery.open(SERVER, SERVER)
        self.left: list[Message] = []
        self.outcomes: list[Message | PSError] = []
        self._filler = itertools.count()

    def send(self, *messages: Message, now: float = 0.0) -> list[Pending]:
        pendings = []
        for each in messages:
            pending, sends = self.delivery.request(now, SERVER, each, self.outcomes.append)
            pendings.append(pending)
            self.note(sends)
        return pendings

    def fill(self) -> None:
        """Use up the window, with keys of nobody else."""
        self.send(*(message("fill", [10**6 + next(self._filler)]) for _ in range(ROOM)))

    def note(self, sends: list[Send]) -> list[Message]:
        sent = [send.message for send in sends]
        self.left += sent
        return sent

    def credit(self, upto: int, now: float = 0.0) -> list[Any]:
        """The server has taken in all before this number; returns the bodies of what leaves now."""
        taken = Message(Kind.CREDIT, sender=SERVER, floor=upto)
        return [m.body for m in self.note(self.delivery.on_credit(now, SERVER, taken))]

    def drain(self) -> list[Any]:
        """All that leaves, when each is taken in as soon as it arrives."""
        bodies = []
        seq = self.left[0].seq
        while seq <= self.left[-1].seq:
            seq += 1
            bodies += self.credit(seq)
        return bodies


def test_what_has_no_room_waits_and_leaves_by_priority() -> None:
    sender = Sender()
    sender.fill()
    sender.send(*(message(priority, [n], priority) for n, priority in enumerate([0, 5, -3, 9, 5])))
    assert len(sender.left) == ROOM
    assert [sender.credit(seq) for seq in (2, 3, 4)] == [[9], [5], [5]], "one leaves for each that was taken in"
    assert sender.drain() == [0, -3]
    assert [m.seq for m in sender.left] == list(range(1, len(sender.left) + 1)), "numbered when they leave"


def test_equal_priorities_leave_in_the_order_of_the_calls() -> None:
    sender = Sender()
    sender.fill()
    sender.send(*(message(n, [n], priority=4) for n in range(30)))
    assert sender.drain() == list(range(30))


def test_without_shortage_everything_leaves_at_once() -> None:
    sender = Sender()
    sender.send(*(message(n, [n], priority=n) for n in range(ROOM)))
    assert [m.body for m in sender.left] == list(range(ROOM))
    sender.send(message("small", [99], nbytes=SMALL - 1), fence("settings"))
    assert [m.body for m in sender.left[ROOM:]] == ["small", "settings"], "they need no room"


def test_a_small_message_needs_no_room_when_it_is_its_turn() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("bulk", [1]), message("small", [2], nbytes=8), message("urgent", [3], priority=1, nbytes=8))
    assert [m.body for m in sender.left[ROOM:]] == ["urgent"]
    assert sender.credit(2) == ["bulk", "small"]


def test_of_messages_larger_than_the_window_two_are_under_way() -> None:
    sender = Sender()
    sender.send(*(message(n, [n], nbytes=3 * WINDOW) for n in range(4)))
    assert [m.body for m in sender.left] == [0, 1]
    assert sender.credit(2) == [2]
    assert sender.credit(3) == [3]


def pull(name: Any, keys: list[int], priority: int = 0) -> Message:
    asked = message(name, keys, priority, nbytes=8)
    asked.flags = int(Flag.PULL)
    return asked


def test_a_pull_takes_its_turn_behind_the_push_of_its_keys() -> None:
    sender = Sender()
    sender.fill()
    sender.send(*(message(f"push {n}", [n]) for n in range(3)), *(pull(f"pull {n}", [n]) for n in (2, 0, 7)))
    assert sender.left[-1].body == "pull 7", "of whose key nothing waits"
    assert sender.drain() == ["push 0", "pull 0", "push 1", "push 2", "pull 2"]


def test_a_pull_stays_behind_a_push_that_has_its_priority_from_a_later_call() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("push", [1]), message("other", [2], 5), message("again", [1], 5), pull("pull", [1], 5))
    assert sender.drain() == ["other", "push", "again", "pull"]


def test_a_pull_never_overtakes_its_own_push() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("push", [1], priority=-5), message("other", [2]), message("pull", [1], priority=9, nbytes=8))
    assert sender.drain() == ["push", "pull", "other"], "the push is as urgent as the pull behind it"


def test_urgency_is_inherited_through_chains_of_keys() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("a", [1], 0), message("between", [7], 3), message("b", [1, 2], 1), message("c", [2, 3], 2),
                message("late", [8], 3), message("urgent", [3], 5))  # fmt: skip
    assert sender.drain() == ["a", "b", "c", "urgent", "between", "late"]


def test_what_is_raised_leaves_behind_those_that_were_as_urgent() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("first", [1], 5), message("low", [2], 0), message("second", [3], 5), message("raises", [2], 5))
    assert sender.drain() == ["first", "second", "low", "raises"], "right before the one that it must not keep waiting"


def test_a_message_without_keys_is_a_fence() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("before", [1], 0), message("before, urgent", [2], 5), fence("settings"),
                message("after, urgent", [3], 9), fence("more"), message("last", [1], 99))  # fmt: skip
    assert sender.drain() == ["before, urgent", "before", "settings", "after, urgent", "more", "last"]


def test_a_reply_makes_room_too() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("next", [1]))
    reply = Message(Kind.REPLY, sender=SERVER, seq=1)
    pending, sends = sender.delivery.on_reply(0.0, SERVER, reply)
    assert pending is not None
    assert [send.message.body for send in sends] == ["next"], "what is answered was taken in"


def test_a_probe_finds_out_what_a_lost_credit_would_have_said() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("next", [1]))
    now = sender.delivery.next_timer()
    assert now == 1.0
    [probe] = sender.delivery.on_timer(now)
    assert probe.message.kind == Kind.PROBE
    status = Message(Kind.STATUS, sender=SERVER, seq=probe.message.seq, floor=3, body=[[1, ROOM], []])
    assert [send.message.body for send in sender.delivery.on_status(now, SERVER, status)] == ["next"]
    assert sender.delivery.next_timer() == now + 1.0, "which may be lost itself"
    assert sender.delivery.resent_requests == 0


def test_requests_that_wait_fail_with_their_peer() -> None:
    sender = Sender()
    sender.fill()
    waiting = sender.send(*(message(n, [n], priority=n) for n in range(3)))
    failed = sender.delivery.fail(SERVER)
    assert failed[ROOM:] == waiting
    assert len(failed) == ROOM + 3
    assert sender.delivery.next_timer() is None
    assert sender.delivery.fail(SERVER) == []
    assert sender.credit(99) == []


def test_a_request_that_waits_says_so_in_no_probe_and_is_not_asked_for() -> None:
    """Its receiver cannot know it; at its deadline the error names the receiver."""
    sender = Sender()
    sender.fill()
    [waiting] = sender.send(message("waits", [1]))
    [probe] = sender.delivery.probe(0.0, SERVER)
    assert probe.message.seq == ROOM + 1
    status = Message(Kind.STATUS, sender=SERVER, seq=probe.message.seq, body=[[1, ROOM], ["worker 1"]])
    sender.delivery.on_status(0.0, SERVER, status)
    assert waiting.asked_at == float("-inf")


def test_a_process_that_ends_sends_what_waits() -> None:
    sender = Sender()
    sender.fill()
    sender.send(message("low", [1], 0), message("high", [2], 1))
    assert [m.body for m in sender.note(sender.delivery.flush(0.0))] == ["high", "low"]
    assert sender.delivery.flush(0.0) == []


def test_two_workers_that_push_keys_in_opposite_orders_do_not_lock_each_other_out() -> None:
    """A server parks a push until the other worker's comes: what is parked is taken in, and needs no room."""
    server, workers = Delivery(1, 1.0), [Sender(9), Sender(11)]
    keys = list(range(4 * ROOM))
    pushed: dict[int, set[int]] = defaultdict(set)
    for worker, order in zip(workers, (keys, keys[::-1]), strict=True):
        worker.send(*(message(key, [key]) for key in order))
    seen = [0, 0]
    while any(count < len(worker.left) for count, worker in zip(seen, workers, strict=True)):
        for index, worker in enumerate(workers):
            for sent in worker.left[seen[index] :]:
                seen[index] += 1
                ready, sends = server.on_request(b"w%d" % index, sent)
                for request in ready:
                    pushed[request.body].add(request.sender)
                for send in sends:
                    assert send.message.kind == Kind.CREDIT
                    send.message.sender = SERVER
                    worker.note(worker.delivery.on_credit(0.0, SERVER, send.message))
    assert pushed == {key: {9, 11} for key in keys}


# What a receiver says


def arrive(server: Delivery, seq: int, nbytes: int = CHUNK, **fields: Any) -> tuple[list[Message], list[Send]]:
    request = message(seq, [seq], nbytes=nbytes)
    request.seq, request.floor, request.incarnation = seq, 1, 5
    for name, value in fields.items():
        setattr(request, name, value)
    return server.on_request(b"w", request)


def test_credit_is_given_for_every_half_window_and_not_for_small_messages() -> None:
    server = Delivery(1, 1.0)
    told = []
    for seq in range(1, 2 * ROOM + 1):
        told += [send.message for send in arrive(server, seq)[1]]
    assert {m.kind for m in told} == {Kind.CREDIT}
    assert [m.floor for m in told] == [1 + n * SAY_AFTER // CHUNK for n in (1, 2, 3, 4)]
    assert all(not m.arrays and m.recver == WORKER for m in told)
    assert [arrive(server, seq, nbytes=SMALL - 1)[1] for seq in range(2 * ROOM + 1, 500)] == [[]] * (499 - 2 * ROOM)


def test_a_reply_says_what_was_taken_in_and_saves_the_credit() -> None:
    server = Delivery(1, 1.0)
    for seq in range(1, 50):
        [request], sends = arrive(server, seq)
        assert sends == []
        [send] = server.reply(request, Message(Kind.REPLY))
        assert send.message.floor == seq + 1


def test_what_came_before_a_predecessor_is_not_taken_in() -> None:
    server = Delivery(1, 1.0)
    for seq in range(2, ROOM + 1):
        assert {send.message.kind for send in arrive(server, seq)[1]} <= {Kind.STATUS}
    _, [send] = arrive(server, 1)
    assert (send.message.kind, send.message.floor) == (Kind.CREDIT, ROOM + 1)


def ask(server: Delivery, count: int) -> list[Message]:
    """Requests of a worker, delivered at the server and not answered."""
    return [arrive(server, seq, nbytes=8)[0][0] for seq in range(1, count + 1)]


def answered(request: Message, priority: int = 0, keys: list[int] | None = None) -> Message:
    return message(request.body, keys or [request.body], priority, kind=Kind.REPLY)


def test_replies_with_arrays_leave_by_priority() -> None:
    server = Delivery(1, 1.0)
    requests = ask(server, 2 * ROOM)
    left = [send for request in requests[:ROOM] for send in server.reply(request, answered(request))]
    assert len(left) == ROOM
    waiting = requests[ROOM:]
    for request in waiting:
        assert server.reply(request, answered(request, priority=request.body % 3)) == []
    freed = server.on_ack(b"w", Message(Kind.ACK, incarnation=5, acks=[1, ROOM], floor=ROOM + 1))
    expected = sorted(waiting, key=lambda request: -(request.body % 3))
    assert [send.message.body for send in freed] == [request.body for request in expected]


def test_a_reply_without_arrays_does_not_wait() -> None:
    server = Delivery(1, 1.0)
    requests = ask(server, ROOM + 2)
    for request in requests[: ROOM + 1]:
        server.reply(request, answered(request))
    [send] = server.reply(requests[-1], Message(Kind.REPLY, body="pushed"))
    assert send.message.body == "pushed"


def test_replies_about_one_key_keep_their_order() -> None:
    """The caller may pull twice into one array: the later value must win."""
    server = Delivery(1, 1.0)
    requests = ask(server, ROOM + 2)
    for request in requests[:ROOM]:
        server.reply(request, answered(request))
    server.reply(requests[ROOM], answered(requests[ROOM], 0, keys=[7]))
    server.reply(requests[ROOM + 1], answered(requests[ROOM + 1], 9, keys=[7]))
    freed = server.on_ack(b"w", Message(Kind.ACK, incarnation=5, acks=[1, ROOM], floor=ROOM + 1))
    assert [send.message.body for send in freed] == [ROOM + 1, ROOM + 2]


def test_a_request_whose_reply_waits_is_in_hand() -> None:
    """It is not sent again: the receiver says that it has it, and drops a duplicate."""
    server = Delivery(1, 1.0)
    requests = ask(server, ROOM + 1)
    for request in requests:
        server.reply(request, answered(request))
    last = ROOM + 1
    [status] = server.on_probe(b"w", Message(Kind.PROBE, sender=WORKER, incarnation=5, seq=last + 1), lambda _: [])
    assert status.message.body[0] == [last, 1]
    assert arrive(server, last, nbytes=8) == ([], [])
    [freed] = server.on_probe(b"w", Message(Kind.PROBE, sender=WORKER, incarnation=5, acks=[1, 1]), lambda _: [])[1:]
    assert freed.message.seq == last, "a probe names the replies that came"


def test_a_lost_reply_makes_room_when_its_request_comes_again() -> None:
    server = Delivery(1, 1.0)
    requests = ask(server, ROOM + 1)
    for request in requests:
        server.reply(request, answered(request))
    [replay], _ = arrive(server, 1, nbytes=8)
    sent = [send.message.body for send in server.reply(replay, answered(replay))]
    assert sent == [ROOM + 1], "which waited longer"


def test_a_sender_that_ended_takes_its_replies_with_it() -> None:
    server = Delivery(1, 1.0)
    for request in ask(server, ROOM + 3):
        server.reply(request, answered(request))
    server.forget(5)
    assert server.flush(0.0) == []


def test_bulk_replies_are_acknowledged_without_a_request() -> None:
    sender = Sender()
    sender.send(*(message(n, [n], nbytes=8) for n in range(4 * ROOM)))
    said = []
    for seq in range(1, 2 * ROOM + 1):
        reply = message("pulled", [seq], kind=Kind.REPLY)
        reply.sender, reply.seq = SERVER, seq
        said += [send.message for send in sender.delivery.on_reply(0.0, SERVER, reply)[1]]
    assert {m.kind for m in said} == {Kind.ACK}
    assert [m.acks for m in said] == [[1, n * SAY_AFTER // CHUNK] for n in (1, 2, 3, 4)], "each says all again"
    [request] = sender.send(message("next", [1], nbytes=8))
    assert request.message.acks == [1, 2 * ROOM], "for an ACK may be lost, and a request is not"


def test_a_request_acknowledges_replies_and_saves_the_ack() -> None:
    sender = Sender()
    for seq in range(1, 50):
        sender.send(message(seq, [seq], nbytes=8))
        reply = message("pulled", [seq], kind=Kind.REPLY)
        reply.sender, reply.seq = SERVER, seq
        assert sender.delivery.on_reply(0.0, SERVER, reply)[1] == []


def test_a_reply_that_comes_twice_is_acknowledged_again() -> None:
    """The server sent it twice, and both took room."""
    sender = Sender()
    sender.send(message(1, [1], nbytes=8))
    acks = []
    for _ in range(2):
        sender.delivery.on_reply(0.0, SERVER, Message(Kind.REPLY, sender=SERVER, seq=1))
        [request] = sender.send(message(2, [2], nbytes=8))
        acks.append(request.message.acks)
    assert acks == [[1, 1], [1, 1]]


# Everything together, with losses


class Net:
    """A worker and a server, each with random losses on what it sends; the server answers pulls with arrays."""

    def __init__(self, seed: int, loss: float) -> None:
        self.rng, self.loss, self.now = Random(seed), loss, 0.0
        self.worker, self.server = Delivery(2, 1.0), Delivery(1, 1.0)
        self.worker.node, self.server.node = WORKER, SERVER
        self.worker.open(SERVER, SERVER)
        self.arrived: list[Any] = []
        self.replies: list[Any] = []
        self._queue: list[tuple[float, int, bool, list[Any]]] = []
        self._count = itertools.count()

    def post(self, sends: list[Send], to_server: bool) -> None:
        self.check_windows()
        for send in sends:
            if self.rng.random() >= self.loss:
                frames = [bytes(frame) for frame in encode(send.message)]
                heapq.heappush(self._queue, (self.now + self.rng.random() * 0.1, next(self._count), to_server, frames))

    def check_windows(self) -> None:
        [outbox] = self.worker._outboxes.values()
        for window in [outbox.window, *(inbox.replies for inbox in self.server._inboxes.values())]:
            taken = list(window.under_way.values())
            assert sum(taken) == window.used
            assert len(taken) <= 2 or window.used < WINDOW + max(taken), "at most one message more than fits, or two"
            if window.used < WINDOW or len(taken) < 2:
                assert not window.waiting()

    def request(self, each: Message) -> None:
        _, sends = self.worker.request(self.now, SERVER, each, lambda reply: self.replies.append((each.body, reply)))
        self.post(sends, True)

    @property
    def outbox(self) -> Any:
        return self.worker._outboxes[SERVER]

    def run(self, until: float) -> None:
        while True:
            timer = self.worker.next_timer()
            due = [t for t in (timer, self._queue[0][0] if self._queue else None) if t is not None]
            if not due or min(due) > until:
                break
            self.now = max(self.now, min(due))
            while self._queue and self._queue[0][0] <= self.now:
                _, _, to_server, frames = heapq.heappop(self._queue)
                (self._at_server if to_server else self._at_worker)(decode(frames))
            self.post(self.worker.on_timer(self.now), True)
        self.now = until

    def _at_server(self, each: Message) -> None:
        if each.kind == Kind.PROBE:
            self.post(self.server.on_probe(b"w", each, lambda _: []), False)
        elif each.kind == Kind.ACK:
            self.post(self.server.on_ack(b"w", each), False)
        else:
            ready, sends = self.server.on_request(b"w", each)
            self.post(sends, False)
            for request in ready:
                if not request.flags & 8:  # not a replay
                    self.arrived.append(request.body)
                reply = Message(Kind.REPLY, priority=request.priority)
                if request.op == Op.DATA and request.body % 2:
                    reply.arrays = [request.arrays[0], np.zeros(CHUNK, np.uint8)]
                self.post(self.server.reply(request, reply), False)

    def _at_worker(self, each: Message) -> None:
        handlers: dict[int, Callable[..., list[Send]]] = {
            Kind.STATUS: self.worker.on_status,
            Kind.CREDIT: self.worker.on_credit,
        }
        if each.kind == Kind.REPLY:
            pending, sends = self.worker.on_reply(self.now, SERVER, each)
            self.post(sends, True)
            if pending is not None:
                pending.on_reply(each)
        else:
            self.post(handlers[each.kind](self.now, SERVER, each), True)


REQUESTS = st.lists(
    st.one_of(
        st.none(),  # a fence
        st.tuples(
            st.lists(st.integers(0, 5), unique=True, min_size=1, max_size=3),
            st.integers(-3, 3),
            st.sampled_from([8, SMALL, CHUNK, CHUNK, WINDOW // 2, WINDOW]),
        ),
    ),
    max_size=40,
)


@given(requests=REQUESTS, seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.0, 0.1, 0.4]))
def test_everything_arrives_once_and_each_key_in_order(requests: list[Any], seed: int, loss: float) -> None:
    net = Net(seed, loss)
    for name, request in enumerate(requests):
        each = fence(name) if request is None else message(name, *request)
        if request is not None and request[2] == 8:
            each.flags = int(Flag.PULL)
        net.request(each)
        if net.rng.random() < 0.2:
            net.run(net.now + net.rng.random())
    net.run(net.now + 3000)
    assert sorted(net.arrived) == list(range(len(requests)))
    assert sorted(name for name, _ in net.replies) == list(range(len(requests)))
    place = {name: index for index, name in enumerate(net.arrived)}
    for earlier, later in itertools.combinations(range(len(requests)), 2):
        one, other = requests[earlier], requests[later]
        if one is None or other is None or set(one[0]) & set(other[0]):
            assert place[earlier] < place[later], "calls about one key, and fences, keep their order"
    assert not net.outbox.window.under_way
    assert "unanswered=0 parked=0" in repr(net.worker)


@given(requests=REQUESTS)
def test_no_message_leaves_before_a_more_urgent_one_that_may_go(requests: list[Any]) -> None:
    sender = Sender()
    sender.fill()
    for name, request in enumerate(requests):
        sender.send(fence(name) if request is None else message(name, *request[:2]))
    order = [m.body for m in sender.left if m.body != "fill"] + sender.drain()
    assert sorted(order) == list(range(len(requests)))
    waiting = set(order)
    for name in order:
        may_go = {n for n in waiting if not any(behind(requests, n, w) for w in waiting)}
        assert name in may_go
        if requests[name] is not None:
            best = max(priority(requests, w) for n in may_go for w in waiting if depends(requests, w, n))
            urgent = [w for w in sorted(waiting) if priority(requests, w) == best]
            first = {n: next((w for w in urgent if depends(requests, w, n)), len(requests)) for n in may_go}
            assert name == min(may_go, key=lambda n: (first[n], n)), "what the first of the most urgent waits for"
        waiting.remove(name)


def behind(requests: list[Any], later: int, earlier: int) -> bool:
    """Whether a call must stay behind an earlier one."""
    one, other = requests[earlier], requests[later]
    return earlier < later and (one is None or other is None or bool(set(one[0]) & set(other[0])))


def depends(requests: list[Any], later: int, earlier: int) -> bool:
    """The same through a chain of calls, none of which is a fence; a call depends on itself."""
    reached = {earlier}
    for name in range(earlier + 1, later + 1):
        if requests[name] is None:
            return False
        if any(behind(requests, name, other) for other in reached):
            reached.add(name)
    return later in reached


def priority(requests: list[Any], name: int) -> int:
    return 0 if requests[name] is None else int(requests[name][1])


@pytest.mark.parametrize("keys", [[], [3]], ids=["no key", "one key"])
def test_nothing_is_remembered_of_what_has_left(keys: list[int]) -> None:
    sender = Sender()
    sender.fill()
    sender.send(*(message(n, keys, priority=n, nbytes=SMALL + 8) for n in range(100)))
    assert sender.drain() == (list(range(100)) if keys else list(range(99, -1, -1)))
    window = sender.delivery._outboxes[SERVER].window
    assert not (window.under_way or window.waiting() or window._heap or window._last)


# -- what came and is not worked on -----------------------------------------------------------------------------------


def test_arrivals_of_one_priority_are_a_line() -> None:
    arrivals: Arrivals[int] = Arrivals()
    for number in range(5):
        arrivals.add(number, message("", [number]))
    arrivals.add(5)
    assert [arrivals.pop() for _ in range(arrivals.count)] == [0, 1, 2, 3, 4, 5]


def test_the_more_urgent_overtakes_among_arrivals_but_nothing_about_its_keys_and_no_fence() -> None:
    arrivals: Arrivals[str] = Arrivals()
    arrivals.add("a", message("", [1], 0))
    arrivals.add("b", message("", [2], 0))
    arrivals.add("c", message("", [3], 5))
    arrivals.add("d", message("", [2], 9))
    arrivals.add("fence")
    arrivals.add("e", message("", [4], 99))
    assert [arrivals.pop() for _ in range(arrivals.count)] == ["b", "d", "c", "a", "fence", "e"]
    arrivals.add("f", message("", [1], -3))
    assert arrivals.pop() == "f"
    assert arrivals.count == 0

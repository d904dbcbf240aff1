"""Delivery over a network that loses, doubles, delays and reorders: simulated in one thread, with its own clock."""

from __future__ import annotations

import heapq
import itertools
import weakref
from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from pslite.delivery import MAX_HELD, MAX_PROBE_INTERVAL, MAX_UNSAID, Delivery, Pending, Send
from pslite.errors import PSError
from pslite.wire import Flag, Kind, Message, decode, encode

SERVER, WORKERS = 8, (9, 11)


class Network:
    """Delivery objects, and a seeded network between them that carries encoded messages."""

    def __init__(self, seed: int, loss: float = 0.0, double: float = 0.0, delay: float = 0.05) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.loss, self.double, self.delay = loss, double, delay
        self.nodes: dict[int, Delivery] = {}
        self.delivered: list[Message] = []  # to the server's application
        self.handle: Callable[[Message], None] = lambda request: self.reply(request)
        self._queue: list[tuple[float, int, int, int, list[bytes]]] = []  # time, tie, from, to, frames
        self._tie = itertools.count()
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        for node in (SERVER, *WORKERS):
            self.nodes[node] = Delivery(incarnation=1000 + node, resend_timeout=1.0)
            self.nodes[node].node = node
        for worker in WORKERS:
            self.nodes[worker].open(SERVER, SERVER)

    @property
    def server(self) -> Delivery:
        return self.nodes[SERVER]

    def request(self, worker: int, message: Message, on_reply: Callable[[Message | PSError], None]) -> Pending:
        pending, sends = self.nodes[worker].request(self.now, SERVER, message, on_reply)
        self._post(worker, sends)
        return pending

    def reply(self, request: Message, message: Message | None = None) -> None:
        self._post(SERVER, self.server.reply(request, message or Message(Kind.REPLY, body=request.body)))

    def later(self, delay: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._later, (self.now + delay, next(self._tie), do))

    def _post(self, source: int, sends: list[Send]) -> None:
        for send in sends:
            target = SERVER if source != SERVER else int.from_bytes(send.link, "big")  # type: ignore[arg-type]
            if self.rng.random() < self.loss:
                continue
            for _ in range(2 if self.rng.random() < self.double else 1):
                when = self.now + self.rng.random() * self.delay
                frames = [bytes(f) for f in encode(send.message)]
                heapq.heappush(self._queue, (when, next(self._tie), source, target, frames))

    def _arrive(self, source: int, target: int, message: Message) -> None:
        here = self.nodes[target]
        link = source.to_bytes(2, "big") if target == SERVER else source
        if message.kind == Kind.REQUEST:
            ready, sends = here.on_request(link, message)
            self._post(target, sends)
            for request in ready:
                self.delivered.append(request)
                self.handle(request)
        elif message.kind == Kind.REPLY:
            pending, sends = here.on_reply(self.now, link, message)
            self._post(target, sends)
            if pending is not None:
                pending.on_reply(message)
        elif message.kind == Kind.PROBE:
            self._post(target, here.on_probe(link, message, lambda request: [f"round of {request.body}"]))
        elif message.kind == Kind.CREDIT:
            self._post(target, here.on_credit(self.now, link, message))
        elif message.kind == Kind.ACK:
            self._post(target, here.on_ack(link, message))
        else:
            self._post(target, here.on_status(self.now, link, message))

    def run(self, until: float) -> None:
        """Let the time pass."""
        while True:
            timers = [t for node in self.nodes.values() if (t := node.next_timer()) is not None]
            heads = [h[0][0] for h in (self._queue, self._later) if h]
            soonest = min(timers + heads, default=until)
            if soonest > until:
                break
            self.now = max(self.now, soonest)
            while self._queue and self._queue[0][0] <= self.now:
                _, _, source, target, frames = heapq.heappop(self._queue)
                self._arrive(source, target, decode(frames))
            while self._later and self._later[0][0] <= self.now:
                heapq.heappop(self._later)[2]()
            for node, delivery in self.nodes.items():
                self._post(node, delivery.on_timer(self.now))
            if not timers and not heads:
                break
        self.now = until

    def remembered(self) -> list[tuple[int, int, int]]:
        """Of each inbox: how many requests are active, answered but not acknowledged, and held."""
        return [(len(i.active), len(i.done), len(i.held)) for d in self.nodes.values() for i in d._inboxes.values()]


def run_workload(net: Network, count: int) -> dict[int, list[object]]:
    """Each worker sends ``count`` requests at random times; returns the bodies of the replies to each."""
    replies: dict[int, list[object]] = {worker: [] for worker in WORKERS}

    def note(worker: int) -> Callable[[Message | PSError], None]:
        def on_reply(reply: Message | PSError) -> None:
            assert isinstance(reply, Message)
            replies[worker].append(reply.body)

        return on_reply

    for worker in WORKERS:
        number = 0
        while number < count:
            for _ in range(min(net.rng.randint(1, 6), count - number)):
                net.request(worker, Message(Kind.REQUEST, body=[worker, number]), note(worker))
                number += 1
            net.run(net.now + net.rng.random() * 0.2)
    net.run(net.now + 3000)
    return replies


@pytest.mark.parametrize("block", range(8))
def test_exactly_once_and_in_order_whatever_the_network_does(block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        rng = Random(-seed)
        net = Network(seed, loss=rng.choice([0, 0.1, 0.4]), double=rng.choice([0, 0.1, 0.5]),
                      delay=rng.choice([0.0, 0.05, 3.0]))  # fmt: skip
        if seed % 2:  # the application answers later, in any order
            net.handle = lambda request, net=net: net.later(net.rng.random() * 5, lambda: net.reply(request))  # type: ignore[misc]
        replies = run_workload(net, 25)
        for worker in WORKERS:
            sent = [[worker, number] for number in range(25)]
            assert [m.body for m in net.delivered if m.sender == worker] == sent, f"seed {seed}"
            assert sorted(replies[worker]) == sent, f"seed {seed}: every caller gets each reply once"  # type: ignore[type-var]
        assert not any(m.flags & Flag.REPLAY for m in net.delivered)


@pytest.mark.parametrize("seed", range(10))
def test_memory_is_bounded(seed: int) -> None:
    net = Network(seed, loss=0.2, double=0.2)
    run_workload(net, 300)
    net.loss = net.double = 0.0
    for worker in WORKERS:  # the acknowledgements of the last replies travel with the next request
        net.request(worker, Message(Kind.REQUEST), lambda _: None)
    net.run(net.now + 600)
    assert net.remembered() == [(0, 1, 0)] * len(WORKERS)
    assert all(not o.pending and len(o.acks) <= 2 for d in net.nodes.values() for o in d._outboxes.values())


def test_without_loss_nothing_is_sent_again_and_nothing_is_probed() -> None:
    net = Network(1, delay=0.0)
    run_workload(net, 100)
    assert len(net.delivered) == 200
    assert all(d.resent_requests == 0 for d in net.nodes.values())


def test_a_parked_request_is_asked_for_and_not_sent_again() -> None:
    net = Network(1, delay=0.0)
    net.handle = lambda request: net.later(100.0, lambda: net.reply(request))
    got: list[Message | PSError] = []
    pending = [net.request(9, Message(Kind.REQUEST, body=i), got.append) for i in range(3)]
    net.run(20.0)
    assert net.nodes[9].resent_requests == 0
    assert all(p.waiting_for == ["round of 0"] for p in pending)
    assert all(p.asked_at > 0 for p in pending)
    net.run(300.0)
    assert len(got) == 3
    assert len(net.delivered) == 3
    assert net.nodes[9].resent_requests == 0


def test_probes_become_rarer_and_never_stop() -> None:
    times = []
    delivery = Delivery(1, resend_timeout=1.0)
    delivery.open(SERVER, SERVER)
    delivery.request(0.0, SERVER, Message(Kind.REQUEST), lambda _: None)
    for _ in range(12):
        now = delivery.next_timer()
        assert now is not None
        [send] = delivery.on_timer(now)
        assert send.message.kind == Kind.PROBE
        times.append(now)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 2.0
    assert gaps[-1] == MAX_PROBE_INTERVAL
    assert delivery.next_timer() == times[-1] + MAX_PROBE_INTERVAL


def test_no_timer_runs_when_nothing_is_due() -> None:
    delivery = Delivery(1, 1.0)
    delivery.open(SERVER, SERVER)
    assert delivery.next_timer() is None
    assert delivery.probe(0.0, SERVER) == []
    assert delivery.probe(0.0, 99) == []


def deliver_one(server: Delivery, arrays: bool) -> tuple[Message, Message]:
    """A request that was answered, and the reply."""
    request = Message(Kind.REQUEST, sender=9, incarnation=5, seq=1, floor=1, flags=int(Flag.PUSH | Flag.PULL))
    [ready], _ = server.on_request(b"w", request)
    reply = Message(Kind.REPLY, body=["first"], arrays=[np.ones(3)] if arrays else [])
    [send] = server.reply(ready, reply)
    assert send.message is reply
    return request, reply


def again(request: Message) -> Message:
    return decode([bytes(f) for f in encode(request)])


def test_a_duplicate_of_an_answered_request_gets_the_same_answer() -> None:
    server = Delivery(1, 1.0)
    request, reply = deliver_one(server, arrays=False)
    ready, [send] = server.on_request(b"w2", again(request))
    assert not ready
    assert send.message is reply
    assert send.link == b"w2", "by the link that the duplicate came from"


def test_a_duplicate_of_a_pull_is_computed_again_and_marked() -> None:
    """Its values are not kept: that would be a copy of all data in flight."""
    server = Delivery(1, 1.0)
    request, _ = deliver_one(server, arrays=True)
    [replay], sends = server.on_request(b"w", again(request))
    assert sends == []
    assert replay.flags & Flag.REPLAY
    assert server.on_request(b"w", again(request)) == ([], []), "it is in hand now"
    assert len(server.reply(replay, Message(Kind.REPLY))) == 1


def test_an_acknowledged_request_is_forgotten() -> None:
    server = Delivery(1, 1.0)
    request, _ = deliver_one(server, arrays=False)
    server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=2, floor=2, acks=[1, 1]))
    assert server.on_request(b"w", again(request)) == ([], [])


@pytest.mark.parametrize("end", ["it is acknowledged", "it is asked for again", "the sender has ended"])
def test_arrays_are_lent_until_the_sender_has_them(end: str) -> None:
    """It reads them where they are. Others have an owner who keeps them."""
    for lent in (True, False):
        server = Delivery(1, 1.0)
        request = Message(Kind.REQUEST, sender=9, incarnation=5, seq=1, floor=1, flags=int(Flag.PULL))
        server.on_request(b"w", request)
        array = np.ones(3)
        seen = weakref.ref(array)
        server.reply(request, Message(Kind.REPLY, arrays=[array], lent=lent))
        del array
        assert (seen() is not None) == lent
        if end == "it is acknowledged":
            server.on_ack(b"w", Message(Kind.ACK, sender=9, incarnation=5, floor=2, acks=[1, 1]))
        elif end == "it is asked for again":
            server.on_request(b"w", again(request))
        else:
            server.forget(5)
        assert seen() is None


def test_an_answer_that_came_while_it_was_replayed_leaves_nothing_behind() -> None:
    """The sender got the first answer after all: its next requests say that it waits for nothing below them."""
    server = Delivery(1, 1.0)
    request, _ = deliver_one(server, arrays=True)
    [replay], _ = server.on_request(b"w", again(request))
    [second], _ = server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=2, floor=2, acks=[1, 1]))
    server.reply(replay, Message(Kind.REPLY))
    server.reply(second, Message(Kind.REPLY))
    server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=3, floor=3, acks=[2, 1]))
    assert "parked=1 remembered=0" in repr(server)


def test_only_one_reply_is_sent() -> None:
    server = Delivery(1, 1.0)
    [request], _ = server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=1, floor=1))
    assert len(server.reply(request, Message(Kind.REPLY))) == 1
    assert server.reply(request, Message(Kind.REPLY)) == []


def test_a_sender_that_ended_gets_no_reply() -> None:
    server = Delivery(1, 1.0)
    [request], _ = server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=1, floor=1))
    server.forget(5)
    assert server.reply(request, Message(Kind.REPLY)) == []


def test_a_new_incarnation_starts_afresh() -> None:
    server = Delivery(1, 1.0)
    for incarnation in (5, 6):
        request = Message(Kind.REQUEST, sender=9, incarnation=incarnation, seq=1, floor=1)
        assert server.on_request(b"w", request)[0] == [request]


def test_what_was_sent_to_a_predecessor_is_not_taken_for_what_is_numbered_anew() -> None:
    """Both have the same address, and a message to the first one may come when the second serves."""
    worker, first, second = Delivery(5, 1.0), Delivery(1, 1.0), Delivery(2, 1.0)
    worker.open(1, 1)
    sent = [worker.request(0.0, 1, Message(Kind.REQUEST, body=[n]), lambda _: None)[1][0].message for n in range(3)]
    late = again(sent[2])
    for message in sent:
        first.on_request(b"w", message)
    second.expect(5, b"w", worker.next_to(1))
    assert second.on_request(b"w", late) == ([], [])
    anew = [send.message for send in worker.resume(1.0, 1, 1)]
    assert [request.body for m in anew for request in second.on_request(b"w", m)[0]] == [[0], [1], [2]]
    second.expect(5, b"w", 1)
    assert "parked=3" in repr(second), "a HELLO that comes again changes nothing"


def test_a_sender_that_numbers_anew_for_the_process_that_it_has_spoken_to_already_leaves_no_gap() -> None:
    """It heard of two processes one after the other; what it sent to the first one has reached the second."""
    worker, server = Delivery(5, 1.0), Delivery(2, 1.0)
    worker.open(8, 8)
    sent = [worker.request(0.0, 8, Message(Kind.REQUEST, body=[n]), lambda _: None)[1][0].message for n in range(2)]
    [first] = server.on_request(b"w", again(sent[0]))[0]
    lost = [send.message.seq for send in worker.resume(1.0, 8, 8)]
    anew = [send.message for send in worker.resume(1.1, 8, 8)]
    assert (first.seq, lost, [m.seq for m in anew], [m.floor for m in anew]) == (1, [3, 4], [5, 6], [5, 5])
    assert server.on_request(b"w", again(anew[1]))[0] == []
    assert [request.body for request in server.on_request(b"w", again(anew[0]))[0]] == [[0], [1]]
    assert server.on_request(b"w", again(sent[1])) == ([], []), "the store knows what it has, for pushes have numbers"


def test_an_answer_to_a_predecessor_is_not_taken_for_one_to_its_successor() -> None:
    worker, first, second = Delivery(5, 1.0), Delivery(1, 1.0), Delivery(2, 1.0)
    worker.node = 9
    first.open(9, b"w")
    second.open(9, b"w")
    asked = first.request(0.0, 9, Message(Kind.REQUEST), lambda _: None)[1][0].message
    [request], _ = worker.on_request(1, asked)
    [late] = [send.message for send in worker.reply(request, Message(Kind.REPLY))]
    second.request(1.0, 9, Message(Kind.REQUEST), lambda _: None)
    [anew] = second.begin_at(1.0, 9, worker.next_from(1))
    assert second.on_reply(1.0, b"w", late)[0] is None
    [request], _ = worker.on_request(1, anew.message)
    [reply] = [send.message for send in worker.reply(request, Message(Kind.REPLY))]
    assert second.on_reply(1.0, b"w", reply)[0] is not None
    assert second.begin_at(2.0, 9, worker.next_from(1)) == [], "a HELLO that comes again changes nothing"


def test_a_gap_is_reported_at_once_and_only_once() -> None:
    server = Delivery(1, 1.0)
    ready, [send] = server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=3, floor=1))
    assert ready == []
    assert (send.message.kind, send.message.seq, send.message.body) == (Kind.STATUS, 4, [[3, 1], []])
    assert server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=4, floor=1)) == ([], [])
    ready, _ = server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=1, floor=1))
    assert [m.seq for m in ready] == [1]
    ready, _ = server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=2, floor=1))
    assert [m.seq for m in ready] == [2, 3, 4]


def test_held_requests_are_bounded() -> None:
    server = Delivery(1, 1.0)
    for seq in range(2, 3 * MAX_HELD):
        server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=seq, floor=1))
    [inbox] = server._inboxes.values()
    assert len(inbox.held) == MAX_HELD


def test_requests_to_a_lost_node_are_given_up() -> None:
    delivery = Delivery(1, 1.0)
    delivery.open(SERVER, SERVER)
    pending = [delivery.request(0.0, SERVER, Message(Kind.REQUEST), lambda _: None)[0] for _ in range(3)]
    assert delivery.fail(SERVER) == pending
    assert delivery.next_timer() is None
    assert delivery.fail(SERVER) == delivery.fail(99) == []


def test_unanswered_requests_keep_their_numbers_on_a_new_link() -> None:
    delivery = Delivery(1, 1.0)
    delivery.open(SERVER, 1)
    delivery.request(0.0, SERVER, Message(Kind.REQUEST), lambda _: None)
    delivery.open(SERVER, SERVER)
    _, [send] = delivery.request(0.0, SERVER, Message(Kind.REQUEST), lambda _: None)
    assert (send.link, send.message.seq, send.message.floor) == (SERVER, 2, 1)
    assert delivery.link_to(SERVER) == SERVER
    assert delivery.link_to(99) is None


@pytest.mark.parametrize("body", [None, [], [1], [5, []], [["a", "b"], []], [[1], []], [[0, -5], []], [[1, 1], 5],
                                  [[1, 2**60], []], ["ab", "c"], [{}, {}]])  # fmt: skip
def test_a_malformed_status_does_no_harm(body: object) -> None:
    delivery = Delivery(1, 1.0)
    delivery.node = 9
    delivery.open(SERVER, SERVER)
    delivery.request(0.0, SERVER, Message(Kind.REQUEST), lambda _: None)
    sends = delivery.on_status(0.0, SERVER, Message(Kind.STATUS, sender=SERVER, seq=2, body=body))
    assert len(sends) <= 1


def test_a_stray_reply_is_ignored() -> None:
    delivery = Delivery(1, 1.0)
    delivery.open(SERVER, SERVER)
    assert delivery.on_reply(0.0, SERVER, Message(Kind.REPLY, sender=SERVER, seq=7)) == (None, [])
    assert delivery.on_reply(0.0, 99, Message(Kind.REPLY, sender=99, seq=1)) == (None, [])
    assert delivery.on_credit(0.0, 99, Message(Kind.CREDIT, sender=99, floor=5)) == []
    assert delivery.on_ack(99, Message(Kind.ACK, sender=99, incarnation=7, acks=[1, 3])) == []
    assert delivery.on_status(0.0, 99, Message(Kind.STATUS, sender=99, seq=1, body=[[], []])) == []


def test_a_reply_from_another_connection_is_ignored() -> None:
    delivery = Delivery(1, 1.0)
    delivery.open(SERVER, SERVER)
    delivery.request(0.0, SERVER, Message(Kind.REQUEST), lambda _: None)
    assert delivery.on_reply(0.0, b"stranger", Message(Kind.REPLY, sender=SERVER, seq=1))[0] is None
    assert delivery.on_reply(0.0, SERVER, Message(Kind.REPLY, sender=SERVER, seq=1))[0] is not None


def test_it_says_what_it_holds() -> None:
    server = Delivery(1, 1.0)
    server.on_request(b"w", Message(Kind.REQUEST, sender=9, incarnation=5, seq=1, floor=1))
    assert repr(server) == "<Delivery node=0 unanswered=0 parked=1 remembered=0>"


def test_a_peer_that_answers_again_and_again_fills_no_memory() -> None:
    worker = Delivery(incarnation=1, resend_timeout=1.0)
    worker.open(SERVER, SERVER)
    for _ in range(3):
        worker.request(0.0, SERVER, Message(Kind.REQUEST), lambda reply: None)
    for number in range(2 * MAX_UNSAID):
        worker.on_reply(0.0, SERVER, Message(Kind.REPLY, sender=SERVER, seq=1 + 2 * (number % 2)))
    assert len(worker._outboxes[SERVER].acks) <= MAX_UNSAID
    _, [send] = worker.request(0.0, SERVER, Message(Kind.REQUEST), lambda reply: None)
    assert send.message.floor == 2  # which tells the server what it may forget

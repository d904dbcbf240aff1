"""What a scheduler makes of what members tell it, in virtual time."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pslite import ids
from pslite.errors import JoinError, PeerLost, PSError, WorkerFinished
from pslite.postoffice.barrier import Answer, Barriers
from pslite.postoffice.membership import BEAT_INTERVAL, Hint, Membership, Policy, State
from pslite.postoffice.recovery import HELLO_WITHIN, START_WITHIN, Recollection, Recovery, routing_id
from pslite.postoffice.roster import Peer
from pslite.postoffice.scheduler import Scheduler, Step
from pslite.wire import MAX_BODY, Kind, Message, Op, check

WORKERS, SERVER = [ids.worker_id(0), ids.worker_id(1)], ids.server_id(0)
NODES = [SERVER, *WORKERS]


class Successor:
    """A scheduler of two workers and a server that was started again, and the members' views."""

    def __init__(self, workers: str = "wait") -> None:
        policy = Policy("wait", workers, 60.0)
        self.membership = Membership(2, 1, "job", 60.0, 0.0, policy)
        self.scheduler = Scheduler(self.membership, Recovery("job", self.membership.wanted, 0.0, True))

    def hello(self, node: int, now: float, roster: Any = None, ended: dict[int, PSError] | None = None,
              away: tuple[int, ...] = ()) -> Step:  # fmt: skip
        """``roster``: how often nodes were started again, as this one knows; incarnations are 100 * that + node."""
        again = dict.fromkeys(NODES, 0) | (roster or {})
        peers = [Peer(n, 100 * again[n] + n, ["tcp://h:1"] if n == SERVER else [], "h", n, again[n]) for n in NODES]
        for peer in peers:
            peer.ended = (ended or {}).get(peer.node)  # type: ignore[assignment]
            peer.away = peer.node in away
        message = Message(Kind.HELLO, "job", node, incarnation=100 * again[node] + node)
        message.body = Recollection().hello(peers, self.membership.policy.workers, 3) | {"scheduler": 1, "next": 1}
        return self.scheduler.on_hello(b"link%d" % node, message, now)

    def hints(self, now: float, **ends: int | None) -> Step:
        """How processes have ended: ``worker0=0``."""
        places = [("server", 0), ("worker", 0), ("worker", 1)]
        return self.scheduler.on_hints([Hint(r, n, 5, ends.get(f"{r}{n}")) for r, n in places], now)

    def state(self, node: int) -> State:
        member = self.membership.find(node)
        assert member is not None
        return member.state


def test_the_table_is_there_when_all_have_said_hello() -> None:
    job = Successor()
    assert not job.hello(WORKERS[0], 0.1).complete
    assert not job.hello(SERVER, 0.2).complete
    step = job.hello(WORKERS[1], 0.3)
    assert step.complete
    assert {hello.node for hello, _ in step.hellos} == set(NODES)
    assert all(sorted(entry[0] for entry in body["roster"]) == NODES for _, body in step.hellos)


def test_who_does_not_come_is_judged_by_its_connection() -> None:
    job = Successor()
    job.hello(WORKERS[0], 1.0)
    job.hello(SERVER, 1.0)
    assert not job.scheduler.on_timer(1.0 + HELLO_WITHIN - 0.01).complete
    step = job.scheduler.on_timer(1.0 + HELLO_WITHIN + 0.3)
    assert step.complete
    member = job.membership.find(WORKERS[1])
    assert member is not None and member.here
    assert member.link == routing_id("job", "worker", member.incarnation).encode()
    assert job.hello(WORKERS[1], 9.0).hellos[0][1]["roster"]  # it was busy


def test_a_worker_that_ended_well_is_not_awaited() -> None:
    job = Successor()
    job.hello(SERVER, 0.1)
    job.hello(WORKERS[1], 0.1)
    assert job.hints(0.2, worker0=0).complete
    assert job.state(WORKERS[0]) == State.FINISHED


def test_a_worker_that_others_saw_end_is_not_awaited() -> None:
    job = Successor()
    gone: dict[int, PSError] = {WORKERS[0]: WorkerFinished(node="worker 0", reason="later rounds")}
    job.hello(SERVER, 0.1)
    assert job.hello(WORKERS[1], 0.1, ended=gone).complete
    assert job.state(WORKERS[0]) == State.FINISHED


def test_the_job_is_over_when_all_workers_ended_well_and_nobody_is_left() -> None:
    job = Successor()
    assert job.hints(0.1, worker0=0, worker1=0, server0=0).over is True


@pytest.mark.parametrize(("policy", "clean"), [("shrink", True), ("wait", False)])
def test_the_job_is_over_when_all_have_ended_and_a_worker_was_lost(policy: str, clean: bool) -> None:
    """Its scheduler died after all others: nobody is left who could say HELLO, and nobody is waited for."""
    job, ends = Successor(policy), {"worker0": 0, "worker1": -9, "server0": 0}
    assert not job.hints(0.1, worker0=0, worker1=-9).complete, "the server may say HELLO"
    step, now = job.hints(0.2, **ends), 0.2
    assert step.complete and step.failure is None
    while step.over is None and now < 10:
        now += BEAT_INTERVAL
        for link in step.beats:
            job.membership.on_unreachable(link, now)
        step = job.scheduler.on_timer(now)
        if job.membership.away():
            step = job.hints(now, **ends)
    assert step.over is clean
    assert [error.node for _, error in step.ended] == ["worker 1 (pid 5)"]


def test_who_came_too_late_is_told_so_when_nobody_said_hello() -> None:
    job = Successor()
    request = Message(Kind.REQUEST, op=Op.JOIN, seq=1, incarnation=7, body=["worker", 1, [], "h", 7, 1, ""])
    assert not job.scheduler.on_request(b"late", request, 0.1).answers
    step = job.hints(0.2, worker0=0, worker1=0, server0=0)
    assert step.over and step.joins == [(b"late", request)]
    [answer] = job.scheduler.on_request(*step.joins[0], 0.2).answers
    assert isinstance(answer.error, JoinError)


def test_servers_are_told_that_the_job_is_over() -> None:
    job = Successor()
    job.hints(0.1, worker0=0, worker1=0)
    step = job.hello(SERVER, 0.2)
    assert step.over is True
    assert (SERVER, ["over", True]) in step.events


def test_before_the_first_hello_an_end_is_no_failure_to_join() -> None:
    job = Successor()
    assert job.hints(START_WITHIN - 1, worker0=0).failure is None
    assert job.hints(START_WITHIN + 1, worker0=0).failure is not None


def test_the_latest_of_a_rank_counts() -> None:
    job = Successor()
    lost: dict[int, PSError] = {WORKERS[1]: PeerLost(node="worker 1", reason="it died")}
    job.hello(SERVER, 0.1, away=(WORKERS[0],))  # the one before
    job.hello(WORKERS[1], 0.1, {WORKERS[0]: 1})
    step = job.hello(WORKERS[0], 0.2, {WORKERS[0]: 1})
    assert step.complete and job.state(WORKERS[0]) == State.UP
    job = Successor()
    job.hello(SERVER, 0.1, ended=lost)
    job.hello(WORKERS[0], 0.1)
    assert job.state(WORKERS[1]) == State.LOST
    assert isinstance(job.hello(WORKERS[1], 0.3).hellos[0][1], PSError)


def test_records_travel_in_messages_that_can_be_sent() -> None:
    memory = Recollection()
    names = [f"{number} {'x' * 5000}" for number in range(1500)]
    memory.answered(Message(Kind.REQUEST, op=Op.PUBLISH, body=dict.fromkeys(names[:700], 1)), Message(Kind.REPLY))
    reply = Message(Kind.REPLY, body=dict.fromkeys(names[600:], 1))
    memory.answered(Message(Kind.REQUEST, op=Op.LOOKUP, body=names[600:]), reply)
    batches = list(memory.batches())
    assert sum(map(len, names)) > 3 * MAX_BODY
    assert [name for batch in batches for name in batch] == names
    assert batches[-1] == {}
    for batch in batches:
        check(Message(Kind.REQUEST, op=Op.PUBLISH, body=batch))


@pytest.mark.parametrize("drop", ["roster", "gone", "away", "barriers", "policy", "epoch"])
def test_a_hello_that_lacks_something_changes_nothing(drop: str) -> None:
    job = Successor()
    body = Recollection().hello([Peer(node, node, [], "h", 1) for node in NODES], "wait", 0)
    del body[drop]
    with pytest.raises(LookupError):
        job.scheduler.on_hello(b"link", Message(Kind.HELLO, "job", SERVER, incarnation=SERVER, body=body), 0.1)
    assert not job.membership.complete


def test_two_that_were_not_welcomed_do_not_wait_for_each_other() -> None:
    """Each knows of the other by its own welcome; before that it acknowledges nothing."""
    job = Successor()
    again = {WORKERS[0]: 1, WORKERS[1]: 1}
    job.hello(SERVER, 0.1, again)
    body = ["worker", 0, [], "h", WORKERS[0], 1, "wait"]
    first = Message(Kind.REQUEST, op=Op.JOIN, incarnation=100 + WORKERS[0], seq=1, body=body)
    second = Message(Kind.REQUEST, op=Op.JOIN, incarnation=100 + WORKERS[1], seq=1, body=["worker", 1, *body[2:]])
    job.scheduler.on_request(b"first", first, 0.2)
    step = job.scheduler.on_request(b"second", second, 0.3)
    assert step.complete
    joined = [job.scheduler.on_request(link, request, 0.4) for link, request in step.joins]
    assert [member.node for each in joined for member in each.back] == WORKERS
    for node in WORKERS:
        job.scheduler.acknowledged(node, 100 + node, SERVER)
    assert job.state(WORKERS[0]) == State.UP
    [welcome] = job.scheduler.acknowledged(WORKERS[1], 100 + WORKERS[1], WORKERS[0]).answers
    assert welcome.request is second
    assert job.state(WORKERS[1]) == State.UP


def test_a_member_whose_connection_breaks_again_and_again_is_not_taken_for_dead() -> None:
    """Each look finds no connection, and each time it comes back and says HELLO."""
    job = Successor()
    for node in NODES:
        job.hello(node, 0.1)
    now = 0.1
    for _ in range(8):
        job.membership.on_unreachable(b"link%d" % WORKERS[0], now)
        job.hello(WORKERS[0], now + BEAT_INTERVAL / 2)
        now += BEAT_INTERVAL
        job.scheduler.on_timer(now)
        assert job.state(WORKERS[0]) == State.UP


# Barriers: three nodes come to one after the other; schedulers die, and some answers with them


class Meeting:
    """Nodes at barriers of one group. A node waits at the barrier after the last that it has passed."""

    def __init__(self) -> None:
        self.barriers = Barriers()
        self.passed = dict.fromkeys(NODES, 0)
        self.memories = {node: Recollection() for node in NODES}
        self.waiting: dict[int, Message] = {}

    def come(self, node: int, heard: set[int]) -> None:
        """A node asks to be let pass, for the first time or again; the answers reach those in ``heard``."""
        request = Message(Kind.REQUEST, op=Op.BARRIER, sender=node, body=[ids.ALL, self.passed[node] + 1])
        self.waiting[node] = request
        self.hear(self.barriers.enter(request, ids.ALL, NODES, request.body[1]), heard)

    def hear(self, answers: list[Answer], heard: set[int]) -> None:
        for answer in answers:
            node = answer.request.sender
            if node in heard and self.waiting.get(node) is answer.request:
                del self.waiting[node]
                self.memories[node].answered(answer.request, Message(Kind.REPLY, body=answer.body))
                self.passed[node] += 1

    def replace(self) -> None:
        """The scheduler dies; its successor hears from all, and all that wait ask again."""
        self.barriers = Barriers()
        told: dict[int, Any] = {}
        for node, memory in self.memories.items():
            body = memory.hello([], "wait", 0)
            told[node] = {(group, customer): (s, n) for group, customer, s, n in body["barriers"]}
        self.barriers.restore(told, NODES)
        for node in list(self.waiting):
            self.come(node, set(NODES))


@given(st.lists(st.tuples(st.sampled_from([*NODES, 0]), st.sets(st.sampled_from(NODES))), max_size=40))
def test_nobody_passes_a_barrier_before_all_are_there_and_nobody_stays_behind(
    steps: list[tuple[int, set[int]]],
) -> None:
    meeting = Meeting()
    for node, heard in steps:
        if node == 0:
            meeting.replace()
        elif node not in meeting.waiting:
            meeting.come(node, heard)
            if len({*NODES} - heard) and any(meeting.passed[n] > meeting.passed[m] for n in NODES for m in NODES):
                meeting.replace()  # what was not heard is lost with the scheduler
        come = {n: meeting.passed[n] + (n in meeting.waiting) for n in NODES}
        assert all(meeting.passed[n] <= come[m] for n in NODES for m in NODES)
    meeting.replace()
    for _ in range(3):
        for node in sorted(NODES, key=lambda n: meeting.passed[n]):
            if node not in meeting.waiting:
                meeting.come(node, set(NODES))
    assert max(meeting.passed.values()) - min(meeting.passed.values()) <= 1
    assert min(meeting.passed.values()) >= 1

"""The scheduler dies and another one takes its place: what it knew it learns from the members."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from pslite import (
    ALL,
    SCHEDULER,
    WORKER_GROUP,
    InprocCluster,
    KVServer,
    KVServerDefaultHandle,
    KVWorker,
    Postoffice,
    run_all,
    worker_id,
)
from pslite.errors import BarrierTimeout, JoinError, PeerLost, PSError, WorkerFailed, WorkerFinished
from pslite.postoffice.actions import PeerAway, PeerBack
from pslite.van.base import LinkDown, LinkUp
from pslite.wire import Kind, Message, Op
from tests.harness import wait_until

KEYS = np.array([1, 2**63 + 1], np.uint64)


class Job(InprocCluster):
    """A job whose messages can be lost, and whose servers add up what is pushed."""

    def __init__(self, **settings: Any) -> None:
        self.lost: Callable[[str, str, Message], bool] = lambda *_: False
        given = {"workers": 2, "servers": 2, "max_restarts": 99, "resend_timeout": 0.05, **settings}
        super().__init__(fault=lambda *message: 0 if self.lost(*message) else 1, **given)

    def __enter__(self) -> Job:
        super().__enter__()
        for server in self.servers:
            serve(server)
        return self

    def next_scheduler(self) -> Postoffice:
        """Kill the scheduler, and start its successor, which has a table of members when this returns."""
        self.restart(self.scheduler).start()
        return self.scheduler


def serve(office: Postoffice) -> None:
    KVServer(0, office).set_handle(KVServerDefaultHandle())


@pytest.fixture
def job() -> Iterator[Job]:
    with Job() as job:
        yield job


class Background:
    """A call in a thread of its own; ``result`` waits for it, and returns or raises what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._ended: list[Any] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._ended.append(self._call())
        except PSError as error:
            self._ended.append(error)

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(20)
        assert not self.runs
        if isinstance(self._ended[0], PSError):
            raise self._ended[0]
        return self._ended[0]


def push_and_pull(office: Postoffice, customer: int) -> list[float]:
    kv = KVWorker(0, customer, office)
    kv.wait(kv.push(KEYS, np.ones(2, np.float32)))
    out = np.zeros(2, np.float32)
    kv.wait(kv.pull(KEYS, out))
    return list(out)


def notices(job: Job) -> None:
    """Every member knows that its scheduler is dead."""
    wait_until(lambda: all(SCHEDULER in office.away() for office in [*job.workers, *job.servers]))


def meet(job: Job, group: int = WORKER_GROUP) -> None:
    offices = job.offices if group == ALL else job.workers
    run_all([lambda office=office: office.barrier(group) for office in offices])  # type: ignore[misc]


# What goes on without it


def test_push_and_pull_go_on_without_a_scheduler(job: Job) -> None:
    job.kill(job.scheduler)
    assert push_and_pull(job.workers[0], 1) == [1, 1]
    notices(job)
    assert push_and_pull(job.workers[1], 1) == [2, 2]
    job.next_scheduler()
    assert push_and_pull(job.workers[0], 2) == [3, 3]
    wait_until(lambda: not any(office.away() for office in job.offices))


def test_members_stay_who_they_are(job: Job) -> None:
    before = [(office.node, office.name_of(worker_id(0))) for office in job.workers + job.servers]
    scheduler = job.next_scheduler()
    assert [(office.node, office.name_of(worker_id(0))) for office in job.workers + job.servers] == before
    assert (scheduler.num_workers, scheduler.num_servers) == (2, 2)
    assert scheduler.name_of(worker_id(0)) == before[0][1]
    meet(job)


def test_without_restarts_its_death_is_the_end() -> None:
    with Job(max_restarts=0) as job:
        waiting = Background(lambda: job.workers[0].barrier(WORKER_GROUP))
        job.kill(job.scheduler)
        with pytest.raises(PeerLost, match="scheduler is lost"):
            waiting.result()


def test_nobody_comes() -> None:
    with Job(start_timeout=1.0) as job:
        waiting = Background(lambda: job.workers[0].barrier(WORKER_GROUP))
        job.kill(job.scheduler)
        with pytest.raises(PeerLost, match="no other one was started"):
            waiting.result()
        with pytest.raises(PeerLost, match="no other one was started"):
            job.servers[0].wait_job_over()


def test_a_call_that_waits_for_a_scheduler_keeps_its_deadline(job: Job) -> None:
    job.kill(job.scheduler)
    notices(job)
    with pytest.raises(BarrierTimeout, match="scheduler"):
        job.workers[0].barrier(WORKER_GROUP, timeout=0.1)


def test_a_broken_connection_is_no_death(job: Job) -> None:
    waiting = Background(lambda: job.workers[0].barrier(WORKER_GROUP))
    wait_until(lambda: waiting.runs)
    for office in job.workers + job.servers:
        with job.hub.lock:
            job.van_of(office).post(LinkDown(SCHEDULER))
            job.van_of(office).post(LinkUp(SCHEDULER))
    job.workers[1].barrier(WORKER_GROUP)
    waiting.result()
    meet(job)
    wait_until(lambda: not any(office.away() for office in job.offices))


# Barriers


def test_a_barrier_that_began_before(job: Job) -> None:
    meet(job)
    waiting = Background(lambda: job.workers[0].barrier(WORKER_GROUP))
    job.kill(job.scheduler)
    notices(job)
    job.next_scheduler()
    assert waiting.runs
    job.workers[1].barrier(WORKER_GROUP)
    waiting.result()


def test_a_barrier_that_begins_meanwhile(job: Job) -> None:
    meet(job)
    job.kill(job.scheduler)
    notices(job)
    waiting = [Background(lambda office=office: office.barrier(WORKER_GROUP)) for office in job.workers]  # type: ignore[misc]
    job.next_scheduler()
    for each in waiting:
        each.result()


@pytest.mark.parametrize("barriers", [0, 2])
def test_a_barrier_that_one_has_passed_and_another_has_not(job: Job, barriers: int) -> None:
    """Its answer to worker 1 is lost with the scheduler: it must not be held against it, nor for the next one."""
    for _ in range(barriers):
        meet(job)
    job.lost = lambda sender, to, message: to == "worker 1" and message.op == Op.BARRIER
    late = Background(lambda: job.workers[1].barrier(WORKER_GROUP))
    job.workers[0].barrier(WORKER_GROUP)
    job.kill(job.scheduler)
    job.lost = lambda *_: False
    following = Background(lambda: job.workers[0].barrier(WORKER_GROUP))
    job.next_scheduler()
    late.result()
    assert following.runs
    job.workers[1].barrier(WORKER_GROUP)
    following.result()
    meet(job)


def test_a_barrier_that_was_opened_for_one_who_hears_of_it_when_others_have_left(job: Job) -> None:
    job.lost = lambda sender, to, message: to == "worker 1" and message.op == Op.BARRIER
    late = Background(lambda: job.workers[1].barrier(WORKER_GROUP))
    job.workers[0].barrier(WORKER_GROUP)
    job.workers[0].leave()
    wait_until(lambda: job.workers[1].ended(worker_id(0)) is not None)
    job.kill(job.scheduler)
    job.lost = lambda *_: False
    job.next_scheduler()
    late.result()


def test_numbers_of_barriers_that_differ_because_one_gave_up(job: Job) -> None:
    with pytest.raises(BarrierTimeout):
        job.workers[0].barrier(WORKER_GROUP, timeout=0.1)
    meet(job)
    job.next_scheduler()
    early = Background(lambda: job.workers[1].barrier(WORKER_GROUP))
    job.next_scheduler()
    assert early.runs
    job.workers[0].barrier(WORKER_GROUP)
    early.result()


def test_a_barrier_of_all_has_the_next_scheduler(job: Job) -> None:
    meet(job, ALL)
    job.next_scheduler()
    job.scheduler.barrier(ALL)  # it has passed it before
    meet(job, ALL)


# The directory


def test_records_of_before_and_after(job: Job) -> None:
    first, second = job.workers
    first.publish({"a": [1, 2]})
    assert second.lookup(["a"]) == {"a": [1, 2]}
    job.next_scheduler()
    assert second.lookup(["a"]) == {"a": [1, 2]}
    waiting = Background(lambda: second.lookup(["b"]))
    job.kill(job.scheduler)
    notices(job)
    publishing = Background(lambda: first.publish({"b": 3}))
    job.next_scheduler()
    publishing.result()
    assert waiting.result() == {"b": 3}


def test_a_large_directory(job: Job) -> None:
    records = [{f"key {part} {number} {'x' * 1000}": [number] for number in range(1000)} for part in range(5)]
    for batch in records:
        job.workers[0].publish(batch)
    job.next_scheduler()
    for batch in records:
        assert job.workers[1].lookup(list(batch)) == batch


def test_a_look_up_fails_if_all_have_said_what_they_know_and_its_publisher_is_gone(job: Job) -> None:
    first, second = job.workers
    first.publish({"a": 1})
    second.lookup(["a"])
    first.leave()
    wait_until(lambda: second.ended(worker_id(0)) is not None)
    first.close()
    job.next_scheduler()
    assert second.lookup(["a"]) == {"a": 1}
    with pytest.raises(WorkerFinished):
        second.lookup(["b"])


# Deaths of others


def test_a_worker_comes_again_after_the_scheduler_has(job: Job) -> None:
    for _ in range(3):
        meet(job)
    job.workers[0].publish({"a": 1})
    job.next_scheduler()
    again = job.restart(job.workers[1])
    again.start()
    assert (again.again, again.rank) == (True, 1)
    for _ in range(3):
        again.barrier(WORKER_GROUP)  # those that its predecessor has passed
    assert again.lookup(["a"]) == {"a": 1}
    meet(job)
    assert push_and_pull(again, 1) == [1, 1]


@pytest.mark.parametrize("role", ["worker", "server"])
def test_a_process_dies_with_the_scheduler(job: Job, role: str) -> None:
    meet(job)
    known = job.workers if role == "worker" else job.servers
    job.kill(known[1])
    job.kill(job.scheduler)
    again = job.restart(known[1])
    run_all([again.start, job.restart(job.scheduler).start])
    if role == "server":
        serve(again)
    else:
        again.barrier(WORKER_GROUP)
    assert (again.again, again.rank) == (True, 1)
    meet(job)
    assert push_and_pull(job.workers[0], 1) == [1, 1]
    assert push_and_pull(job.workers[1], 1) == [2, 2]


def test_a_worker_that_dies_with_the_scheduler_and_does_not_come_again() -> None:
    with Job(start_timeout=3.0) as job:
        job.kill(job.workers[1])
        job.next_scheduler()
        with pytest.raises(PeerLost, match="worker 1"):
            job.workers[0].barrier(WORKER_GROUP)


@pytest.mark.parametrize("policy", ["raise", "shrink"])
def test_a_worker_dies_with_the_scheduler_and_others_do_not_wait(policy: str) -> None:
    with Job(on_worker_lost=policy) as job:
        job.kill(job.workers[1])
        job.next_scheduler()
        if policy == "raise":
            with pytest.raises(PeerLost, match="worker 1"):
                job.workers[0].barrier(WORKER_GROUP)
        else:
            job.workers[0].barrier(WORKER_GROUP)


def test_a_death_that_only_some_have_heard_of(job: Job) -> None:
    job.lost = lambda sender, to, message: to == "worker 0" and message.op == Op.EVENT
    job.kill(job.workers[1])
    wait_until(lambda: all(worker_id(1) in server.away() for server in job.servers))
    job.kill(job.scheduler)
    job.lost = lambda *_: False
    job.next_scheduler()
    wait_until(lambda: worker_id(1) in job.workers[0].away())
    job.restart(job.workers[1]).start()
    assert push_and_pull(job.workers[1], 1) == [1, 1]
    meet(job)


def test_a_successor_that_was_announced_to_some_and_not_welcomed(job: Job) -> None:
    job.lost = lambda sender, to, message: to == "server 0" and message.op == Op.EVENT
    seen: list[object] = []
    job.workers[0].on_peer_moved(lambda moved: seen.append(type(moved)))
    again = job.restart(job.workers[1])
    joining = Background(again.start)
    wait_until(lambda: seen == [PeerAway, PeerBack])
    job.kill(job.scheduler)
    job.lost = lambda *_: False
    job.next_scheduler()
    joining.result()
    assert again.again
    assert push_and_pull(again, 1) == [1, 1]
    meet(job)


def test_a_process_that_was_taken_for_dead_is_refused_by_the_next_scheduler(job: Job) -> None:
    zombie = job.workers[1]
    again = job.replace(zombie)
    job.lost = lambda sender, to, message: "worker 1" in (sender, to)  # it is cut off, and does not hear of it
    again.start()
    job.next_scheduler()
    job.lost = lambda *_: False
    with pytest.raises(JoinError):
        zombie.barrier(WORKER_GROUP)
    meet(job)


def test_ten_schedulers_in_a_row(job: Job) -> None:
    for number in range(1, 11):
        job.workers[0].publish({f"key {number}": number})
        meet(job)
        job.next_scheduler()
        assert push_and_pull(job.workers[number % 2], number) == [number, number]
        assert job.workers[1].lookup([f"key {n}" for n in range(1, number + 1)])
    meet(job, ALL)


def test_a_successor_dies_before_it_has_answered(job: Job) -> None:
    waiting = Background(lambda: job.workers[0].barrier(WORKER_GROUP))
    job.lost = lambda sender, to, message: to.startswith("scheduler") and message.sender == worker_id(1)
    starting = Background(job.restart(job.scheduler).start)
    notices(job)
    job.kill(job.scheduler)
    job.lost = lambda *_: False
    job.next_scheduler()
    job.workers[1].barrier(WORKER_GROUP)
    waiting.result()
    assert starting.runs


def test_with_many_messages_lost(job: Job) -> None:
    rng = Random(1)
    job.lost = lambda *_: rng.random() < 0.3
    for number in range(1, 4):
        meet(job)
        job.workers[0].publish({f"{number}": number})
        job.next_scheduler()
        assert job.workers[1].lookup([f"{number}"]) == {f"{number}": number}


# The beginning


def test_it_dies_while_others_join() -> None:
    job = Job(workers=2, servers=1)
    try:
        first = Background(job.scheduler.start)
        early = [Background(office.start) for office in (job.workers[0], job.servers[0])]
        wait_until(lambda: len(job.scheduler._core.scheduler.membership.members) == 2)  # type: ignore[union-attr]
        job.kill(job.scheduler)
        run_all([job.restart(job.scheduler).start, job.workers[1].start])
        for each in early:
            each.result()
        meet(job)
        assert first.runs
    finally:
        job.close()


def test_it_dies_while_it_welcomes() -> None:
    job = Job(workers=2, servers=1)
    job.lost = lambda sender, to, message: to == "worker 1" and message.op == Op.JOIN
    try:
        late = Background(job.workers[1].start)
        run_all([office.start for office in (job.scheduler, job.servers[0], job.workers[0])])
        assert late.runs
        job.kill(job.scheduler)
        job.lost = lambda *_: False
        job.next_scheduler()
        late.result()
        serve(job.servers[0])
        assert not job.workers[1].again
        assert push_and_pull(job.workers[1], 1) == [1, 1]
        meet(job)
    finally:
        job.close()


# The end


def leave(office: Postoffice) -> Background:
    return Background(lambda: office.leave(wait=True, timeout=20))


def test_it_dies_while_some_wait_at_the_exit(job: Job) -> None:
    over = [Background(server.wait_job_over) for server in job.servers]
    first = leave(job.workers[0])
    wait_until(lambda: job.workers[1].ended(worker_id(0)) is not None)
    job.kill(job.scheduler)
    notices(job)
    second = leave(job.workers[1])
    job.next_scheduler()
    for each in [first, second, *over]:
        each.result()
    assert all(office.job_over and office.job_clean for office in [job.scheduler, *job.servers])
    for server in job.servers:
        server.finalize(do_barrier=False)


def test_a_worker_that_has_ended_is_not_awaited(job: Job) -> None:
    job.workers[0].finalize(do_barrier=False)
    wait_until(lambda: job.workers[1].ended(worker_id(0)) is not None)
    job.next_scheduler()
    assert isinstance(job.scheduler.ended(worker_id(0)), WorkerFinished)
    assert push_and_pull(job.workers[1], 1) == [1, 1]
    job.workers[1].finalize(do_barrier=False)
    for server in job.servers:
        server.wait_job_over()


def test_a_worker_that_has_failed_has_failed_for_the_next_scheduler_too(job: Job) -> None:
    job.workers[0].leave("failed", "out of luck")
    wait_until(lambda: job.workers[1].ended(worker_id(0)) is not None)
    job.next_scheduler()
    with pytest.raises(WorkerFailed, match="out of luck"):
        job.workers[1].leave(wait=True)
    job.servers[0].wait_job_over()
    assert not job.servers[0].job_clean


def test_the_end_that_one_server_has_heard_of(job: Job) -> None:
    job.lost = lambda sender, to, message: to == "server 1" and message.body == ["over", True]
    for worker in job.workers:
        worker.leave()
    job.servers[0].wait_job_over()
    job.kill(job.scheduler)
    for worker in job.workers:
        worker.close()
    job.lost = lambda *_: False
    job.next_scheduler()
    job.servers[1].wait_job_over()
    assert job.servers[1].job_clean


def test_a_malformed_hello_harms_nobody(job: Job) -> None:
    job.kill(job.scheduler)
    notices(job)
    successor = job.restart(job.scheduler)
    starting = Background(successor.start)
    bodies: list[Any] = [None, {}, [], {"scheduler": 1}, {"scheduler": 1, "roster": [[1]], "gone": {}, "away": []}]
    for body in bodies:
        hello = Message(Kind.HELLO, "inproc0", worker_id(1), SCHEDULER, 1, body=body)
        job.van_of(job.workers[0]).send(SCHEDULER, hello)
    starting.result()
    meet(job)

"""Who is in the job: joining, ranks, leaving and liveness, in virtual time."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from pslite.errors import (
    JoinError,
    PeerLost,
    ProtocolError,
    RendezvousTimeout,
    WorkerFailed,
    WorkerFinished,
    WorkerLeft,
)
from pslite.postoffice.membership import BEAT_INTERVAL, Hint, Member, Membership, Outcome, Policy, State
from pslite.postoffice.roster import LOST_AFTER, Outage
from pslite.postoffice.scheduler import Scheduler, Step
from pslite.wire import Kind, Message, Op


class Job:
    """A membership, and the joins of its members."""

    def __init__(self, workers: int = 2, servers: int = 1, deadline: float | None = 60.0) -> None:
        self.membership = Membership(workers, servers, "job", deadline, 0.0)
        self._serial = 0

    def join(self, role: str, wish: int | None = None, pid: int = 0, body: Any = None) -> Outcome:
        self._serial += 1
        body = body or [role, wish, [f"tcp://h:{self._serial}"] if role == "server" else [], "host", pid, 0, ""]
        request = Message(Kind.REQUEST, op=Op.JOIN, incarnation=self._serial, body=body)
        return self.membership.join(f"link{self._serial}".encode(), request)

    def formed(self) -> Job:
        for role, count in self.membership.wanted.items():
            for rank in range(count):
                self.join(role, rank)
        assert self.membership.complete
        return self

    def member(self, node: int) -> Member:
        member = self.membership.find(node)
        assert member is not None
        return member

    def leave(self, node: int, how: str = "finished", wait: bool = False) -> tuple[Message, Outcome]:
        request = Message(Kind.REQUEST, op=Op.LEAVE, sender=node, body=[how, "", wait])
        return request, self.membership.leave(self.member(node), request)


def refused(outcome: Outcome) -> str:
    [answer] = outcome.answers
    assert isinstance(answer.error, JoinError)
    return str(answer.error)


# Joining


def test_everybody_is_welcomed_when_the_last_has_joined() -> None:
    job = Job(workers=2, servers=1)
    assert job.join("worker").answers == job.join("server").answers == []
    outcome = job.join("worker")
    assert outcome.complete
    welcomes = [a.body for a in outcome.answers]
    assert [w["node"] for w in welcomes] == [9, 8, 11]
    assert all(w["job"] == "job" and (w["workers"], w["servers"]) == (2, 1) for w in welcomes)
    assert sorted(line[0] for line in welcomes[0]["roster"]) == [8, 9, 11]


@given(st.permutations(range(4)), st.sets(st.integers(0, 3)))
def test_wishes_are_granted_and_the_rest_get_what_is_left_in_order(order: list[int], wishing: set[int]) -> None:
    job = Job(workers=4, servers=0)
    for index in order:
        job.join("worker", index if index in wishing else None, pid=100 + index)
    ranks = {m.pid - 100: m.rank for m in job.membership.members}
    assert sorted(ranks.values()) == [0, 1, 2, 3]
    assert all(ranks[index] == index for index in wishing)
    others = [ranks[index] for index in order if index not in wishing]
    assert others == sorted(others)


def test_a_rank_is_given_once() -> None:
    job = Job()
    job.join("worker", 1, pid=77)
    text = refused(job.join("worker", 1))
    assert "worker 1 cannot join" in text
    assert "worker 1 (pid 77 on host)" in text


@pytest.mark.parametrize("wish", [2, -1, 2**63])
def test_a_rank_that_does_not_exist_is_refused_with_those_that_do(wish: Any) -> None:
    assert "ranks are 0 to 1" in refused(Job(workers=2).join("worker", wish))


def test_one_process_too_many_is_told_which_settings_decide() -> None:
    assert "DMLC_NUM_WORKER" in refused(Job().formed().join("worker"))


@pytest.mark.parametrize(
    "body",
    ["x", [], ["king", None, [], "h", 1], ["worker", None, 5, "h", 1], ["worker", None, [], "h", "pid"],
     ["worker", None, [], "h"], [["worker"], None, [], "h", 1], ["worker", [1], [], "h", 1],
     ["worker", "0", [], "h", 1], ["worker", 1.0, [], "h", 1], ["server", None, [5], "h", 1]],
    ids=str,
)  # fmt: skip
def test_a_malformed_join_is_refused(body: Any) -> None:
    refused(Job().join("", body=body))


def test_the_missing_are_named_at_the_deadline_to_all_who_came() -> None:
    job = Job(workers=3, servers=2)
    job.join("worker", 1)
    job.join("server")
    assert job.membership.missing() == ["worker 0", "worker 2", "server 1"]
    assert job.membership.on_timer(59.9).failure is None
    outcome = job.membership.on_timer(60.0)
    assert isinstance(outcome.failure, RendezvousTimeout)
    assert outcome.failure.missing == ["worker 0", "worker 2", "server 1"]
    assert outcome.failure.seconds == 60
    assert [a.error for a in outcome.answers] == [outcome.failure] * 2


def test_without_a_deadline_it_waits_for_ever() -> None:
    job = Job(deadline=None)
    job.join("worker")
    assert job.membership.on_timer(1e9).failure is None


def test_the_launchers_table_tells_who_is_alive() -> None:
    job = Job(workers=2, servers=1)
    job.join("server")
    outcome = job.membership.on_hints([Hint("worker", 0, 11, None), Hint("worker", 1, 12, None)], 1.0)
    assert outcome.failure is None
    assert job.membership.missing() == [
        "worker 0 (pid 11 runs, but has not called create())",
        "worker 1 (pid 12 runs, but has not called create())",
    ]


def test_a_process_that_ended_before_it_joined_ends_the_wait_at_once() -> None:
    job = Job(workers=2, servers=1)
    job.join("server")
    outcome = job.membership.on_hints([Hint("worker", 0, 11, 3)], 1.0)
    assert isinstance(outcome.failure, RendezvousTimeout)
    assert outcome.failure.missing == ["worker 0 (pid 11 ended with status 3 before it joined)", "worker 1"]
    assert len(outcome.answers) == 1
    [late] = job.join("worker", 1).answers
    assert late.error is outcome.failure


def test_the_end_of_a_member_that_has_joined_is_no_missing_process() -> None:
    job = Job(workers=2, servers=1)
    job.join("worker", 0)
    assert job.membership.on_hints([Hint("worker", 0, 11, 0)], 1.0).failure is None


def test_a_loss_while_others_join_fails_the_job() -> None:
    job = Job(workers=2, servers=1)
    job.join("worker", 0)
    job.join("server")
    [worker, _] = job.membership.members
    outcome = job.membership.lose(worker, "it died")
    assert isinstance(outcome.failure, PeerLost)
    assert [a.error for a in outcome.answers] == [outcome.failure]


# Leaving


@pytest.mark.parametrize(
    ("how", "kind"), [("finished", WorkerFinished), ("left", WorkerLeft), ("failed", WorkerFailed)]
)
def test_how_a_member_left_is_remembered(how: str, kind: type) -> None:
    job = Job().formed()
    request, outcome = job.leave(9, how)
    assert type(job.member(9).error) is kind
    assert [m.node for m in outcome.ended] == [9]
    assert [(a.request, a.error) for a in outcome.answers] == [(request, None)]
    assert job.membership.clean is (how != "failed")


def test_who_waits_at_the_exit_is_let_go_with_the_last_worker() -> None:
    job = Job(workers=3, servers=1).formed()
    first, outcome = job.leave(9, wait=True)
    assert outcome.answers == []
    assert job.membership.leaving_waits_for(first) == ["worker 1", "worker 2"]
    job.leave(13)
    second, outcome = job.leave(11, wait=True)
    assert [a.request for a in outcome.answers] == [first, second]
    assert all(a.error is None for a in outcome.answers)


@pytest.mark.parametrize("how", ["failed", "lost"])
def test_who_waits_at_the_exit_hears_of_one_that_died(how: str) -> None:
    job = Job(workers=2).formed()
    first, _ = job.leave(9, wait=True)
    outcome = job.leave(11, how)[1] if how == "failed" else job.membership.lose(job.member(11), "it died")
    [answer] = [a for a in outcome.answers if a.request is first]
    assert isinstance(answer.error, WorkerFailed if how == "failed" else PeerLost)


# Liveness


def beats(job: Job, start: float, end: float, silent: set[int], judge: set[int] | None = None) -> list[Member]:
    """Let time pass in steps of one beat; beats to ``silent`` nodes find no connection. Returns who ended."""
    ended, now = [], start
    while now < end:
        for member in job.membership.members:
            if member.node in silent:
                job.membership.on_unreachable(member.link, now)
        now += BEAT_INTERVAL
        ended += job.membership.on_timer(now).ended
    return ended


def test_a_member_without_a_connection_is_lost_soon() -> None:
    job = Job().formed()
    assert [m.node for m in beats(job, 0.0, LOST_AFTER + 2 * BEAT_INTERVAL, {11})] == [11]
    assert job.member(11).state is State.LOST
    assert isinstance(job.member(11).error, PeerLost)
    assert job.membership.here("worker") == [job.member(9)]


def test_a_connection_that_comes_back_in_time_is_no_loss() -> None:
    job = Job().formed()
    assert beats(job, 0.0, BEAT_INTERVAL, {11}) == []
    assert beats(job, BEAT_INTERVAL, 10.0, set()) == []
    assert beats(job, 10.0, 10.0 + BEAT_INTERVAL, {11}) == []


def test_a_judge_that_slept_gives_everybody_another_chance() -> None:
    """After a SIGSTOP of the scheduler all connections look old."""
    job = Job().formed()
    beats(job, 0.0, BEAT_INTERVAL, {9, 11})
    for link in (9, 11):
        job.membership.on_unreachable(job.member(link).link, 100.0)
    assert job.membership.on_timer(100.0).ended == []
    assert [m.node for m in beats(job, 100.0, 101.5, {11})] == [11]


def test_a_broken_connection_is_final_in_time_and_for_a_judge_that_was_held_up_once_later() -> None:
    assert not Outage(10.0).is_final(10.0 + LOST_AFTER / 2)
    assert Outage(10.0).is_final(10.0 + LOST_AFTER)
    outage = Outage(10.0)
    assert not outage.is_final(14.0)
    assert not outage.is_final(14.0 + LOST_AFTER / 2)
    assert outage.is_final(18.0)


def test_who_has_left_is_not_judged() -> None:
    job = Job().formed()
    job.leave(11)
    assert beats(job, 0.0, 5.0, {11}) == []


# The scheduler's services together


class Services:
    """A scheduler whose job is complete."""

    def __init__(self, workers: int = 2, servers: int = 1) -> None:
        self.job = Job(workers, servers).formed()
        self.scheduler = Scheduler(self.job.membership)

    def ask(self, sender: int, op: Op, body: Any) -> Step:
        return self.scheduler.on_request(b"", Message(Kind.REQUEST, op=op, sender=sender, body=body))


def test_a_barrier_with_a_member_that_is_gone_fails_at_once() -> None:
    services = Services()
    services.ask(11, Op.LEAVE, ["finished", "", False])
    [answer] = services.ask(9, Op.BARRIER, [4, 1]).answers
    assert isinstance(answer.error, WorkerFinished)
    assert "worker 1" in str(answer.error)


def test_a_barrier_breaks_when_a_member_leaves_and_all_hear_of_it() -> None:
    services = Services(workers=3)
    assert services.ask(9, Op.BARRIER, [4, 1]).answers == []
    step = services.ask(11, Op.LEAVE, ["failed", "ValueError: x", False])
    assert sorted(type(a.error).__name__ for a in step.answers) == ["NoneType", "WorkerFailed"]
    assert sorted(node for node, _ in step.events) == [8, 9, 13]
    assert [body[:2] for _, body in step.events] == [["ended", 11]] * 3


def test_a_barrier_that_a_worker_had_passed_is_passed_again_though_others_have_left() -> None:
    """It was restarted, and comes to all barriers anew."""
    services = Services()
    services.ask(9, Op.BARRIER, [4, 1])
    services.ask(11, Op.BARRIER, [4, 1])
    services.ask(11, Op.LEAVE, ["finished", "", False])
    [answer] = services.ask(9, Op.BARRIER, [4, 1]).answers
    assert answer.error is None
    [answer] = services.ask(9, Op.BARRIER, [4, 2]).answers
    assert isinstance(answer.error, WorkerFinished)


def test_a_server_that_comes_again_after_the_end_hears_of_the_end() -> None:
    services = Services()
    membership = services.job.membership
    membership.policy = Policy("wait", "wait")
    services.ask(9, Op.LEAVE, ["finished", "", False])
    assert services.ask(11, Op.LEAVE, ["finished", "", False]).over is True
    membership.lose(services.job.member(8), "killed", 1.0)
    body = ["server", 0, ["tcp://h:9"], "host", 5, 1, ""]
    join = Message(Kind.REQUEST, op=Op.JOIN, incarnation=99, seq=1, body=body)
    step = services.scheduler.on_request(b"new", join, 2.0)
    assert (8, ["over", True]) in step.events


def test_look_ups_fail_when_worker_0_is_gone() -> None:
    services = Services()
    assert services.ask(11, Op.LOOKUP, ["w"]).answers == []
    step = services.ask(9, Op.LEAVE, ["finished", "", False])
    assert any(isinstance(a.error, WorkerFinished) for a in step.answers)
    [answer] = services.ask(11, Op.LOOKUP, ["v"]).answers
    assert "the init of this key" in str(answer.error)


def test_the_next_worker_publishes_in_place_of_worker_0_if_the_others_go_on_without_it() -> None:
    services = Services(workers=4)
    membership = services.job.membership
    membership.policy = Policy(workers="shrink")

    def lose(node: int) -> list[Any]:
        return services.scheduler._carry(membership.lose(services.job.member(node), "killed", 1.0)).answers

    services.ask(9, Op.PUBLISH, {"a": 1})
    assert services.ask(11, Op.LOOKUP, ["a", "b"]).answers == services.ask(15, Op.LOOKUP, ["b"]).answers == []
    assert [(a.request.sender, a.body) for a in lose(9)] == [(11, {"a": 1})], "what there is; the others wait on"
    assert [a.body for a in services.ask(11, Op.LOOKUP, ["c"]).answers] == [{}]
    assert services.ask(13, Op.LOOKUP, ["b"]).answers == []
    assert [(a.request.sender, a.body) for a in lose(11)] == [(13, {})]
    assert services.scheduler.missing(Message(Kind.REQUEST, op=Op.LOOKUP)) == []
    step = services.ask(13, Op.PUBLISH, {"b": 2})
    assert (15, {"b": 2}) in [(a.request.sender, a.body) for a in step.answers]
    assert services.ask(15, Op.LOOKUP, ["c"]).answers == []
    [answer] = [a for a in services.ask(13, Op.LEAVE, ["finished", "", True]).answers if a.request.op == Op.LOOKUP]
    assert isinstance(answer.error, WorkerFinished), "nobody takes the place of one that has finished"


def test_the_job_is_over_when_the_last_worker_has_left() -> None:
    services = Services()
    assert services.ask(9, Op.LEAVE, ["finished", "", False]).over is None
    step = services.ask(11, Op.LEAVE, ["finished", "", False])
    assert step.over is True
    assert (8, ["over", True]) in step.events


def test_a_job_with_a_failure_is_over_and_not_clean() -> None:
    services = Services()
    services.ask(9, Op.LEAVE, ["failed", "x", False])
    assert services.ask(11, Op.LEAVE, ["finished", "", False]).over is False


def test_an_operation_that_is_unknown_is_refused() -> None:
    [answer] = Services().ask(9, 99, None).answers  # type: ignore[arg-type]
    assert isinstance(answer.error, ProtocolError)


def test_it_says_whom_a_parked_request_waits_for() -> None:
    services = Services()
    barrier = Message(Kind.REQUEST, op=Op.BARRIER, sender=9, body=[4, 1])
    lookup = Message(Kind.REQUEST, op=Op.LOOKUP, sender=9, body=["k"])
    leave = Message(Kind.REQUEST, op=Op.LEAVE, sender=9, body=["finished", "", True])
    assert services.scheduler.on_request(b"", barrier).answers == []
    assert services.scheduler.on_request(b"", lookup).answers == []
    assert services.scheduler.missing(barrier) == ["worker 1"]
    assert services.scheduler.missing(lookup) == ["the init of 'k' by worker 0"]
    services.scheduler.on_request(b"", leave)
    assert services.scheduler.missing(leave) == ["worker 1"]

"""Which server that dies is awaited, and who may take its place, when each has a replica at the next one's."""

from __future__ import annotations

import pytest

from pslite import ids
from pslite.errors import JoinError, PeerLost
from pslite.postoffice.membership import Hint, Member, Membership, Outcome, Policy, State
from pslite.wire import Kind, Message, Op


class Job:
    """A job with servers whose pids are 100 and so on."""

    def __init__(self, servers: int) -> None:
        self.membership = Membership(1, servers, "job", None, 0.0, Policy("wait", "raise", 60.0, 1))
        self._serial = 0
        self.join("worker", 0, 1)
        for rank in range(servers):
            self.join("server", rank, 100 + rank)
        assert self.membership.complete

    def join(self, role: str, rank: int, pid: int, restarts: int = 0) -> Outcome:
        self._serial += 1
        addresses = [f"ipc://{self._serial}"] if role == "server" else []
        body = [role, rank, addresses, "host", pid, restarts, ""]
        request = Message(Kind.REQUEST, op=Op.JOIN, incarnation=self._serial, body=body)
        return self.membership.join(b"link", request, 0.0)

    def server(self, rank: int) -> Member:
        member = self.membership.find(ids.server_id(rank))
        assert member is not None
        return member

    def die(self, rank: int) -> Outcome:
        return self.membership.lose(self.server(rank), "killed", 1.0)

    def taken_over(self, rank: int, by: int) -> None:
        """By the process of another server."""
        outcome = self.join("server", rank, 100 + by, 1)
        assert [member.node for member in outcome.back] == [ids.server_id(rank)]
        for node in list(self.server(rank).untold):
            self.membership.acknowledged(ids.server_id(rank), self._serial, node)
        assert self.server(rank).state == State.UP

    def states(self) -> list[str]:
        return [self.server(rank).state.value for rank in range(self.membership.wanted["server"])]


def test_a_server_with_a_replica_is_awaited_and_its_backup_takes_its_place() -> None:
    job = Job(3)
    outcome = job.die(1)
    assert [member.node for member in outcome.away] == [ids.server_id(1)]
    assert not outcome.ended
    job.taken_over(1, by=2)
    assert job.states() == ["up", "up", "up"]
    assert [(m.rank, m.pid) for m in job.membership.given_up()] == [(1, 101)]  # if it is only stopped it must end


@pytest.mark.parametrize("pid", [100, 4711])
def test_nobody_else_gets_its_place(pid: int) -> None:
    job = Job(3)
    job.die(1)
    [answer] = job.join("server", 1, pid, 1).answers
    assert isinstance(answer.error, JoinError)
    assert "the process that has its replica" in str(answer.error)
    job.taken_over(1, by=2)


def test_a_server_that_lives_cannot_be_replaced() -> None:
    job = Job(2)
    assert not job.join("server", 0, 4711, 9).away
    assert job.states() == ["up", "up"]


@pytest.mark.parametrize(("second", "awaited"), [(0, False), (1, False), (2, True), (3, True)])
def test_the_second_death(second: int, awaited: bool) -> None:
    """Server 0 has lost its backup, and server 1 is now where server 2 is; that one has its own at server 3."""
    job = Job(4)
    job.die(1)
    job.taken_over(1, by=2)
    outcome = job.die(second)
    assert [member.rank for member in (outcome.away if awaited else outcome.ended)] == [second]
    if not awaited:
        assert isinstance(job.server(second).error, PeerLost)


def test_a_server_and_its_backup_die_together() -> None:
    job = Job(4)
    job.die(1)
    outcome = job.die(2)
    assert [member.rank for member in outcome.away] == [2]
    assert [member.rank for member in outcome.ended] == [1]
    assert "so did its backup" in str(job.server(1).error)


@pytest.mark.parametrize(("pid", "dead"), [(100, True), (4711, False)])
def test_the_launcher_says_that_its_process_ended(pid: int, dead: bool) -> None:
    job = Job(2)
    hints = [Hint("server", 0, pid, -9), Hint("server", 1, 101, None)]
    assert bool(job.membership.on_hints(hints, 1.0).away) is dead
    assert not job.membership.on_hints(hints, 1.1).ended  # it is not started again, but its backup is coming
    assert job.states() == ["away" if dead else "up", "up"]

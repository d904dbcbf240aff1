"""Servers have replicas at each other's: one dies at any point, its backup goes on with all that was acknowledged."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from kvstore.server.replication import Replication
from pslite import Config, Postoffice, failpoints
from pslite.errors import ConfigError, PeerLost, ProtocolError
from pslite.postoffice import membership
from pslite.wire import Kind, Message, Op
from tests.harness import wait_until

from .hosted_jobs import Job, job, prepare, result, same, work

POINTS = ("before_replicate", "after_replicate", "after_apply_before_ack", "after_ack")


@pytest.fixture(autouse=True)
def found_dead_soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In one process no connection breaks but by death."""
    monkeypatch.setattr(membership, "LOST_AFTER", 0.02)
    monkeypatch.setattr(membership, "BEAT_INTERVAL", 0.02)
    yield
    failpoints.arm(None)


class Death:
    """The N-th time that a server comes to a point is the last thing that it does."""

    def __init__(self, point: str, rank: int, number: int, job: Job) -> None:
        self._cluster, self.rank, self._left = job.cluster, rank, number
        self.died = False
        failpoints.arm({point: self._come})

    def _come(self) -> None:
        office = getattr(sys._getframe(2).f_locals["self"], "_office", None)
        if office is None or office.role != "server" or office.rank != self.rank or self.died:
            return
        self._left -= 1
        if not self._left:
            self.died = True
            self._cluster.kill(office)


def run(type: str, rule: str | None, die: Callable[[Job], Death] | None = None, servers: int = 2) -> list[Any]:
    """Some steps of all workers, in which a server may die; the values in the end."""
    with job(type, replicas=1, servers=servers) as jobs:
        jobs.all(lambda kv: prepare(kv, rule))
        death = None if die is None else die(jobs)
        jobs.all(lambda kv: work(kv, range(6)))
        first, second = jobs.all(result)
        same(first, second)
        assert death is None or death.died
        jobs.end(*[] if death is None else [death.rank])
        return list(first)


@pytest.mark.parametrize("rule", [None, "test", "sgd", "adam", "2bit"])
def test_the_result_has_the_bits_of_a_job_in_which_nobody_died(rule: str | None) -> None:
    expected = run("dist_sync", rule)
    for number, point in enumerate(POINTS, 2):
        same(run("dist_sync", rule, partial(Death, point, number % 2, number)), expected)


def test_every_push_of_an_asynchronous_job_is_in_exactly_once() -> None:
    expected = run("dist_async", "test")
    for number, point in enumerate(POINTS, 3):
        same(run("dist_async", "test", partial(Death, point, number % 2, number)), expected)


def test_two_servers_of_four_die() -> None:
    def steps(*dead: int) -> list[Any]:
        with job("dist_sync", replicas=1, servers=4) as jobs:
            jobs.all(lambda kv: prepare(kv, "adam"))
            for number, rank in enumerate(dead):
                jobs.all(lambda kv, n=number: work(kv, range(3 * n, 3 * n + 3)))
                jobs.cluster.kill(jobs.cluster.servers[rank])
            jobs.all(lambda kv: work(kv, range(3 * len(dead), 7)))
            values = list(jobs.all(result)[1])
            jobs.end(*dead)
            return values

    expected = steps()
    same(steps(0, 2), expected)  # 1 and 3 go on for them
    same(steps(3, 1), expected)


def test_the_death_of_a_process_that_serves_for_another_ends_the_job() -> None:
    with job("dist_sync", replicas=1) as jobs:
        jobs.all(lambda kv: prepare(kv, None))
        jobs.cluster.kill(jobs.cluster.servers[0])
        jobs.all(lambda kv: work(kv, range(1)))
        jobs.all(result)
        for office in jobs.cluster.servers:  # both are one process now
            jobs.cluster.kill(office)
        for kv in jobs.stores:
            with pytest.raises(PeerLost, match=r"server [01] \(.*is lost"):
                result(kv)


class Valve:
    """Holds back what servers tell their backups, while it is closed."""

    def __init__(self) -> None:
        self.closed = False

    def __call__(self, sender: str, receiver: str, message: Message) -> int:
        return 0 if self.closed and (message.kind, message.op) == (Kind.REQUEST, Op.REPLICATE) else 1


def home(kv: Any, key: str) -> int:
    """The rank of the server that has a key."""
    [piece] = kv._records[key].pieces
    ranges = kv._office.server_key_ranges()
    return next(rank for rank, (low, high) in enumerate(ranges) if low <= piece.wire < high)


def beside(jobs: Job, key: str) -> str:
    """A new key of the same server."""
    others = [f"other {number}" for number in range(4)]
    jobs.all(lambda kv: kv.init(others, [np.zeros((300, 4), np.float32)] * len(others)))
    return next(other for other in others if home(jobs.stores[0], other) == home(jobs.stores[0], key))


def test_nobody_sees_what_could_be_lost() -> None:
    valve = Valve()
    with job("dist_async", replicas=1, fault=valve, resend_timeout=0.05) as jobs:
        stores: list[Any] = jobs.stores
        first, second = stores
        jobs.all(lambda kv: prepare(kv, "test"))
        other = beside(jobs, "dense")
        assert second.pull("dense")[0, 0] == 0
        valve.closed = True
        pushed = first.push("dense", np.ones((300, 4), np.float32))
        first._worker.customer.settle(5)  # the server has it
        pulled = second.pull("dense", wait=False)
        second.pull(other)  # of keys that did not change answers come at once
        assert not pushed.done()
        assert not pulled.done()
        valve.closed = False
        pushed.wait()
        assert pulled.wait()[0, 0] == 1
        jobs.end()


def test_a_server_whose_backup_refuses_answers_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    refuses = threading.Event()
    refused: list[object] = []
    take = Replication._take

    def refuse(self: Replication, change: list[Any]) -> None:
        if not refuses.is_set():
            return take(self, change)
        refused.append(change)
        raise ProtocolError("another process has its place")

    monkeypatch.setattr(Replication, "_take", refuse)
    with job("dist_async", replicas=1) as jobs:
        stores: list[Any] = jobs.stores
        jobs.all(lambda kv: prepare(kv, "test"))
        other, rank = beside(jobs, "dense"), home(stores[0], "dense")
        refuses.set()
        pushed = stores[0].push("dense", np.ones((300, 4), np.float32))
        wait_until(lambda: refused)
        stores[1].pull(other)
        assert not pushed.done()
        jobs.cluster.kill(jobs.cluster.servers[rank])
        pushed.wait()  # it is in at the backup, which has its place
        assert stores[1].pull("dense")[0, 0] == 1
        jobs.end(rank)


def test_a_replica_needs_another_server() -> None:
    with pytest.raises(ConfigError, match="start at least 2"):
        Postoffice(Config(role="worker", num_servers=1, root="inproc://x", replicas=1))

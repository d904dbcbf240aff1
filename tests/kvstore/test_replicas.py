"""Servers have replicas at each other's: one dies at any point, its backup goes on with all that was acknowledged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from pslite import failpoints
from pslite.postoffice import membership

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

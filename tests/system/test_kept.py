"""Servers of real jobs are killed, started again by the launcher, and nothing that was acknowledged is lost."""

from __future__ import annotations

import pytest

from kvstore.chaos import lanes
from kvstore.chaos.plan import Injection
from kvstore.chaos.trial import Outcome, Trial
from kvstore.chaos.worker import Job
from pslite.failpoints import POINTS

pytestmark = pytest.mark.processes

WIDTH = lanes.width(2)


def job(type: str) -> Job:
    """Some small keys, which are bundled, and a large one."""
    return Job(type, 2, (WIDTH,) * 5 + (WIDTH * 5000,))


def check(outcome: Outcome) -> None:
    assert outcome.ok, outcome
    assert outcome.pushes > 0


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
def test_a_server_that_is_killed_goes_on(type: str) -> None:
    faults = [Injection(at, "kill", "server", 0) for at in (0.3, 1.5)]
    with Trial(job(type), 1, None, ["--max-restarts", "2"]) as trial:
        outcome = trial.run("kill-server", 1, 3.0, faults, must_survive=True)
    check(outcome)
    assert outcome.recovered is not None


@pytest.mark.parametrize("point", POINTS)
def test_a_server_that_dies_at_a_point(point: str) -> None:
    flags = ["--max-restarts", "1", "--env", f"PS_FAILPOINTS={point}=kill@40"]
    with Trial(job("dist_async"), 1, None, flags) as trial:
        outcome = trial.run(point, 1, 1.5, [], must_survive=True)
        words = trial._output.read_text()
    check(outcome)
    assert "restart 1 of 1" in words

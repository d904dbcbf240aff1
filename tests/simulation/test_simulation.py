"""Thousands of schedules of whole jobs; and the bugs that they must find."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from . import campaign
from .bugs import BUGS
from .job import Result, simulate
from .plan import Plan

SCHEDULES = int(os.environ.get("SIM_SCHEDULES", "5000"))
BLOCKS = 5
FIND_WITHIN = 2000  # schedules


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_schedule_breaks_a_promise(block: int) -> None:
    count = SCHEDULES // BLOCKS
    first = campaign.first_seed() + block * count
    print(f"seeds from {first}")
    summary = campaign.run(first, count, jobs=2)
    print(summary)
    assert not summary.failed, "\n\n".join(map(campaign.told, summary.failed))
    assert summary.schedules == count
    assert summary.restarts > count / 2, "processes die in most of them"


def found(bug: str) -> Result:
    """The first schedule that finds a bug."""
    results: list[Result] = []
    campaign.run_here(range(FIND_WITHIN), bug, results.append, at_most=1)
    return results[-1]


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(bug: str) -> None:
    result = found(bug)
    assert result.violation
    assert result.story, "it tells the last events"
    assert f"python -m tests.simulation --seed {result.seed} --bug {bug}" in campaign.told(result, bug)


def test_a_seed_is_a_trace() -> None:
    again = [campaign.run_one(seed).digest for seed in range(5) for _ in range(2)]
    assert again[::2] == again[1::2]
    assert len(set(again)) == 5
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "tests.simulation", "--seed", "3"]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"digest {again[6]:08x}" in other.stdout


def test_a_failed_schedule_is_told_and_can_be_run_again() -> None:
    bug = "numbers_are_not_kept"
    result = found(bug)
    command = [sys.executable, *campaign.replay(result.seed, bug).split()[1:]]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert result.violation in again.stdout
    assert f"digest {result.digest:08x}" in again.stdout


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("style", ["bundle", "list", "single"])
def test_a_calm_job_ends_at_once(sync: bool, style: str) -> None:
    result = simulate(Plan(sync=sync, style=style, think=0.0))
    assert not result.violation
    assert result.restarts == 0
    assert result.seconds < 2

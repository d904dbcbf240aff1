"""A seed is a trace; a schedule that fails is told, and can be run again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from . import campaign
from .job import simulate
from .plan import Plan
from .test_bugs import found


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

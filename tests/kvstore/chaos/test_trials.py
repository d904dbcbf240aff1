"""Real jobs that are done harm."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kvstore.chaos import lanes, trial
from kvstore.chaos.plan import Injection
from kvstore.chaos.trial import Outcome, Trial
from kvstore.chaos.worker import Job
from launcher import commands

pytestmark = pytest.mark.processes


def run(*faults: Injection, type: str = "dist_async", seconds: float = 0.5) -> Outcome:
    width = lanes.width(2)
    with Trial(Job(type, 2, (width, width, width * 5000)), 1, None, ()) as started:
        return started.run("a case", 1, seconds, [faults], False)


def test_a_pause_loses_nothing() -> None:
    outcome = run(Injection(0.1, "pause", "server", 0), type="dist_sync")
    assert outcome.ok and outcome.status == 0 and outcome.pushes > 0, outcome
    assert len(outcome.recovered) == 1


@pytest.mark.parametrize("role", ["worker", "server", "scheduler"])
def test_a_killed_process_ends_the_job_with_a_report_that_names_it(role: str) -> None:
    outcome = run(Injection(0.1, "kill", role, 0))
    assert outcome.ok and outcome.status == 137, outcome
    assert outcome.ended is not None


def test_the_watchdog_shows_all_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "END_WITHIN", 0.0)
    outcome = run()
    assert outcome.hung and not outcome.ok
    assert outcome.stacks.count("(most recent call first)") >= 4, outcome.stacks


def test_the_command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands.os, "execve", lambda path, argv, env: sys.exit(subprocess.call(argv, env=env)))
    options = "-n 1 -s 1 --seconds 1 --faults none --seed 5 --json"
    with pytest.raises(SystemExit) as ended:
        commands.main(["chaos", *options.split(), "--", "--env", "PS_VERBOSE=0"])
    out, err = capfd.readouterr()
    assert (ended.value.code, err) == (0, "pslite chaos: --seed 5\n")
    [case] = json.loads(out)["cases"]
    assert (case["seeds"], case["lost"], case["doubled"], case["hung"], case["wrong"]) == ([5, 5], 0, 0, 0, 0)
    assert case["pushes"] > 0

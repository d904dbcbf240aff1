"""Real jobs that are done harm."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from kvstore.chaos import lanes
from kvstore.chaos.options import Options
from kvstore.chaos.plan import Injection
from kvstore.chaos.stores import ours
from kvstore.chaos.trial import Outcome, Trial
from kvstore.chaos.worker import Job
from launcher import commands

pytestmark = pytest.mark.processes


def run(*faults: Injection, type: str = "dist_async", seconds: float = 0.5, within: float = 15.0) -> Outcome:
    width = lanes.width(2)
    case = "+".join(f"{fault.how}-{fault.role}" for fault in faults)
    store = ours(Options(workers=2, servers=1), case)
    with Trial(Job(type, 2, (width, width, width * 5000)), store, within) as started:
        return started.run(case, 1, seconds, [faults], False)


def test_a_pause_loses_nothing() -> None:
    outcome = run(Injection(0.1, "pause", "server", 0), type="dist_sync")
    assert outcome.ok and outcome.status == 0 and outcome.pushes > 0, outcome
    assert len(outcome.recovered) == 1


@pytest.mark.parametrize("role", ["worker", "server", "scheduler"])
def test_a_killed_process_ends_the_job_with_a_report_that_names_it(role: str) -> None:
    outcome = run(Injection(0.1, "kill", role, 0))
    assert outcome.ok and outcome.status == 137, outcome
    assert outcome.ended is not None


@pytest.mark.parametrize("role", ["worker", "scheduler"])
def test_a_process_that_is_started_again_goes_on(role: str) -> None:
    outcome = run(Injection(0.1, "restart", role, 0), type="dist_sync")
    assert outcome.ok and outcome.status == 0, outcome


@pytest.mark.parametrize("role", ["server", "scheduler"])
def test_garbage_is_not_noticed(role: str) -> None:
    outcome = run(Injection(0.1, "garbage", role, 0))
    assert outcome.ok and outcome.status == 0, outcome


def test_the_watchdog_shows_all_stacks() -> None:
    outcome = run(within=0.0)
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

"""A peer is done harm as a black box: here by a stand-in for MXNet, and by MXNet where there is one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kvstore.chaos import lanes
from kvstore.chaos.options import Options
from kvstore.chaos.plan import Injection
from kvstore.chaos.stores import check_peer, mxnet
from kvstore.chaos.trial import Outcome, Trial
from kvstore.chaos.worker import Job

pytestmark = pytest.mark.processes

PYTHON = os.environ.get("CHAOS_PEER_PYTHON")
ROOT = Path(__file__).parents[3]


def run(*faults: Injection, python: str = sys.executable, workers: int = 1, within: float = 15.0) -> Outcome:
    store = mxnet(Options(workers=workers, servers=1, peer="mxnet", peer_python=python), "none")
    width = lanes.width(workers)
    with Trial(Job("dist_async", workers, (width, width * 100)), store, within) as started:
        return started.run("none", 1, 0.2, [faults], False)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent / 'standin'}:{ROOT}")
    return monkeypatch


def test_a_job_that_is_left_alone(standin: pytest.MonkeyPatch) -> None:
    standin.setenv("STANDIN", "works")
    outcome = run()
    assert outcome.ok and outcome.status == 0 and outcome.pushes > 0 and outcome.store == "mxnet", outcome


def test_a_push_that_is_lost_is_found(standin: pytest.MonkeyPatch) -> None:
    standin.setenv("STANDIN", "loses")
    outcome = run()
    assert outcome.lost == 1 and "push 2 was lost" in outcome.problems[0], outcome


def test_who_hangs_is_named_and_ended(standin: pytest.MonkeyPatch) -> None:
    standin.setenv("STANDIN", "hangs")
    outcome = run(within=0.5)
    lines = outcome.stacks.splitlines()
    assert outcome.hung and outcome.status == 0, outcome
    assert lines[-1].startswith("scheduler (pid ") and lines[-1].endswith(") still ran")
    assert any(line.startswith("worker 0 (pid ") and line.endswith(") ended with exit code 0") for line in lines)


def test_an_error_is_an_end(standin: pytest.MonkeyPatch) -> None:
    standin.setenv("STANDIN", "raises")
    outcome = run()
    assert outcome.status == 1 and "the server is gone" in outcome.problems[0], outcome


def test_an_interpreter_without_it_is_refused() -> None:
    with pytest.raises(Exception, match=r"No module named 'mxnet'; python -m venv mx"):
        check_peer(sys.executable)


@pytest.mark.skipif(PYTHON is None, reason="CHAOS_PEER_PYTHON names no interpreter that has MXNet 1.9.1")
def test_mxnet() -> None:
    assert PYTHON is not None
    check_peer(PYTHON)
    left_alone, killed = run(python=PYTHON, workers=2), run(Injection(0.1, "kill", "server", 0), python=PYTHON)
    assert left_alone.ok and left_alone.status == 0, left_alone
    assert killed.hung and " still ran" in killed.stacks, killed

"""Servers come and go while workers push: nothing is lost or doubled, whoever dies meanwhile."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from kvstore.chaos import lanes
from kvstore.chaos.options import END_WITHIN, Options
from kvstore.chaos.stores import ours
from kvstore.chaos.trial import Trial
from kvstore.chaos.worker import Job
from launcher.control import ask
from launcher.errors import UsageError
from tests.harness import wait_until

from .jobs import LONGEST, SCRIPTS, launch

pytestmark = pytest.mark.processes

WIDTH = lanes.width(2)
SHARDS = ["--max-restarts", "3", "--max-servers", "3"]
IN_THE_MIDDLE = (
    "server0:before_release=kill,server1:before_adopt=kill;"  # server 0 dies with all ranks; server 1 with its first
    "server0:after_release=kill,server1:before_release=kill"  # and with some
)


def job(type: str) -> Job:
    """Some small keys, which are bundled, and a large one; it is scaled when everybody pushes."""
    return Job(type, 2, (WIDTH,) * 5 + (WIDTH * 5000,))


def running(type: str, *flags: str) -> Trial:
    return Trial(job(type), ours(Options(workers=2, servers=1, launcher=[*SHARDS, *flags]), ""), END_WITHIN)


def scale(trial: Trial, servers: int) -> str:
    """Once everybody has pushed since the last time."""
    marks = [int(trial._ledger.acked(rank).min()) for rank in range(2)]
    wait_until(
        lambda: all(trial._ledger.acked(rank).min() > mark for rank, mark in enumerate(marks)), LONGEST, "some pushes"
    )
    found = re.search(r"--job (\S+) ", trial._output.read_text())
    assert found is not None
    return ask(Path(found[1]), {"servers": servers}, LONGEST)


def without_times(text: str) -> str:
    return re.sub(r" \([0-9.]+ s\)", "", text)


TO_THREE = "3 servers: moved shard 1 from server 0 to 1, shard 2 from server 0 to 2"
TO_ONE = "1 server: moved shard 1 from server 1 to 0, shard 2 from server 2 to 0"


def test_servers_come_and_go_while_workers_push() -> None:
    with running("dist_async") as trial:
        assert without_times(scale(trial, 3)) == TO_THREE
        assert without_times(scale(trial, 2)) == "2 servers: moved shard 2 from server 2 to 0"
        assert scale(trial, 2) == "2 servers already"
        with pytest.raises(UsageError, match="4 servers: this job has 3 shards: give 1 to 3"):
            scale(trial, 4)
        assert without_times(scale(trial, 1)) == "1 server: moved shard 1 from server 1 to 0"
        outcome = trial.run("scaled", 0, 0, [], must_survive=True)
    assert outcome.ok, outcome
    assert not outcome.deaths


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
def test_a_process_that_dies_in_the_middle_of_a_move(type: str) -> None:
    """Source and target, before and after the rank was given away."""
    with running(type, "--env", f"PS_FAILPOINTS={IN_THE_MIDDLE}") as trial:
        assert without_times(scale(trial, 3)) == TO_THREE
        assert without_times(scale(trial, 1)) == TO_ONE
        outcome = trial.run("scaled", 0, 0, [], must_survive=True, deaths=3)
    assert outcome.ok, outcome
    assert sorted(outcome.deaths) == ["server 0"] * 2 + ["server 1"]


def test_the_bits_are_those_of_a_job_that_was_never_scaled() -> None:
    moved = launch("-n", 2, "-s", 1, *SHARDS, "--no-prefix", sys.executable, SCRIPTS / "scaled.py")
    assert moved.returncode == 0, moved.stderr
    assert moved.stderr.count("servers: moved shard") == 2
    steps = re.findall(r"\d+ steps", moved.stdout)[0].split()[0]
    still = launch("-n", 2, "-s", 1, *SHARDS, "--no-prefix", sys.executable, SCRIPTS / "scaled.py", steps)
    assert still.returncode == 0, still.stderr
    assert sorted(moved.stdout.splitlines()) == sorted(still.stdout.splitlines())

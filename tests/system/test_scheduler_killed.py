"""The scheduler of a training job is killed: the job goes on, and ends as it would have."""

from __future__ import annotations

import re
import sys

import pytest

from .jobs import SCRIPTS, launch

pytestmark = pytest.mark.processes

JOB = ("-n", 3, "-s", 2, "--max-restarts", 5)


def weights(where: str, **env: str) -> tuple[set[str], str]:
    """What the workers have at the end, and what the launcher said; they must have ended well."""
    done = launch(*JOB, sys.executable, SCRIPTS / "orphaned.py", where, **env)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"weights (.*)", done.stdout)
    assert len(said) == 3
    return set(said), done.stderr


@pytest.fixture(scope="module")
def undisturbed() -> set[str]:
    expected, _ = weights("nowhere")
    assert len(expected) == 1
    return expected


@pytest.mark.parametrize("where, transport", [
    ("start", "shm"),
    ("rounds", "shm"),
    ("rounds", "tcp"),
    ("barrier", "ipc"),
    ("init", "shm"),
    ("exit", "shm"),
    ("end", "tcp"),
])  # fmt: skip
def test_a_job_ends_well_without_its_first_scheduler(undisturbed: set[str], where: str, transport: str) -> None:
    got, said = weights(where, PSLITE_TRANSPORT=transport)
    assert got == undisturbed
    if where != "end":  # else it may have been over anyway
        assert len(re.findall(r"scheduler on localhost \(pid \d+\) died", said)) == (3 if where == "rounds" else 1)

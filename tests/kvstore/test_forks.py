"""Real jobs whose workers fork after create()."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.launcher.launching import launch

SCRIPT = Path(__file__).with_name("forking.py")


@pytest.mark.processes
def test_a_dataloader_that_forks_after_create(torch: ModuleType) -> None:
    job = launch("-n", "2", "-s", "1", sys.executable, str(SCRIPT), "dataloader")
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count("fine") == 2


@pytest.mark.processes
def test_children_do_not_speak_for_their_parents() -> None:
    job = launch("-n", "2", "-s", "1", sys.executable, str(SCRIPT), "fork")
    assert job.returncode == 0, job.stdout + job.stderr
    assert job.stdout.count("fine") == 2

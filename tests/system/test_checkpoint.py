"""A job under the launcher is saved, killed, and started again with another number of servers."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.harness import is_running, wait_until
from tests.launcher.launching import children, kill_all, launched, pids

from .jobs import LONGEST, SCRIPTS, launch

pytestmark = pytest.mark.processes

WORKERS = 2


def command(how: str, file: Path, results: Path) -> list[str]:
    results.mkdir()
    return [sys.executable, str(SCRIPTS / "checkpointed.py"), how, str(file), str(results)]


def weights(results: Path) -> list[dict[str, bytes]]:
    found = []
    for rank in range(WORKERS):
        with np.load(results / f"{rank}.npz") as arrays:
            found.append({name: arrays[name].tobytes() for name in arrays.files})
    return found


def test_training_goes_on_with_the_same_bits_on_another_number_of_servers(tmp_path: Path) -> None:
    file, notes = tmp_path / "training.ckpt", tmp_path / "pids"
    notes.mkdir()
    done = launch("-n", WORKERS, "-s", 2, *command("unbroken", file, tmp_path / "unbroken"))
    assert done.returncode == 0, done.stderr
    expected = weights(tmp_path / "unbroken")

    saving = command("saves", file, tmp_path / "none")
    with launched("-n", str(WORKERS), "-s", "3", *saving, PIDS=str(notes)) as launcher:
        found = pids(notes, 1 + 3 + WORKERS)
        try:
            wait_until(file.with_suffix(".beyond").exists, LONGEST, "training beyond the file")
            for pid in [launcher.pid, *children(launcher.pid)]:  # first, so that nobody puts things in order
                os.kill(pid, signal.SIGKILL)
        finally:
            kill_all(found)
        wait_until(lambda: not any(map(is_running, found.values())), LONGEST, "the end of all")
    assert not os.listdir(tmp_path / "none")

    done = launch("-n", WORKERS, "-s", 1, *command("loads", file, tmp_path / "resumed"))
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "resumed") == expected

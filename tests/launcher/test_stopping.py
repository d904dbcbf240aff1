"""However the launcher ends, nothing of its job is left. Every test looks at the pids themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import is_running, wait_until
from tests.launcher.launching import LAUNCH, NOTE_PID, SLEEP, children, environment, kill_all, launched, pids

pytestmark = pytest.mark.processes

STUBBORN = NOTE_PID + (
    "for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(n, signal.SIG_IGN)\n"
    "print('ready')\n"
    "while True: time.sleep(60)\n"
)


@contextmanager
def job(code: str, notes: Path, *options: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, int]]]:
    """A running job of four processes, and their pids."""
    with launched("-n", "2", "-s", "1", *options, sys.executable, "-c", code, PIDS=str(notes), **env) as launcher:
        found = pids(notes, 4)
        try:
            yield launcher, found
        finally:
            kill_all(found)


def wait_until_none_left(found: dict[str, int], seconds: float) -> None:
    wait_until(lambda: not any(map(is_running, found.values())), seconds, f"the end of {found}")


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_to_the_launcher_ends_all(notes: Path, signum: signal.Signals, status: int) -> None:
    with job(SLEEP, notes) as (launcher, found):
        launcher.send_signal(signum)
        _, stderr = launcher.communicate(timeout=30)
        assert launcher.returncode == status
        assert not any(map(is_running, found.values()))
        assert stderr.splitlines()[-1] == f"pslite: stopped by {signum.name}"


def test_nothing_survives_a_kill_of_the_launcher_for_five_seconds(notes: Path, short_tmp: Path) -> None:
    with job(STUBBORN, notes, TMPDIR=str(short_tmp)) as (launcher, found):
        launcher.kill()
        wait_until_none_left(found, 5)
        wait_until(lambda: not list(short_tmp.iterdir()), 5, "the removal of the job's directory")


def test_helpers_that_a_process_started_end_with_it(notes: Path) -> None:
    code = NOTE_PID + (
        "import subprocess\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "with open(file.name[:-4] + '-helper', 'w') as file:\n"
        "    file.write(str(helper.pid))\n"
    )
    with launched("-n", "1", "-s", "1", sys.executable, "-c", code, PIDS=str(notes)) as launcher:
        _, stderr = launcher.communicate(timeout=30)
        assert (launcher.returncode, stderr) == (0, "")
    found = pids(notes, 6)
    assert not any(map(is_running, found.values()))


def test_the_second_ctrl_c_kills_at_once(notes: Path) -> None:
    with job(STUBBORN, notes, "--grace", "60") as (launcher, found):
        assert launcher.stdout is not None and launcher.stderr is not None
        for _ in range(4):
            launcher.stdout.readline()  # all ignore signals by now
        launcher.send_signal(signal.SIGINT)
        while "press Ctrl-C" not in launcher.stderr.readline():
            pass
        assert all(map(is_running, found.values()))
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=30) == 130
        assert not any(map(is_running, found.values()))


def test_a_launcher_in_the_background_hears_sigint(notes: Path) -> None:
    """A shell without job control starts background jobs with SIGINT ignored, and that is inherited."""
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    arguments = [*LAUNCH, "-n", "1", "-s", "1", sys.executable, "-c", SLEEP]
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=environment(PIDS=str(notes)), stderr=subprocess.DEVNULL
    )
    found = pids(notes, 3)
    try:
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=30) == 130
        assert not any(map(is_running, found.values()))
    finally:
        launcher.kill()
        launcher.wait()
        kill_all(found)


def test_a_launcher_whose_reader_went_away_stops(notes: Path) -> None:
    with job(NOTE_PID + "while True: print('x' * 1000)\n", notes) as (launcher, found):
        assert launcher.stdout is not None
        launcher.stdout.close()
        assert launcher.wait(timeout=30) == 141
        assert not any(map(is_running, found.values()))


def test_ctrl_c_works_while_nobody_reads_the_output(notes: Path) -> None:
    with job(NOTE_PID + "while True: print('x' * 1000)\n", notes, "--grace", "1") as (launcher, found):
        launcher.send_signal(signal.SIGTERM)
        wait_until_none_left(found, 30)


def test_the_death_of_the_agent_is_told_and_ends_all(notes: Path, short_tmp: Path) -> None:
    with job(SLEEP, notes, TMPDIR=str(short_tmp)) as (launcher, found):
        (agent,) = children(launcher.pid)
        os.kill(agent, signal.SIGKILL)
        _, stderr = launcher.communicate(timeout=30)
        assert launcher.returncode == 1
        assert "pslite: localhost: the launcher's agent died; its processes were killed" in stderr.splitlines()[-2:]
        wait_until_none_left(found, 30)
        assert not list(short_tmp.iterdir())

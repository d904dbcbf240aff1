"""A process that writes a checkpoint of a job is killed, or its disk fails, at one system call after the other."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.checkpoint.directory import Directory
from kvstore.checkpoint.job import Id
from tests.cases.seed import SEED
from tests.kvstore.job_directory import found, write

from .jobs import LONGEST, ROOT

pytestmark = pytest.mark.processes

CALLS = "openat,write,fsync,rename,renameat,renameat2,unlink,unlinkat"
EVERY = int(os.environ.get("EVERY_CALL", 5))  # of the calls one in so many; 1 takes a minute


@pytest.fixture(scope="module")
def strace() -> str:
    program = shutil.which("strace")
    if program is None:
        reason = "needs strace: apt-get install strace"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return program


def run(strace: str, place: Path, trace: Path, *inject: str) -> int:
    """Write the second checkpoint over a first one; returns the program's exit status."""
    shutil.rmtree(place, ignore_errors=True)
    directory = Directory(place)
    write(directory, Id(1, 1))
    directory.close()
    quiet = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the same calls
    command = [strace, "-f", "-qq", "-o", str(trace), "-e", f"trace={CALLS}", *inject]
    program = [sys.executable, "-m", "tests.kvstore.job_directory", str(place)]
    return subprocess.run(
        [*command, *program], cwd=ROOT, env=os.environ | quiet, timeout=LONGEST, stderr=subprocess.DEVNULL
    ).returncode


def newest(place: Path) -> Id | None:
    directory = Directory(place)
    try:
        return found(directory)
    finally:
        directory.close()


def test_a_checkpoint_is_there_after_a_kill_at_any_call(strace: str, tmp_path: Path) -> None:
    trace, place = tmp_path / "trace", tmp_path / "c"
    assert run(strace, place, trace) == 0
    calls = trace.read_text().splitlines()
    first = next(i for i, call in enumerate(calls, 1) if "tmp-" in call)
    seen = set()
    names = [call.split()[1].split("(")[0] for call in calls]  # behind the process's id
    for n in sorted({first - 1, *range(first - 1 + SEED % EVERY, len(calls), EVERY), len(calls) - 1}):
        nth = names[: n + 1].count(names[n])  # strace counts each call by itself
        status = run(strace, place, trace, "-e", f"inject={names[n]}:signal=KILL:when={nth}")
        assert status in (-signal.SIGKILL, 128 + signal.SIGKILL), calls[n]
        seen.add(newest(place))
    assert seen == {Id(1, 1), Id(1, 2)}


@pytest.mark.parametrize("call", ["write", "fsync", "renameat"])
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_the_last_checkpoint_is_there_when_the_disk_fails(strace: str, call: str, error: str, tmp_path: Path) -> None:
    place = tmp_path / "c"
    status = run(strace, place, tmp_path / "trace", "-e", f"inject={call}:error={error}:when=1")
    assert status == 1 and newest(place) == Id(1, 1)

"""Shared memory between real processes: chosen by itself, said in the log, and gone with who made it."""

from __future__ import annotations

import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pslite.van.shared import available
from tests.harness import wait_until

from .jobs import LONGEST, SCRIPTS, HandMadeJob, Process, launch

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not available(), reason="needs sealed memory: Linux since 5.1"),
]
SCRIPT = SCRIPTS / "shared.py"


@pytest.mark.parametrize(
    ("asked", "found"), [("", "shm"), ("auto", "shm"), ("shm", "shm"), ("ipc", "ipc"), ("tcp", "tcp")]
)
def test_what_is_chosen_is_said(asked: str, found: str) -> None:
    """In ``kv.stats()``, and in the log of the workers for each server."""
    settings = {"PSLITE_TRANSPORT": asked} if asked else {}
    done = launch("-n", 2, "-s", 2, sys.executable, SCRIPT, **settings)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"reached (.*)", done.stdout) == [found] * 2
    said = re.findall(r"(server \d) is reached by (\w+)", done.stderr + done.stdout)
    assert sorted(said) == [("server 0", found)] * 2 + [("server 1", found)] * 2


def test_without_a_directory_there_is_none(job: HandMadeJob) -> None:
    job.workers = 1
    job.start_all(SCRIPT, PSLITE_TRANSPORT="shm")
    job.wait(but=job.of("scheduler"))
    for process in job.of("worker") + job.of("server"):
        assert process.status == 1
        assert "ConfigError: PSLITE_TRANSPORT='shm'" in process.stderr
        assert "PSLITE_JOB_DIR" in process.stderr
        assert "choose auto, ipc or tcp" in process.stderr


def test_without_a_directory_auto_takes_tcp(job: HandMadeJob) -> None:
    job.workers = 1
    job.start_all(SCRIPT)
    job.wait()
    assert [p.status for p in job.processes] == [0] * 3, job.processes
    assert job.processes[-1].word("reached") == "tcp"


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("job")


def memory(process: Process, mode: str = "") -> set[str]:
    """The inodes of shared memory that a process has mapped: its own with mode ``rw``, that of others with ``r-``."""
    lines = Path(f"/proc/{process.popen.pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if "memfd:pslite" in line and line.split()[1].startswith(mode)}


@pytest.mark.parametrize("victim", ["worker", "server"])
def test_a_killed_process_leaves_nothing(job: HandMadeJob, directory: Path, victim: str) -> None:
    """Its memory is gone when the others have dropped it, which they do when it is declared lost."""
    job.workers = job.servers = 2
    over = directory / "over"
    job.start_all(SCRIPT, over, PSLITE_JOB_DIR=str(directory))
    for worker in job.of("worker"):
        worker.said("ready")
        assert worker.word("reached") == "shm"
    dead = job.worker(1) if victim == "worker" else job.of("server")[1]
    others = [p for p in job.processes if p is not dead and p.role != "scheduler"]
    own = memory(dead, "rw")
    assert own
    assert any(memory(other) & own for other in others)
    dead.signal(signal.SIGKILL)
    wait_until(lambda: not any(memory(other) & own for other in others), LONGEST, "the end of the memory")
    over.touch()
    job.wait(but=[dead])
    if victim == "worker":
        assert job.worker(0).word("pulled") == "2.0"
    left = [path.name for path in directory.iterdir() if path != over]
    assert len([name for name in left if name.endswith(".shm")]) <= 1, "a socket's name, which goes with the directory"


def test_the_launcher_leaves_nothing(short_directory: Path) -> None:
    """Also when a worker kills itself: its directory goes, with what the worker could not remove."""
    code = f"import sys, os, signal; sys.argv = ['x']; exec(open({str(SCRIPT)!r}).read().replace(\
'assert (kv.pull', 'os.kill(os.getpid(), signal.SIGKILL); assert (kv.pull'))"
    done = launch("-n", 1, "-s", 1, sys.executable, "-c", code, TMPDIR=str(short_directory))
    assert done.returncode != 0
    assert list(short_directory.iterdir()) == []


@pytest.fixture
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ps") as name:
        yield Path(name)

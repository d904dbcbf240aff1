from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from tests.harness import is_running, leaks, wait_until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]
# Prints the pid of a child that outlives it.
PARENT = [sys.executable, "-c", f"import subprocess; print(subprocess.Popen({SLEEPER!r}, stdout=-3).pid)"]


def leak_of(make: Callable[[], object]) -> list[str]:
    """What the check says while that is held which ``make`` returned."""
    before = leaks.held()
    thing = make()
    found = [f"{r.kind} {r.description}" for r in leaks.leaks_since(before, patience=0)]
    del thing
    return found


def test_nothing_is_held_when_nothing_happens() -> None:
    assert leak_of(lambda: None) == []


@pytest.mark.parametrize("daemon", [True, False])
def test_thread(daemon: bool) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="straggler", daemon=daemon)
    try:
        [found] = leak_of(thread.start)
        assert "straggler" in found
    finally:
        stop.set()
        thread.join()


def test_file_descriptor(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        assert leak_of(lambda: None) == []
        [found] = leak_of(lambda: os.dup(file.fileno()))
        number = int(found.split()[2])
        assert found == f"file descriptor {number} -> {tmp_path}/log"
        os.close(number)


def test_socket_in_place_of_another() -> None:
    """The number of descriptors stays the same, but this is another socket."""
    first = socket.socket()
    before = leaks.held()
    first.close()
    with socket.socket():
        assert [r.kind for r in leaks.leaks_since(before, patience=0)] == ["file descriptor"]


def test_zmq_socket_and_context() -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER):
        pass
    before = leaks.held()
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        found = [r.description for r in leaks.leaks_since(before, patience=0) if r.kind == "ZeroMQ"]
        assert sorted(found) == sorted([repr(context), repr(dealer)])
    assert leaks.leaks_since(before, patience=2) == []


def test_what_goes_soon_is_no_leak() -> None:
    before = leaks.held()
    timer = threading.Timer(0.05, lambda: None)
    timer.start()
    assert leaks.leaks_since(before, patience=2) == []


@pytest.mark.processes
def test_running_child() -> None:
    before = leaks.held()
    with subprocess.Popen(SLEEPER) as child:
        try:
            [found] = leaks.leaks_since(before, patience=0)
            assert found.kind == "process"
            assert found.description == f"{child.pid}: {' '.join(SLEEPER)}"
        finally:
            child.kill()


@pytest.mark.processes
def test_child_that_nobody_waited_for() -> None:
    before = leaks.held()
    with subprocess.Popen(["true"]) as child:
        wait_until(lambda: not is_running(child.pid))
        [found] = leaks.leaks_since(before, patience=0)
        assert found.description == f"{child.pid}: ended, but nobody waited for it"


@pytest.mark.processes
def test_orphan_of_a_child_is_found_and_ended() -> None:
    before = leaks.held()
    orphan = int(subprocess.run(PARENT, stdout=subprocess.PIPE, check=True).stdout)
    assert [r.identity for r in leaks.leaks_since(before, patience=0)] == [orphan]
    leaks.end_processes(before)
    assert not is_running(orphan)
    assert leaks.leaks_since(before, patience=2) == []


LEAKING_TESTS = f"""
import os, subprocess, threading
import pytest, zmq

def test_process(): globals()["a"] = subprocess.Popen({SLEEPER!r})
def test_thread(): threading.Thread(target=threading.Event().wait, daemon=True).start()
def test_zmq(): globals()["b"] = zmq.Context().socket(zmq.PULL)
def test_descriptor(): os.open(os.devnull, os.O_RDONLY)
def test_clean(): pass

@pytest.fixture(scope="module")
def shared(): os.open(os.devnull, os.O_RDONLY)
def test_innocent(shared): pass
"""


@pytest.mark.processes
def test_every_test_that_leaks_fails(tmp_path: Path) -> None:
    """The fixtures of conftest.py, in a run of their own."""
    root = Path(__file__).parents[2]
    (tmp_path / "conftest.py").write_text((root / "tests/conftest.py").read_text() + "\nleaks.PATIENCE = 0.1\n")
    (tmp_path / "test_it.py").write_text(LEAKING_TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE)
    report = result.stdout.decode()
    assert result.returncode == 1
    assert "6 passed, 5 errors" in report, report
    failed = {line.split("::")[1].split()[0] for line in report.splitlines() if " ERROR " in line and "::" in line}
    assert failed == {"test_process", "test_thread", "test_zmq", "test_descriptor", "test_innocent"}
    assert "the fixtures of this module left behind:\n  file descriptor" in report

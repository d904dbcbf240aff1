"""Runs the processes of a measured job to their end, and leaves none of them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]  # site-packages, or a source checkout
LONGEST = 1800.0  # seconds: no job takes so long unless it hangs
_GRACE = 10.0  # seconds from SIGTERM to SIGKILL
_LAST_WORDS = 15  # lines of the output of a process that failed

Process = tuple[str, Sequence[str]]  # its role, its command
_Started = tuple[str, "subprocess.Popen[bytes]", Path]  # its role, and where its output goes


class JobFailed(Exception):
    """Raised when a process of a measured job failed, or the job hung; the text has its last words."""


def execute(processes: Sequence[Process], directory: Path) -> None:
    """Start all in this order, with a list of them in ``processes.json``, and wait until all have ended.

    Raises JobFailed when one fails, or the job takes too long. Then, and at SIGINT and SIGTERM, all are ended first.
    """
    started: list[_Started] = []
    with _deferred_signals() as stop:
        try:
            for number, (role, command) in enumerate(processes):
                output = directory / f"output-{number}"
                started.append((role, _start(command, output), output))
                listed = [{"role": role, "rank": n, "pid": p.pid} for n, (role, p, _) in enumerate(started)]
                (directory / "processes.json").write_text(json.dumps(listed))  # workers, which read it, start last
            _wait(started, stop)
        finally:
            _end([process for _, process, _ in started if process.poll() is None])


def _start(command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    # Where ``python -m`` finds the packages: the source checkout, or anywhere if they are installed.
    home = output.parent if ROOT.name in ("site-packages", "dist-packages") else ROOT
    with open(output, "wb") as file:
        return subprocess.Popen(
            command, cwd=home, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def _wait(started: Sequence[_Started], stop: int) -> None:
    """Return when all have ended, or ``stop`` is readable."""
    running = {os.pidfd_open(process.pid): (role, process, output) for role, process, output in started}
    poller = select.poll()
    try:
        for descriptor in (stop, *running):
            poller.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + LONGEST
        while running:
            ready = [descriptor for descriptor, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)]
            if stop in ready:
                return
            if not ready:
                raise JobFailed(f"not done after {LONGEST:g} s: " + ", ".join(role for role, _, _ in running.values()))
            for descriptor in ready:
                ended = running.pop(descriptor)
                poller.unregister(descriptor)
                os.close(descriptor)
                _check(*ended)
    finally:
        for descriptor in running:
            os.close(descriptor)


def _check(role: str, process: subprocess.Popen[bytes], output: Path) -> None:
    if process.wait():
        last = output.read_text(errors="replace").strip().splitlines()[-_LAST_WORDS:]
        raise JobFailed("\n  ".join([f"{role} ended with exit code {process.returncode}:", *last]))


def _end(left: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in left:
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE
    for process in left:
        _reap(process, deadline)


def _reap(process: subprocess.Popen[bytes], deadline: float) -> None:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def _deferred_signals() -> Iterator[int]:
    """A descriptor that SIGINT and SIGTERM make readable; at the end they act as they would have. For an exception
    between the start of a process and the note of it would leave the process behind."""
    came: list[int] = []
    wake = os.eventfd(0)

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        os.eventfd_write(wake, 1)

    previous = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wake
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        os.close(wake)
        for number in came[:1]:
            signal.raise_signal(number)

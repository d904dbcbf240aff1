"""Jobs of real processes: started by hand with the DMLC_ variables alone, or by the launcher."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.harness import wait_until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = Path(__file__).parent / "scripts"
LONGEST = 40.0  # seconds: far above what anything here takes, so that a hang is a failure
GRACE = 3.0  # seconds: what the contract gives the others after one process fell out


@dataclass(eq=False)
class Process:
    """A process of a job; its output goes to files."""

    role: str
    popen: subprocess.Popen[bytes]
    out: Path
    err: Path
    ended: float | None = None  # when its end was seen, on the monotonic clock of all processes

    @property
    def stdout(self) -> str:
        return self.out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.err.read_text(errors="replace")

    @property
    def status(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        if self.ended is None and self.popen.poll() is not None:
            self.ended = time.monotonic()
        return self.popen.returncode

    def signal(self, signum: int) -> None:
        os.killpg(self.popen.pid, signum)

    def word(self, name: str) -> str | None:
        """What follows ``name`` on a line of its stdout."""
        lines = (line.split(maxsplit=1) for line in self.stdout.splitlines())
        return next((line[1] for line in lines if len(line) == 2 and line[0] == name), None)

    def said(self, name: str) -> str:
        """The same, once it is there."""
        wait_until(lambda: self.word(name) or self.status is not None, LONGEST, f"the word {name!r} of {self}")
        word = self.word(name)
        assert word is not None, f"{self} ended without saying {name!r}"
        return word

    def __repr__(self) -> str:
        return f"<{self.role} status={self.status}\n{self.stdout}{self.stderr}>"


class HandMadeJob:
    """Processes that know nothing of their job but the DMLC_ variables. At the end all of them are killed."""

    def __init__(self, directory: Path, workers: int = 3, servers: int = 1, port: int | None = None) -> None:
        self.workers, self.servers = workers, servers
        self.root = "127.0.0.1"  # where the scheduler listens
        self.port = port or free_port()
        self.processes: list[Process] = []
        self._directory = directory

    def start(self, role: str, script: Path, *arguments: object, **env: str) -> Process:
        """Start one process; ``env`` is added to the DMLC_ variables."""
        return self.start_command(role, [sys.executable, str(script), *map(str, arguments)], **env)

    def start_command(self, role: str, command: Sequence[str], fds: Sequence[int] = (), **env: str) -> Process:
        """Start one process that runs a command, and inherits these descriptors."""
        place = {
            "DMLC_ROLE": role,
            "DMLC_NUM_WORKER": str(self.workers),
            "DMLC_NUM_SERVER": str(self.servers),
            "DMLC_PS_ROOT_URI": self.root,
            "DMLC_PS_ROOT_PORT": str(self.port),
        }
        name = f"{len(list(self._directory.iterdir()))}-{role}"
        out, err = self._directory / f"{name}.out", self._directory / f"{name}.err"
        with open(out, "wb") as stdout, open(err, "wb") as stderr:
            popen = subprocess.Popen(
                command,
                env=environment(**place, **env),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                pass_fds=fds,
            )
        process = Process(role, popen, out, err)
        self.processes.append(process)
        return process

    def start_all(self, script: Path, *arguments: object, **env: str) -> None:
        """Start all processes of the job, with the same command."""
        for role in ["scheduler"] + ["server"] * self.servers + ["worker"] * self.workers:
            self.start(role, script, *arguments, **env)

    def of(self, role: str) -> list[Process]:
        """The processes of a role, in the order in which they started."""
        return [p for p in self.processes if p.role == role]

    def worker(self, rank: int) -> Process:
        """The worker that got this rank: it prints ``rank N``."""
        return next(p for p in self.of("worker") if int(p.said("rank")) == rank)

    def wait(self, but: Iterable[Process] = (), timeout: float = LONGEST) -> float:
        """Wait until all have ended, except some; returns when the last did, on the monotonic clock."""
        rest = [p for p in self.processes if p not in but]
        wait_until(lambda: [p.status is None for p in rest].count(True) == 0, timeout, f"the end of {rest}")
        return max(p.ended for p in rest if p.ended is not None)

    def __enter__(self) -> HandMadeJob:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.signal(signal.SIGKILL)  # a stopped one takes it, too
            process.popen.wait()


def launch(*arguments: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """``python -m launcher ARGUMENTS``, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "launcher", *map(str, arguments)],
        env=environment(**env),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )


def report(done: subprocess.CompletedProcess[str]) -> str:
    """The launcher's last word on a job that failed; its first line names the process that began it."""
    head = r"^pslite: (scheduler|(server|worker) \d+) on localhost "
    return done.stderr[[match.start() for match in re.finditer(head, done.stderr, re.MULTILINE)][-1] :]


def took(begin: float, what: str, end: float | None = None) -> float:
    """Seconds since ``begin`` on the monotonic clock; ``pytest -s`` shows them."""
    seconds = (time.monotonic() if end is None else end) - begin
    print(f"{seconds:.2f} s {what}")  # noqa: T201 - a figure to look at, beside its bound
    return seconds


def environment(**extra: str) -> dict[str, str]:
    """Nothing of the test runner's own settings; TMPDIR, so that a test sees what is left there."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {"OMP_NUM_THREADS": "1"} | extra


def free_port() -> int:
    """A TCP port of the loopback that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port

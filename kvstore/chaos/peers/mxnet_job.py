"""``python -m kvstore.chaos.peers.mxnet_job DIRECTORY PYTHON SERVERS RESTARTS``: a job of MXNet, to its end.

MXNet has no launcher that looks after its processes, so nobody is stopped because another one has failed. The last
lines say how each process ended; SIGTERM ends those that still run, and says who they were.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvstore.chaos.worker import Job

WORKER = str(Path(__file__).parent / "mxnet_worker.py")
# Without heartbeats ps-lite lets nobody take the place of a dead process; with them only when it has missed some.
_HEARTBEATS = ["PS_HEARTBEAT_INTERVAL=1", "PS_HEARTBEAT_TIMEOUT=3"]
_RESTART_AFTER = 5.0  # seconds


@dataclass(eq=False)
class _Process:
    role: str
    rank: int  # of a worker another one, as MXNet decides
    popen: subprocess.Popen[bytes]

    def ended(self) -> str:
        """How it ended."""
        status = self.popen.returncode
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"


class Cluster:
    """The processes of a job. ``restarts``: how many may be started again, if SIGKILL ends them."""

    def __init__(self, directory: Path, python: str, servers: int, restarts: int) -> None:
        self._directory = directory
        self._restarts = restarts
        self._counts = {"scheduler": 1, "server": servers, "worker": Job.read(directory).workers}
        self._running: dict[int, _Process] = {}  # by pidfd
        self._due: list[tuple[float, str, int]] = []  # when which process is started again
        self._words: list[str] = []  # how processes have ended
        self._stop = os.eventfd(0)
        self.status = 0  # of the first that failed, as a shell says it
        self._commands = {role: [python, "-c", "import mxnet"] for role in ("scheduler", "server")}  # which serves
        self._commands["worker"] = [python, WORKER, str(directory)]
        with socket.socket() as probe:  # the scheduler can only bind a port that is free, so it is chosen just before
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = [f"DMLC_NUM_WORKER={self._counts['worker']}", f"DMLC_NUM_SERVER={servers}"]
        place += ["DMLC_PS_ROOT_URI=127.0.0.1", f"DMLC_PS_ROOT_PORT={port}"]
        self._env = ["env", "OMP_NUM_THREADS=1", *place, *(_HEARTBEATS if restarts else [])]

    def run(self) -> None:
        """Start all; return when all have ended and nobody is started again, or somebody calls ``stop``."""
        for role, count in self._counts.items():
            for rank in range(count):
                self._start(role, rank)
        while self._running or self._due:
            timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            ready = select.select([self._stop, *self._running], [], [], timeout)[0]
            if self._stop in ready:
                return
            for pidfd in ready:
                os.close(pidfd)
                self._reap(self._running.pop(pidfd))
            while self._due and self._due[0][0] <= time.monotonic():
                self._start(*self._due.pop(0)[1:])

    def stop(self) -> None:
        """Have ``run`` return; for a signal's handler."""
        os.eventfd_write(self._stop, 1)

    def end(self) -> str:
        """End all that still run; says who they were, and how the others ended."""
        left = list(self._running.values())
        words = [*self._words, *(f"{self._name(process)} still ran" for process in left)]
        for process in left:
            process.popen.kill()
            process.popen.wait()
        return "".join(f"{line}\n" for line in words)

    def _start(self, role: str, rank: int) -> None:
        command = [*self._env, f"DMLC_ROLE={role}", *self._commands[role]]
        popen = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._running[os.pidfd_open(popen.pid)] = _Process(role, rank, popen)
        if role != "worker":  # whose rank MXNet decides: it notes it itself
            (self._directory / f"{role}{rank}.pid").write_text(str(popen.pid))

    def _reap(self, process: _Process) -> None:
        status = process.popen.wait()
        if status == -signal.SIGKILL and self._restarts:
            self._restarts -= 1
            self._due.append((time.monotonic() + _RESTART_AFTER, process.role, process.rank))
        elif status:
            self.status = self.status or (status if status > 0 else 128 - status)
        self._words.append(f"{self._name(process)} {process.ended()}")

    def _name(self, process: _Process) -> str:
        """As our launcher would call it."""
        role, pid = process.role, process.popen.pid
        notes = (note for note in self._directory.glob(f"{role}*.pid") if note.read_text() == str(pid))
        rank = next((f" {note.stem.removeprefix(role)}" for note in notes), "")
        return f"{role}{rank if role != 'scheduler' else ''} (pid {pid})"


def main(argv: Sequence[str]) -> int:
    """Returns the exit status of the first process that failed, or 0."""
    directory, python, servers, restarts = argv
    cluster = Cluster(Path(directory), python, int(servers), int(restarts))
    signal.signal(signal.SIGTERM, lambda *_: cluster.stop())
    try:
        cluster.run()
    finally:
        sys.stdout.write(cluster.end())
    return cluster.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Where the processes of a job meet: its private directory and the scheduler's listening socket."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

_BACKLOG = 512
# A Unix socket's path is at most 107 bytes, and the servers put theirs into this directory too.
_LONGEST_PARENT = 40


PREFIX = "pslite-"  # of the names of jobs' directories


def parent() -> str:
    """Where the directories of jobs are."""
    found = tempfile.gettempdir()
    return found if len(os.fsencode(found)) <= _LONGEST_PARENT else "/tmp"


class Rendezvous:
    """Opened by the agent before any process starts, so the address is known and nobody races for a port."""

    def __init__(self, job: str, transport: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent()))
        self._listener = socket.socket(socket.AF_INET if transport == "tcp" else socket.AF_UNIX)
        if transport == "tcp":
            self._listener.bind(("127.0.0.1", 0))
            port = self._listener.getsockname()[1]
            root = f"tcp://127.0.0.1:{port}"
        else:
            port = 0
            path = self.directory / "scheduler.sock"
            self._listener.bind(str(path))
            root = f"ipc://{path}"
        self._listener.listen(_BACKLOG)
        # Shared with the scheduler, whose accept() must not block when a peer has left the queue again.
        self._listener.setblocking(False)
        self._env = {
            "PSLITE_JOB_ID": job,
            "PSLITE_JOB_DIR": str(self.directory),
            "PSLITE_ROOT": root,
            "DMLC_PS_ROOT_URI": "127.0.0.1",
            "DMLC_PS_ROOT_PORT": str(port),
        }

    def env(self, role: str) -> dict[str, str]:
        """The variables that tell a process of this role where to meet."""
        return self._env | ({"PSLITE_ROOT_FD": str(self._listener.fileno())} if role == "scheduler" else {})

    def descriptors(self, role: str) -> tuple[int, ...]:
        """What a process of this role inherits."""
        return (self._listener.fileno(),) if role == "scheduler" else ()

    def stop_listening(self) -> None:
        """Without its scheduler a job accepts nobody: peers are refused instead of waiting in the queue.

        Until then it is open here too, so that peers of a scheduler that is being started again wait in the queue.
        """
        self._listener.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self.stop_listening()
        shutil.rmtree(self.directory, ignore_errors=True)

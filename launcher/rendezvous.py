"""Where the processes of a job meet: its private directory on a host, and the scheduler's listening socket."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from . import addresses
from .protocol import Message

_BACKLOG = 512
# A Unix socket's path is at most 107 bytes, and the servers put theirs into this directory too.
_LONGEST_PARENT = 40

PREFIX = "pslite-"  # of the names of jobs' directories


def parent() -> str:
    """Where the directories of jobs are."""
    found = tempfile.gettempdir()
    return found if len(os.fsencode(found)) <= _LONGEST_PARENT else "/tmp"


def make_directory() -> Path:
    """A directory for a job, which only this user can enter."""
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent()))


class Rendezvous:
    """Opened by the agent before any process starts, so the address is known and nobody races for a port."""

    def __init__(self) -> None:
        self.directory = make_directory()
        self._listener: socket.socket | None = None  # on the scheduler's host only
        self._env = {"PSLITE_JOB_DIR": str(self.directory)}

    def listen(self, order: Message) -> str:
        """Open the scheduler's socket as an "open" order says; returns the root. Raises NoAddress."""
        if order["transport"] == "tcp":
            address = addresses.choose(order["address"], order["interface"], order["towards"])
            self._listener, port = addresses.listen(address, _BACKLOG)
            root = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
        else:
            path = self.directory / "scheduler.sock"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(path))
            self._listener.listen(_BACKLOG)
            root = f"ipc://{path}"
        # Shared with the scheduler, whose accept() must not block when a peer has left the queue again.
        self._listener.setblocking(False)
        return root

    def join(self, job: str, root: str) -> None:
        """The processes of this host will meet there."""
        parts = urlsplit(root)
        tcp = parts.scheme == "tcp"
        uri, port = (parts.hostname or "", parts.port) if tcp else ("127.0.0.1", 0)
        self._env |= {"PSLITE_JOB_ID": job, "PSLITE_ROOT": root}
        self._env |= {"DMLC_PS_ROOT_URI": uri, "DMLC_PS_ROOT_PORT": str(port)}

    def key(self, name: str) -> Path:
        """The file of a key."""
        return self.directory / "keys" / name

    def add_keys(self, keys: Mapping[str, str]) -> None:
        """Put keys where processes find theirs; raises OSError."""
        self.key("").mkdir(mode=0o700, exist_ok=True)
        for name, content in keys.items():
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(self.key(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with open(descriptor, "w", encoding="ascii") as file:
                    file.write(content)

    def env(self, role: str) -> dict[str, str]:
        """The variables that tell a process of this role where to meet."""
        if role != "scheduler" or self._listener is None:
            return self._env
        return self._env | {"PSLITE_ROOT_FD": str(self._listener.fileno())}

    def descriptors(self, role: str) -> tuple[int, ...]:
        """What a process of this role inherits."""
        return (self._listener.fileno(),) if role == "scheduler" and self._listener is not None else ()

    def stop_listening(self) -> None:
        """Without its scheduler a job accepts nobody: peers are refused instead of waiting in the queue.

        Until then it is open here too, so that peers of a scheduler that is being started again wait in the queue.
        """
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        """Leave nothing behind."""
        self.stop_listening()
        shutil.rmtree(self.directory, ignore_errors=True)

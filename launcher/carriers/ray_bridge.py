"""The actor of a process: it carries bytes between ``ray_agent`` and an agent on its node.

Ray gets this class by value, for a node need not find this module: it uses the standard library only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

_CHUNK = 1 << 18

#: Ray kills the children of a worker that exits, but this one ends its processes first: it must not be a child.
_DETACH = """\
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
os.execvp(sys.argv[1], sys.argv[1:])
"""
#: What Ray's workers have for themselves.
_RAYS_OWN = ("RAY_JOB_ID", "RAY_RAYLET_PID", "RAY_LD_PRELOAD_ON_WORKERS", "PYTHONBREAKPOINT", "SPT_NOENV")


class Bridge:
    """An agent, started by the constructor, which Ray calls again when it starts the actor again.

    The agent's stdin is this process's alone: when it dies the agent ends everything. ``order`` and ``close`` have a
    thread of their own.
    """

    def __init__(self, command: list[str]) -> None:
        """``command`` runs an agent; an empty first word stands for the interpreter here. Raises FileNotFoundError."""
        self._life = secrets.token_hex(8)
        words = [command[0] or sys.executable, *command[1:]]
        if shutil.which(words[0]) is None:
            raise FileNotFoundError(f"there is no program {words[0]} on {os.uname().nodename}")
        theirs, self._orders = os.pipe()
        self._events, events = os.pipe()
        environment = {name: value for name, value in os.environ.items() if name not in _RAYS_OWN}
        try:
            detach = [sys.executable, "-I", "-c", _DETACH, *words]
            subprocess.run(detach, stdin=theirs, stdout=events, env=environment, check=True)
        finally:
            os.close(theirs)
            os.close(events)

    def place(self) -> dict[str, str]:
        """Which life of the actor this is; its node's name, and address for Ray; the file of the agent's stderr."""
        import ray  # this module is imported where there need not be one

        log = os.readlink("/proc/self/fd/2")
        return {"life": self._life, "host": os.uname().nodename, "address": ray.util.get_node_ip_address(), "log": log}

    def order(self, data: bytes) -> None:
        """Pass on to the agent. That it is gone shows in ``events``."""
        view = memoryview(data)
        with contextlib.suppress(BrokenPipeError):
            while view:
                view = view[os.write(self._orders, view) :]

    def close(self) -> None:
        """No more orders: the agent ends everything, and itself."""
        os.close(self._orders)

    def events(self) -> Iterator[bytes]:
        """What the agent says, until it ends."""
        while data := os.read(self._events, _CHUNK):
            yield data

    def kill_group(self, pid: int) -> None:
        """What an agent that died could not do."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

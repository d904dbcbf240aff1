"""Processes as /proc shows them, and the children of this one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from functools import wraps
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

_started: set[int] = set()  # pids of subprocess.Popen objects made in this process; any thread adds


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie (which ``os.kill(pid, 0)`` would take for a living one)."""
    stat = _stat(pid)
    return stat is not None and stat[0] not in "ZX"


def watch() -> None:
    """Make orphans below this process its children, and remember which children it started itself.

    Without this a worker that outlives a killed launcher would move to init, where no test finds it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    start = subprocess.Popen.__init__

    @wraps(start)
    def remembering_start(self: subprocess.Popen[Any], *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        _started.add(self.pid)

    subprocess.Popen.__init__ = remembering_start  # type: ignore[method-assign]


def children() -> list[int]:
    """The pids of all children, zombies too.

    Zombies that were adopted are reaped and not returned: they have ended, and nobody else is there to wait for them.
    """
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # the usual case costs one system call, not a walk
        return []
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or (stat := _stat(int(name))) is None or stat[1] != os.getpid():
            continue
        if stat[0] == "Z" and int(name) not in _started:
            os.waitpid(int(name), os.WNOHANG)
        else:
            found.append(int(name))
    return found


def kill(pid: int) -> None:
    """End one child with SIGKILL and reap it."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # its owner waited for it in between


def command_line(pid: int) -> str:
    """What the process runs, or that it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except FileNotFoundError:
        words = []
    return " ".join(words).strip() or "ended, but nobody waited for it"


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and parent of a process; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent = text.rpartition(")")[2].split()[:2]  # the name before it may hold spaces and parentheses
    return state, int(parent)

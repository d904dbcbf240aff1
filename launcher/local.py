"""``--launcher local``: every process on this host, through one agent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

from .link import AgentLink

#: The agent is started isolated (-I): a ``select.py`` or ``launcher.py`` in the user's directory must not shadow ours.
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from launcher.agent import main; main()"


def package_root() -> Path:
    """The directory that holds the ``launcher`` package: site-packages, or a source checkout."""
    return Path(__file__).resolve().parent.parent


def import_root() -> str | None:
    """The source checkout this launcher is in, for the processes to import pslite from; None if it is installed."""
    root = package_root()
    return None if root.name in ("site-packages", "dist-packages") else str(root)


def open_agents() -> list[AgentLink]:
    """Start the agents of a job: here the one of this host."""
    return [AgentLink("localhost", [sys.executable, "-I", "-c", _BOOT, str(package_root())])]


def clean_up(pids: Iterable[int], directory: str | None) -> None:
    """What an agent that died could not do: kill its process groups, remove the job's directory."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    if directory:
        shutil.rmtree(directory, ignore_errors=True)

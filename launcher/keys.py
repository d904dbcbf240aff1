"""The keys of a job, made by ``pslite.keys`` in a process of its own: the launcher imports no package it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from .boot import import_root
from .spec import ProcessSpec

_LONGEST = 30.0  # seconds, of which it takes half a one
_ROSTER = "roster.json"  # of all public keys


class KeysFailed(Exception):
    """The keys could not be made; the text says why."""


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """What makes keys, and its environment: found in the same place as this package."""
    path = os.pathsep.join(filter(None, (import_root(), os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-m", "pslite.keys", *arguments], os.environ | ({"PYTHONPATH": path} if path else {})


class JobKeys:
    """The keys of all processes of a job, as the contents of files."""

    def __init__(self, workers: int, servers: int) -> None:
        """Make them, in a directory that only this user can enter and that is gone afterwards. Raises KeysFailed."""
        with tempfile.TemporaryDirectory() as directory:
            where = os.path.join(directory, "keys")
            argv, env = command(where, "-n", str(workers), "-s", str(servers), "--quiet")
            try:
                done = subprocess.run(
                    argv,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=_LONGEST,
                    cwd=directory,  # -m looks for modules there first
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise KeysFailed(f"no keys: {error}") from None
            if done.returncode:
                raise KeysFailed(f"no keys: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            self._files = {path.name: path.read_text(encoding="ascii") for path in Path(where).iterdir()}

    def of(self, processes: Iterable[ProcessSpec], replicas: int = 0) -> dict[str, str]:
        """What a host with these processes needs: their keys, and of the servers whose place these may take."""
        names = {key_file(process.role, process.rank) for process in processes}
        servers = sum(name.startswith("server-") for name in self._files)
        for process in processes if replicas else ():
            if process.role == "server":
                names.add(key_file("server", (process.rank - 1) % servers))
        return {name: self._files[name] for name in sorted(names & self._files.keys())} | self.roster

    def workers_from(self, rank: int) -> dict[str, str]:
        """Those of workers of this rank and above, who may join."""
        names = (f"worker-{number}.key" for number in range(rank, len(self._files)))
        return {name: self._files[name] for name in names if name in self._files}

    @property
    def roster(self) -> dict[str, str]:
        """All public keys, which everybody needs."""
        return {_ROSTER: self._files[_ROSTER]}


def key_file(role: str, rank: int) -> str:
    """The name of a process's key file."""
    return "scheduler.key" if role == "scheduler" else f"{role}-{rank}.key"

"""The keys of a job, made by ``pslite.keys`` in a process of its own: the launcher imports no package it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .local import import_root

_LONGEST = 30.0  # seconds, of which it takes half a one


class KeysFailed(Exception):
    """The keys could not be made; the text says why."""


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """What makes keys, and its environment: found in the same place as this package."""
    path = os.pathsep.join(filter(None, (import_root(), os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-m", "pslite.keys", *arguments], os.environ | ({"PYTHONPATH": path} if path else {})


def make_keys(directory: Path, roles: Sequence[str]) -> Path:
    """Make a key for each process of these roles; returns the directory with the files. Raises KeysFailed."""
    keys = directory / "keys"
    counts = ["-n", str(roles.count("worker")), "-s", str(roles.count("server")), "--quiet"]
    argv, env = command(str(keys), *counts)
    try:
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LONGEST, cwd=directory
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KeysFailed(f"no keys: {error}") from None
    if done.returncode:
        raise KeysFailed(f"no keys: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return keys


def key_file(role: str, rank: int) -> str:
    """The name of a process's key file."""
    return "scheduler.key" if role == "scheduler" else f"{role}-{rank}.key"

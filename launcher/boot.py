"""The command that runs an agent, here or on another host, and where it finds this package."""

from __future__ import annotations

import sys
from pathlib import Path

from .options import Options

SILENCE = 2.5  # seconds without a beat after which either end of a carrier takes the other one for lost

#: The agent is started isolated (-I): a ``select.py`` or ``launcher.py`` in the user's directory must not shadow ours.
#: It has no character that a shell would look at between single quotes.
_BOOT = "import sys; sys.path.insert({at}, sys.argv[1]); from launcher.agent import main; main(float(sys.argv[2]))"
_FIRST, _LAST = "0", "len(sys.path)"


def package_root() -> Path:
    """The directory that holds the ``launcher`` package: site-packages, or a source checkout."""
    return Path(__file__).resolve().parent.parent


def import_root() -> str | None:
    """The source checkout this launcher is in, for the processes to import pslite from; None if it is installed."""
    root = package_root()
    return None if root.name in ("site-packages", "dist-packages") else str(root)


def agent_here() -> list[str]:
    """The command that runs an agent as a child: its pipes end with the launcher, so it needs no beats."""
    return [sys.executable, "-I", "-c", _BOOT.format(at=_FIRST), str(package_root()), "0"]


def agent_elsewhere(options: Options) -> list[str]:
    """The command for a carrier to run."""
    python = options.python or sys.executable
    # A checkout goes before what is installed, as it does for the processes; else what that host has goes first.
    at = _LAST if import_root() is None else _FIRST
    return [python, "-I", "-c", _BOOT.format(at=at), str(package_root()), str(SILENCE)]

"""The stores whose jobs are done harm: ours, and peers as black boxes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pslite.errors import ConfigError

from .options import Options

OURS = "pslite"
_RESTARTS = 3  # of a process that is to be started again
_GRACE = 2  # seconds that the launcher gives a stopped process
_REMEDY = "python -m venv mx && mx/bin/pip install numpy==1.23.5 mxnet==1.9.1, and give the interpreter's path"


@dataclass(frozen=True)
class Store:
    """How a job is started: ``command`` makes it of the directory that ``worker.py`` describes."""

    name: str
    command: Callable[[Path], list[str]]


def ours(options: Options, case: str) -> Store:
    """This store, under its launcher. Garbage comes by TCP, without keys: else the handshake would stop it."""
    transport = "tcp" if "garbage" in case else options.transport
    env = [] if transport is None else ["--env", f"PSLITE_TRANSPORT={transport}"]
    env += ["--env", "PSLITE_SECURITY=none"] if "garbage" in case else []
    flags = ["-n", str(options.workers), "-s", str(options.servers), "--grace", str(_GRACE), *env]
    flags += ["--max-restarts", str(_RESTARTS)] if "restart" in case else []
    launch = [sys.executable, "-m", "launcher", *flags, *options.launcher, sys.executable, "-m"]
    return Store(OURS, lambda directory: [*launch, "kvstore.chaos.worker", str(directory)])


def mxnet(options: Options, case: str) -> Store:
    """MXNet's distributed KVStore."""
    restarts = str(_RESTARTS if "restart" in case else 0)
    start = [sys.executable, "-m", "kvstore.chaos.peers.mxnet_job"]
    return Store("mxnet", lambda place: [*start, str(place), options.peer_python, str(options.servers), restarts])


def stores(options: Options, case: str) -> list[Store]:
    """Those that a case is tried on, in turn."""
    return [ours(options, case), *([mxnet(options, case)] if options.peer else [])]


def check_peer(python: str) -> None:
    """Raise ConfigError unless the interpreter is there and has MXNet."""
    if shutil.which(python) is None:
        raise ConfigError(name="--peer-python", value=python, allowed=f"no such interpreter; {_REMEDY}")
    done = subprocess.run([python, "-c", "import mxnet"], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise ConfigError(name="--peer-python", value=python, allowed=f"{reason}; {_REMEDY}")

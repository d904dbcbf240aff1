"""What an agent finds out about its host, for ``--check``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import socket
import time
from typing import Any

_PACKAGES = (("pslite", "pslite"), ("numpy", "numpy"), ("pyzmq", "zmq"), ("msgpack", "msgpack"))
_LONGEST = 2.0  # seconds to connect


def version(name: str, module: str) -> str:
    """The version of what is installed; "" if it is not there at all."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed, from a checkout" if importlib.util.find_spec(module) else ""


def look(directory: str | None) -> dict[str, Any]:
    """Versions, the clock, and why a job could not run there."""
    versions = {"python": platform.python_version()} | {name: version(name, module) for name, module in _PACKAGES}
    problem = "" if directory is None or os.path.isdir(directory) else f"there is no directory {directory}"
    return {"versions": versions, "time": time.time(), "problem": problem}


def reach(host: str, port: int) -> str:
    """Why there is no connection to this port; "" if there is one."""
    try:
        socket.create_connection((host, port), _LONGEST).close()
    except OSError as error:
        return str(error.strerror or error)
    return ""

"""``--launcher sge``: inside a parallel job of Grid Engine, ``qrsh -inherit`` starts the agent on each of its hosts.

Outside of one the launcher prints the script of such a job (``batch``).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import Options

from .allocation import agent_on, listed, named, offered


def hosts(options: Options, environ: Mapping[str, str]) -> Sequence[Host]:
    """Those of ``-H``, else all that the job has, with their slots."""
    if shutil.which("qrsh") is None:
        raise UsageError("--launcher sge needs the program qrsh: install Grid Engine's clients on this host")
    if (given := named(options)) is not None:
        return given
    path = environ["PE_HOSTFILE"]
    lines = listed("PE_HOSTFILE", path)
    if any(len(words) < 2 or not words[1].isdigit() for words in lines):
        raise UsageError(f"PE_HOSTFILE={path}: a line is not HOST SLOTS ...")
    return offered(((words[0], int(words[1])) for words in lines), options.num_workers)


def argv(host: Host, options: Options) -> list[str]:
    """A task of the job; no shell takes the command apart, and none writes to its output."""
    return ["qrsh", "-inherit", "-V", "-noshell", host.name, *agent_on(host, options)]

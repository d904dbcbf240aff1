"""``--launcher ray``: an actor of a Ray cluster for each process of the job, looked after by ``ray_agent``."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.boot import SILENCE, agent_elsewhere, package_root
from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import Options

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); sys.path.append(sys.argv[2]); "
    "from launcher.carriers.ray_agent import main; main(sys.argv[3])"
)


def hosts(options: Options, environ: Mapping[str, str]) -> Sequence[Host]:
    """One that stands for the cluster: Ray places the actors."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError("--launcher ray needs the package ray: pip install 'pslite[ray]'")
    if environ.get("RAY_ADDRESS", "").startswith("ray://"):
        raise UsageError("--launcher ray runs on a node of the cluster: RAY_ADDRESS is HOST:PORT there, not ray://...")
    if options.max_servers > options.num_servers:
        raise UsageError("--max-servers: servers move on one host only; on Ray each has an actor of its own")
    if options.hostfile is not None or options.servers_on is not None:
        raise UsageError("--launcher ray: Ray places the processes; leave out -H and --servers-on")
    return (Host("ray"),)


def argv(host: Host, options: Options) -> list[str]:
    """The command that runs the driver of these actors, on this host. It finds ray where the launcher has found it."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None and spec.origin is not None
    command = agent_elsewhere(options)
    if options.python is None:
        command[0] = ""  # the interpreter that Ray itself has on the node
    of_worker = options.max_restarts if options.on_worker_lost != "shrink" else 0
    plan = {
        "command": command,
        "silence": SILENCE,
        # What only an actor's own node has, the scheduler's address and a server's memory, does not outlive the actor.
        "restarts": [0] * (1 + options.num_servers) + [of_worker] * options.num_workers,
    }
    ray_root = str(Path(spec.origin).parent.parent)
    return [sys.executable, "-I", "-c", _BOOT, str(package_root()), ray_root, json.dumps(plan)]

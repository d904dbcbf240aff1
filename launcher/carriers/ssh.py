"""``--launcher ssh``: the system's ssh with the user's own configuration, keys and known hosts.

It never asks (BatchMode), and whether a host's key is trusted is left to that configuration.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence

from launcher.boot import agent_elsewhere, agent_here
from launcher.errors import UsageError
from launcher.hosts import Host, parse_hosts
from launcher.options import Options

_CONNECT_TIMEOUT = 10  # seconds, unless the user's options have another one


def hosts(options: Options, environ: Mapping[str, str]) -> Sequence[Host]:
    """Those of ``-H``."""
    if options.hostfile is None:
        raise UsageError("--launcher ssh needs the hosts: -H HOSTFILE, or -H node1:slots=4,node2:slots=4")
    found = parse_hosts(options.hostfile)
    if any(not host.is_here for host in found) and shutil.which("ssh") is None:
        raise UsageError("--launcher ssh needs the program ssh: install an OpenSSH client")
    return found


def argv(host: Host, options: Options) -> list[str]:
    """The command that runs an agent there; without ssh on this host."""
    if host.is_here:
        return agent_here()
    # The remote shell, whichever it is, sees nothing of the user's but the path of the interpreter.
    return [*_ssh(host, options), "--", _destination(host), "exec " + shlex.join(agent_elsewhere(options))]


def rsync(host: Host, directory: str, options: Options) -> list[str]:
    """The command that copies this directory's content to one of that host."""
    name = f"[{host.name}]" if ":" in host.name else host.name
    to = f"{host.user}@{name}" if host.user else name
    # -s: names reach the other end as they are; no shell there takes them apart.
    return ["rsync", "-a", "-z", "-s", "-e", shlex.join(_ssh(host, options)), "--", "./", f"{to}:{directory}/"]


def _ssh(host: Host, options: Options) -> list[str]:
    words = ["ssh", "-T", "-o", "BatchMode=yes"]
    for option in options.ssh_option:
        words += ["-o", option]
    # ssh takes the first value that it is given, so the user's go first.
    words += ["-o", f"ConnectTimeout={_CONNECT_TIMEOUT}"]
    return words + (["-p", str(host.port)] if host.port else [])


def _destination(host: Host) -> str:
    return f"{host.user}@{host.name}" if host.user else host.name


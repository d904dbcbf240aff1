"""``--launcher local``: every process on this host, through one agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.boot import agent_here
from launcher.hosts import HERE, Host
from launcher.options import Options


def hosts(options: Options, environ: Mapping[str, str]) -> Sequence[Host]:
    """This one."""
    return (Host(HERE[0]),)


def argv(host: Host, options: Options) -> list[str]:
    """The command that runs an agent."""
    return agent_here()

"""What the carriers of batch systems have in common: hosts with the tasks that were placed on them, and the agent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from launcher.boot import agent_elsewhere, agent_here
from launcher.errors import UsageError
from launcher.hosts import Host, parse_hosts
from launcher.options import Options

#: Of the launcher's host. These carriers bring its environment along, and there they would name a wrong address.
_OF_ONE_HOST = ("SSH_CONNECTION", "DMLC_NODE_HOST")


def named(options: Options) -> tuple[Host, ...] | None:
    """The hosts of ``-H``, if it is given. Raises UsageError."""
    if options.hostfile is None:
        return None
    hosts = parse_hosts(options.hostfile)
    for host in hosts:
        if host.user is not None or host.port is not None:
            raise UsageError(f"-H {host.name}: a user or a port is for --launcher ssh: leave it out")
    return hosts


def offered(tasks: Iterable[tuple[str, int]], workers: int) -> tuple[Host, ...]:
    """Hosts and how many tasks are to be there; a host may come again.

    With fewer tasks than workers these are no plan for them, and the hosts get equal parts.
    """
    room: Counter[str] = Counter()
    for name, count in tasks:
        room[name] += count
    planned = room.total() >= workers
    return tuple(Host(name, slots=count if planned else None) for name, count in room.items())


def listed(variable: str, path: str) -> list[list[str]]:
    """The lines of a batch system's list of hosts, as words. Raises UsageError."""
    try:
        lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{variable}={path}: it cannot be read: {error}") from None
    if not any(lines):
        raise UsageError(f"{variable}={path}: no host is named there")
    return [words for words in lines if words]


def agent_on(host: Host, options: Options) -> list[str]:
    """The command for such a carrier to run."""
    if host.is_here:
        return agent_here()
    forget = [word for name in _OF_ONE_HOST for word in ("-u", name)]
    return ["env", *forget, *agent_elsewhere(options)]

"""Which process runs on which host. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from .errors import UsageError
from .hosts import Host


class Placement:
    """The scheduler is on the first host, servers go round, workers fill the hosts in order."""

    def __init__(self, hosts: Sequence[Host], workers: int, servers_on: str | None = None) -> None:
        self.scheduler = hosts[0].name
        self._hosts = hosts
        self._servers = _named(hosts, servers_on) if servers_on else list(hosts)
        self._workers = _filled(hosts, workers)

    def server(self, rank: int) -> str:
        """The host of a server."""
        return self._servers[rank % len(self._servers)].name

    def worker(self, rank: int) -> str:
        """The host of a worker; one that joins the running job goes where there are fewest."""
        while rank >= len(self._workers):
            self._workers.append(min((host.name for host in self._hosts), key=self._workers.count))
        return self._workers[rank]

    def local_rank(self, rank: int) -> int:
        """How many workers of lower ranks are on its host."""
        return self._workers[:rank].count(self.worker(rank))


def _named(hosts: Sequence[Host], names: str) -> list[Host]:
    by_name = {host.name: host for host in hosts}
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in by_name]:
        raise UsageError(f"--servers-on {names}: {unknown[0]!r} is not among the hosts: {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(wanted)]


def _filled(hosts: Sequence[Host], workers: int) -> list[str]:
    """By slots if any host has some, else in equal parts; neighbours in rank are neighbours in place."""
    if all(host.slots is None for host in hosts):
        return [hosts[rank * len(hosts) // workers].name for rank in range(workers)]
    places = [host.name for host in hosts for _ in range(host.slots or 1)]
    if len(places) < workers:
        room = ", ".join(f"{host.name} {host.slots or 1}" for host in hosts)
        few = f"-n {workers}: the hosts have {len(places)} slots ({room})"
        raise UsageError(f"{few}: give more hosts, more slots= or a lower -n")
    return places[:workers]

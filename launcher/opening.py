"""From the agents' greetings to the orders to start. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .hosts import Host
from .keys import JobKeys
from .protocol import PROTOCOL, Message
from .spec import JobSpec, ProcessSpec

Orders = list[tuple[str, Message]]  # to which host, what


class NotReady(Exception):
    """The job cannot start: what is the matter with a host."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(reason)
        self.host = host


class Opening:
    """All hosts greet; the scheduler's opens its socket; then all start their processes."""

    def __init__(self, spec: JobSpec, job: str, grace: float, keys: JobKeys | None) -> None:
        self._spec, self._job, self._grace, self._keys = spec, job, grace, keys
        self._greetings: dict[str, Message] = {}  # by host
        self.root: str | None = None
        self.started = False  # everybody was told to start

    def missing(self) -> list[str]:
        """The hosts that have not greeted."""
        return [host.name for host in self._spec.hosts if host.name not in self._greetings]

    def greeted(self, host: str, greeting: Message) -> Orders:
        """An agent runs. Raises NotReady."""
        if greeting["protocol"] != PROTOCOL:
            theirs = f"its agent speaks protocol {greeting['protocol']}, this launcher {PROTOCOL}"
            raise NotReady(host, f"{theirs}: install the same version of pslite on both")
        self._greetings[host] = greeting
        return [] if self.missing() else [(self._spec.hosts[0].name, self.open_on(self._spec.hosts[0]))]

    def open_on(self, host: Host) -> Message:
        """The order to listen on a host, at the address where others reach it."""
        order = {"do": "open", "job": self._job, "transport": self._spec.transport, "interface": self._spec.interface}
        others = [other for other in self._spec.hosts if other is not host]
        towards = [other.address or other.name for other in others]
        return order | {"address": self._address(host, others), "towards": towards}

    def _address(self, host: Host, others: Sequence[Host]) -> str | None:
        """As told; else as ssh reached it, or as ssh's servers saw this host; None: its agent finds one."""
        if host.address is not None or self._spec.interface is not None or not others:
            return host.address
        if not host.is_here:
            return self._came(host, "came_to")
        seen = (self._came(other, "came_from") for other in others)
        return next((address for address in seen if address is not None), None)

    def _came(self, host: Host, end: str) -> str | None:
        address: str | None = self._greetings[host.name][end] if host.name in self._greetings else None
        return address

    def opened(self, root: str) -> Orders:
        """The scheduler's socket listens."""
        self.root, self.started = root, True
        return [(host.name, self._start(host.name, root)) for host in self._spec.hosts]

    def _start(self, host: str, root: str) -> Message:
        spec = self._spec
        mine = [(index, process) for index, process in enumerate(spec.processes) if process.host == host]
        order: dict[str, Any] = {"do": "start", "job": self._job, "root": root, "cwd": spec.cwd.get(host)}
        order |= {"grace": self._grace, "max_restarts": spec.max_restarts, "shrinks": spec.shrinks}
        order |= {"replicas": spec.replicas, "keys": self._keys_of([process for _, process in mine])}
        return order | {"processes": [{"id": index} | process.as_dict() for index, process in mine]}

    def _keys_of(self, processes: list[ProcessSpec]) -> dict[str, str]:
        if self._keys is None:
            return {}
        keys = self._keys.of(processes, self._spec.replicas)
        if any(process.role == "scheduler" for process in processes):
            # Of workers that somebody starts by hand, who looks where the job's directory is known.
            keys |= self._keys.workers_from(sum(process.role == "worker" for process in self._spec.processes))
        return keys

    def add(self, index: int, process: ProcessSpec) -> Message:
        """The order to start one more."""
        keys = {} if self._keys is None else self._keys.of([process])
        return {"do": "add", "process": {"id": index} | process.as_dict(), "keys": keys}

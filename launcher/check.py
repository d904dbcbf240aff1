"""``--check``: whether a job could run on these hosts, and what is in its way."""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .hosts import Host
from .link import AgentLink
from .opening import NotReady, Opening
from .protocol import Message
from .spec import JobSpec
from .survey import version

_LONGEST = 60.0  # seconds for all of it
_TURN = 250  # milliseconds
_CLOCKS_AGREE = 1.0  # seconds


@dataclass
class _Found:
    """What is known of a host."""

    host: Host
    link: AgentLink
    looked: Message | None = None
    ahead: float = 0.0  # its clock, in seconds
    root: str | None = None  # where a process listened for others to reach it
    to_reach: list[tuple[str, str, int]] = field(default_factory=list)  # host, address, port; the first is being tried
    problems: list[str] = field(default_factory=list)
    lost: bool = False


class _Check:
    """All hosts look at themselves; those for scheduler and servers listen; then each connects to all of these."""

    def __init__(self, spec: JobSpec, job: str, carry: Callable[[Host], list[str]]) -> None:
        self._opening = Opening(spec, job, 0.0, None)
        self._serving = {process.host for process in spec.processes if process.role != "worker"}
        self._cwd = spec.cwd
        self.hosts = {host.name: _Found(host, AgentLink(host, carry(host))) for host in spec.hosts}

    def run(self) -> None:
        """Find out everything, or what can be in time."""
        deadline = time.monotonic() + _LONGEST
        self._until(lambda found: found.looked is not None, deadline)
        for found in self._alive():
            if found.host.name in self._serving:
                found.link.send(self._opening.open_on(found.host))
        self._until(lambda found: found.host.name not in self._serving or found.root is not None, deadline)
        for found in self._alive():
            others = [other for other in self._alive() if other is not found and other.root]
            found.to_reach = [(other.host.name, *_place(other.root or "")) for other in others]
            self._reach_next(found)
        self._until(lambda found: not found.to_reach, deadline)
        for found in self.hosts.values():
            if not found.lost:
                found.link.end_orders()
                found.link.kill()
                found.link.close()

    def _alive(self) -> list[_Found]:
        return [found for found in self.hosts.values() if not found.lost]

    def _until(self, done: Callable[[_Found], bool], deadline: float) -> None:
        while waiting := [found for found in self._alive() if not done(found)]:
            if time.monotonic() >= deadline:
                for found in waiting:
                    self._lose(found, "it has not answered in time")
                return
            poller = select.poll()
            for found in self._alive():
                found.link.register(poller, listening=True)
            ready = {descriptor for descriptor, _ in poller.poll(_TURN)}
            for found in self._alive():
                self._attend(found, ready)

    def _attend(self, found: _Found, ready: set[int]) -> None:
        link = found.link
        if link.errors in ready:
            link.read_errors()
        if link.orders in ready:
            link.flush()
        lost = link.check(time.monotonic(), listening=True)
        events = link.receive() if lost is None and link.fileno() in ready else []
        for event in events or ():
            self._on_event(found, event)
        if lost is not None or events is None:
            self._lose(found, lost)

    def _on_event(self, found: _Found, event: Message) -> None:
        match event["event"]:
            case "hello":
                found.link.greeted(event)
                try:
                    self._opening.greeted(found.host.name, event)
                except NotReady as error:
                    self._lose(found, str(error))
                else:
                    found.link.send({"do": "look", "cwd": self._cwd.get(found.host.name)})
            case "looked":
                found.looked, found.ahead = event, event["time"] - time.time()
            case "opened":
                found.root = event["root"]
            case "refused":
                found.root = ""
                found.problems.append(event["error"])
            case "reached":
                name, address, port = found.to_reach.pop(0)
                if why := event["errors"][0]:
                    found.problems.append(f"it cannot reach {name} at {address}, port {port}: {why}")
                self._reach_next(found)

    def _reach_next(self, found: _Found) -> None:
        if found.to_reach:
            found.link.send({"do": "reach", "addresses": [found.to_reach[0][1:]]})

    def _lose(self, found: _Found, reason: str | None) -> None:
        if not found.lost:
            found.lost = True
            found.link.kill()
            code = found.link.close()
            found.problems.append(reason or found.link.why(code))


def check(spec: JobSpec, job: str, carry: Callable[[Host], list[str]]) -> int:
    """Print a line for each host. Returns the exit status: 1 if a job could not run there."""
    work = _Check(spec, job, carry)
    work.run()
    width = max(map(len, work.hosts))
    for name, found in work.hosts.items():
        problems = found.problems + _differences(found)
        sys.stdout.write(f"{name.ljust(width)}  {'problem' if problems else 'ok     '}  {_text(found)}\n")
        sys.stdout.writelines(f"{' ' * width}  - {problem}\n" for problem in problems)
        found.problems = problems
    return int(any(found.problems for found in work.hosts.values()))


def _differences(found: _Found) -> list[str]:
    """What a job would stumble over."""
    if found.looked is None:
        return []
    versions: dict[str, str] = found.looked["versions"]
    problems = [f"{name} is not installed for its python" for name, installed in versions.items() if not installed]
    ours = version("pslite", "pslite")
    if versions["pslite"] and versions["pslite"] != ours:
        problems.append(f"pslite there: {versions['pslite']}; here: {ours}")
    return problems + ([found.looked["problem"]] if found.looked["problem"] else [])


def _text(found: _Found) -> str:
    if found.looked is None:
        return ""
    versions = ", ".join(f"{name} {installed}" for name, installed in found.looked["versions"].items() if installed)
    off = f"; its clock is {found.ahead:+.1f} s off" if abs(found.ahead) > _CLOCKS_AGREE else ""
    listened = f"; reached at {_place(found.root)[0]}" if found.root else ""
    return versions + off + listened


def _place(root: str) -> tuple[str, int]:
    parts = urlsplit(root)
    return parts.hostname or "", parts.port or 0

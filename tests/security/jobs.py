"""Keys of jobs, and vans and postoffices that have them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pslite import Config, Postoffice, ids, security
from pslite.van.base import Received, Rejected, Van, VanEvent
from pslite.van.zmq_van import ZmqVan
from pslite.wire import Kind, Message, Op

LONGEST = 15.0  # seconds: far above what anything here takes
INCARNATION = 0x0123456789ABCDEF


def free_root() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


class Keyring:
    """The key files of a job with two workers and a server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        security.make(directory, workers=2, servers=1)

    def path(self, role: str, rank: int = 0) -> Path:
        return self.directory / security.file_name(role, rank)

    def keys(self, role: str, rank: int = 0) -> security.Keys:
        return security.load(str(self.path(role, rank)))

    def roster(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.directory / security.ROSTER).read_text())
        return found

    def change(self, **public: str | None) -> None:
        """Change the roster: ``worker_0=key``; None takes it out."""
        changed = self.roster() | {name.replace("_", " "): key for name, key in public.items()}
        (self.directory / security.ROSTER).write_text(json.dumps({n: k for n, k in changed.items() if k is not None}))

    def van(self, role: str, rank: int = 0, identity: str = "") -> ZmqVan:
        """The van of a process that has this key."""
        identity = identity or f"job/{role}/{INCARNATION:016x}"
        return ZmqVan(identity, role == "scheduler", keys=self.keys(role, rank))

    def office(self, role: str, rank: int | None = None, **settings: Any) -> Postoffice:
        config = {"num_workers": 1, "num_servers": 1, "start_timeout": 30.0, "timeout": 30.0, **settings}
        return Postoffice(Config(role=role, key_file=str(self.path(role, rank or 0)), **config))


def request(node: int, **fields: Any) -> Message:
    """A request as that node would send it."""
    return Message(**{"kind": Kind.REQUEST, "sender": node, "incarnation": INCARNATION, "op": Op.DATA, **fields})


def event(van: Van, *others: Van, which: Callable[[VanEvent], bool] = lambda _: True) -> VanEvent:
    """The next event of a van that is wanted; the others are kept going meanwhile."""
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        for other in others:
            other.wait(0.0)
            other.receive()
        van.wait(0.005)
        while (found := van.receive()) is not None:
            if which(found):
                return found
    raise AssertionError("nothing came")


def received(van: Van, *others: Van) -> Message:
    """The next message of a van, and nothing before it that is none; refused connections are no messages."""
    found = event(van, *others, which=lambda e: isinstance(e, (Received, Rejected)) and e.link != b"")
    assert isinstance(found, Received)
    return found.message


NODE = {"scheduler": ids.SCHEDULER, "server": ids.server_id(0), "worker": ids.worker_id(0)}

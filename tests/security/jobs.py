"""Keys of jobs, and vans and postoffices that have them."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import threading
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
    """The key files of a job with a server."""

    def __init__(self, directory: Path, workers: int = 2) -> None:
        self.directory = directory
        security.make(directory, workers=workers, servers=1)

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

#: Routing ids and messages that worker 1, node 11, may not send: they are another's.
NOT_ITS_OWN = [
    (f"job/server/{INCARNATION:016x}", request(8)),
    (f"job/scheduler/{INCARNATION:016x}", request(1, op=Op.EVENT, body=["over", True])),
    (f"job/worker/{INCARNATION:016x}", request(9)),
    (f"job/worker/{INCARNATION:016x}", request(1, op=Op.EVENT, body=["over", True])),
    (f"job/worker/{INCARNATION:016x}", request(11, incarnation=7)),
    (f"job/worker/{INCARNATION:016x}", request(0, op=Op.JOIN, body=["worker", 0, [], "h", 1])),
    (f"job/worker/{INCARNATION:016x}", request(0, op=Op.JOIN, body=["server", 0, ["tcp://h:1"], "h", 1])),
    (f"job/worker/{INCARNATION:016x}", request(9, kind=Kind.ACK, acks=[1, 5])),
    (f"job/worker/{INCARNATION:016x}", request(8, kind=Kind.REPLY)),
    ("scheduler", request(11)),
]


def stolen_roster(ring: Keyring, other: Keyring) -> security.Keys:
    """The key of a worker of another job, whose owner knows the public keys of this one."""
    shutil.copy(ring.directory / security.ROSTER, other.directory / security.ROSTER)
    other.change(worker_0=json.loads(other.path("worker").read_text())["public"])
    return other.keys("worker")


def outsider(kind: str, ring: Keyring, other: Keyring) -> ZmqVan:
    identity = f"job/worker/{INCARNATION:016x}"
    if kind == "no keys":
        return ZmqVan(identity)
    if kind == "unknown key":
        return ZmqVan(identity, keys=stolen_roster(ring, other))
    return other.van("worker")  # it expects another key of the scheduler, too


class Tap:
    """A relay of bytes that keeps what went through, both ways, and what the one who connected has said."""

    def __init__(self) -> None:
        self.seen, self.said = bytearray(), bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []

    def to(self, target: str) -> str:
        host, _, port = target.removeprefix("tcp://").rpartition(":")

        def accept() -> None:
            ends = [self._listener.accept()[0], socket.create_connection((host, int(port)))]
            self._sockets += ends
            for source, sink, kept in ((*ends, self.said), (*ends[::-1], bytearray())):
                self._threads.append(threading.Thread(target=pump, args=(source, sink, kept)))
                self._threads[-1].start()

        def pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
            with contextlib.suppress(OSError):  # closed
                while data := source.recv(1 << 16):
                    self.seen += data
                    kept += data
                    sink.sendall(data)

        self._threads.append(threading.Thread(target=accept))
        self._threads[0].start()
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._threads[0].join()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()

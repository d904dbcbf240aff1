"""A whole distributed store in one thread: real workers' stores and servers, over lines that the test empties.

Nothing moves by itself. Between two processes messages keep their order, as in a job; which line moves next is up to
the test. What a call must wait for is carried while it waits, in an order of its own.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

import msgpack

from kvstore.burst import BurstStore
from kvstore.server.service import Service
from pslite import Config, ids, wire
from pslite.errors import PSError, WorkerFinished, WorkerLeft
from pslite.memory import PLAIN
from pslite.postoffice.placement import key_ranges
from pslite.wire import Kind, Message, Op

ENDED = {"left": WorkerLeft, "finished": WorkerFinished}


class Office:
    """What ``BurstStore`` and ``Service`` use of a Postoffice."""

    forked = again = elastic = False
    memory = PLAIN

    def transport(self, node: int) -> str:
        return "direct"

    def __init__(self, cluster: Cluster, role: str, rank: int) -> None:
        self.config = cluster.config
        self.num_workers, self.num_servers = self.config.num_workers, self.config.num_servers
        self.rank, self.node = rank, ids.node_id(role, rank)
        self.name = ids.name_of(self.node)
        self._cluster = cluster
        self._serial = itertools.count()
        self._customers: dict[tuple[int, int], Callable[[Message], None]] = {}
        self._replies: dict[int, Callable[[Message], None]] = {}
        self._on_ended: Callable[[int, Any], None] = lambda node, error: None

    def request(self, node: int, message: Message, on_reply: Callable[[Any], None]) -> None:
        message.sender, message.recver, message.seq = self.node, node, next(self._serial)
        self._replies[message.seq] = on_reply
        self._cluster.send(message)

    def answer(self, request: Message, reply: Message) -> None:
        wire.check(reply)
        reply.sender, reply.recver, reply.seq = self.node, request.sender, request.seq
        self._cluster.send(reply)

    def receive(self, message: Message) -> None:
        if message.kind == Kind.REPLY:
            self._replies.pop(message.seq)(message)
        elif message.op == Op.EVENT:
            self._on_ended(message.body[0], PSError.from_wire(message.body[1]))
        else:
            self._customers[message.app, message.customer](message)

    def wait(self, done: Callable[[], bool], what: str, *rest: Any) -> None:
        while not done():
            assert self._cluster.step(), f"{self.name} would wait for {what} for ever"

    def leave(self, how: str, reason: str = "", **rest: Any) -> None:
        body = [self.node, ENDED[how](node=self.name, reason="later rounds").to_wire()]
        for server in self.node_ids(ids.SERVER_GROUP):
            event = Message(Kind.REQUEST, op=Op.EVENT, sender=ids.SCHEDULER, recver=server, body=body)
            self._cluster.send(event)

    def publish(self, records: dict[str, Any]) -> None:
        self._cluster.directory.update(msgpack.unpackb(msgpack.packb(records)))

    def lookup(self, names: list[str]) -> dict[str, Any]:
        return {name: self._cluster.directory[name] for name in names}

    def register(self, app: int, customer: int, accept: Callable[[Message], None]) -> None:
        self._customers[app, customer] = accept

    def on_peer_ended(self, callback: Callable[[int, Any], None]) -> None:
        self._on_ended = callback

    def on_peer_moved(self, callback: Callable[[Any], None]) -> None:
        pass

    def on_parked(self, why: Callable[[Message], list[str]]) -> None:
        pass

    def after(self, callback: Callable[[], None]) -> None:
        callback()

    def later(self, callback: Callable[[], None]) -> None:
        callback()

    def progress(self) -> None:
        pass

    def soon(self, callback: Callable[[], None], within: float) -> None:
        self._cluster.planned.append(callback)

    def check(self) -> None:
        pass

    def ended(self, node: int) -> None:
        return None

    def close(self) -> None:
        pass

    def server_key_ranges(self) -> list[tuple[int, int]]:
        return key_ranges(self.num_servers)

    def node_ids(self, group: int) -> list[int]:
        return ids.members(group, self.num_servers, self.num_workers)


class Cluster:
    """``stores`` are what the workers hold. ``order`` chooses what moves while a call waits."""

    def __init__(self, workers: int, servers: int, bound: int, order: Random) -> None:
        self.config = Config(num_workers=workers, num_servers=servers, bigarray_bound=bound)
        self.directory: dict[str, Any] = {}
        self._order = order
        self._lines: dict[tuple[int, int], deque[list[Any]]] = {}  # frames, by sender and receiver
        self._offices: dict[int, Office] = {}
        self.planned: list[Callable[[], None]] = []  # for a moment later
        self.services = [Service(self._office("server", rank)) for rank in range(servers)]
        self.stores = [BurstStore("dist_sync", self._office("worker", rank)) for rank in range(workers)]

    def _office(self, role: str, rank: int) -> Any:
        office = Office(self, role, rank)
        self._offices[office.node] = office
        return office

    def send(self, message: Message) -> None:
        line = self._lines.setdefault((message.sender, message.recver), deque())
        line.append(wire.encode(message))

    def step(self, choice: int | None = None) -> bool:
        """Carry one message; False if there is none. ``choice``: which line, of those that are not empty.

        One more choice, if there is anything planned, is that its time has come.
        """
        busy: list[tuple[int, int] | None] = [key for key, line in self._lines.items() if line]
        busy += [None] * bool(self.planned)
        if busy:
            key = busy[(self._order.randrange(len(busy)) if choice is None else choice) % len(busy)]
            if key is None:
                self.planned.pop(0)()
                return True
            frames = [bytes(frame) for frame in self._lines[key].popleft()]  # large arrays are read only now
            self._offices[key[1]].receive(wire.decode(frames))
        return bool(busy)

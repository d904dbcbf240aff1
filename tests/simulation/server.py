"""A server: the real Service and Store, whose keys are in memory that outlives the process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kvstore import optimizer
from kvstore.rules import OptimizerRule
from kvstore.server.service import Service
from kvstore.server.store import New
from kvstore.spec import Spec
from pslite import Config, ids, wire
from pslite.dtypes import CODES
from pslite.errors import PSError
from pslite.memory import PLAIN
from pslite.postoffice.actions import PeerAway, PeerBack, PeerEnded
from pslite.wire import Kind, Message, Op

from .disk import SLOW, Disk
from .kept import Memory
from .process import Process

if TYPE_CHECKING:
    from .job import Job

RULE = OptimizerRule(optimizer.create("test")).to_wire()  # adds what is pushed; its slot must be equal to the value


class Office:
    """What Service uses of a Postoffice."""

    memory = PLAIN

    def __init__(self, server: Server, kept: Memory) -> None:
        self._server, self._kept = server, kept
        plan, directory = server.job.plan, server.job.directory
        self.config = Config(
            job="job", restarts=server.restarts, keeper_fd=0, timeout=None,
            checkpoint_dir=directory, checkpoint_every=plan.save_every or None, checkpoint_keep=2,
        )  # fmt: skip
        self.node, self.rank, self.again = server.node, server.rank, server.core.again
        self.num_workers, self.num_servers = server.core.num_workers, server.core.num_servers
        self.customers: dict[tuple[int, int], Callable[[Message], None]] = {}
        self.on_ended: list[Callable[[int, Any], None]] = []
        self.on_moved: list[Callable[[Any], None]] = []

    def open_kept(self) -> Memory:
        return self._kept

    def register(self, app: int, customer: int, accept: Callable[[Message], None]) -> None:
        self.customers[app, customer] = accept

    def answer(self, request: Message, reply: Message) -> None:
        wire.check(reply)
        self._server.run(list(self._server.core.delivery.reply(request, reply)))

    def request(self, node: int, message: Message, on_reply: Callable[[Message | PSError], None]) -> Any:
        pending, actions = self._server.core.request(self._server.world.now, node, message, on_reply)
        self._server.run(actions)
        return pending

    def later(self, callback: Callable[[], None]) -> None:
        self._server.later(callback)

    after = later

    def soon(self, callback: Callable[[], None], within: float) -> None:
        self._server.world.after(within, lambda: self._server.poke(callback))

    def check(self) -> None:
        pass

    def on_peer_ended(self, callback: Callable[[int, Any], None]) -> None:
        self.on_ended.append(callback)
        for peer in self._server.core.roster.values():
            if peer.ended is not None:
                callback(peer.node, peer.ended)

    def on_peer_moved(self, callback: Callable[[Any], None]) -> None:
        self.on_moved.append(callback)

    def node_ids(self, group: int) -> list[int]:
        return ids.members(group, self.num_servers, self.num_workers)

    def ended(self, node: int) -> Any:
        return self._server.core.roster[node].ended

    def on_parked(self, why: Callable[[Message], list[str]]) -> None:
        self._server.core.why = why


class Server(Process):
    """Serves until the job is over. What it has committed outlives it."""

    memory: Memory | None = None
    _writing = False  # the next of ``_files`` is planned

    def __init__(self, job: Job, role: str, rank: int, restarts: int = 0) -> None:
        super().__init__(job, role, rank, restarts)
        self._files: deque[Callable[[], None]] = deque()  # what its thread of files has to do
        self.disks: list[Disk] = []
        self.network.bind(self)

    def on_join(self) -> None:
        self.memory = Memory(self.job.keepers[self.rank])
        self._office: Any = Office(self, self.memory)
        self.service = Service(self._office)
        store = self.service.store
        store.settings.agree(None, 0, "type", "sync" if self.job.plan.sync else "async")
        store.settings.agree(None, 0, "rule", RULE)
        zero = np.zeros(2 * self.core.num_workers, np.float32)
        new = {
            key: New(Spec(f"key{key}", zero.shape, CODES["float32"], False), False, zero)
            for key in self.job.keys_of(self.rank)
        }
        if not self.restarts or store.absent(new):
            self.service._keep_settings()
            store.init(None, 0, store.absent(new))

    def die(self) -> None:
        if self.memory is not None:
            self.memory.end(self.world.rng)
            self.memory = None
        for disk in self.disks:
            disk.end()

    def write(self, job: Callable[[], None]) -> None:
        """Have the thread of files do this, behind what it has to do."""
        self._files.append(job)
        self._write_next()

    def _write_next(self) -> None:
        if self._files and not self._writing:
            self._writing = True
            self.world.after(self.world.rng.choice(SLOW), lambda: self.poke(self._write))

    def _write(self) -> None:
        self._writing = False
        self._files.popleft()()
        self._write_next()

    def deliver(self, message: Message) -> None:
        self._office.customers[message.app, message.customer](message)

    def on_peer_ended(self, action: PeerEnded) -> None:
        for call in self._office.on_ended:
            call(action.node, action.error)

    def on_peer_moved(self, action: PeerAway | PeerBack) -> None:
        for call in self._office.on_moved:
            call(action)

    def progress(self) -> None:
        if self.core.job_over and not self.leaving:
            self.leaving = True
            leave = Message(Kind.REQUEST, op=Op.LEAVE, body=["finished", "", False])
            _, actions = self.core.request(self.world.now, ids.SCHEDULER, leave, lambda _: self._left())
            self.run(actions)

    def _left(self) -> None:
        self.world.after(0.0, lambda: self.job.launcher.end(self))

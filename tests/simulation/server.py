"""A server: the real Service and Store. What is kept of a key outlives the process; it changes at once, or never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kvstore import optimizer
from kvstore.checkpoint.unit import Unit
from kvstore.rules import OptimizerRule
from kvstore.server.bundle import Bundle
from kvstore.server.entry import Contribution, Entry
from kvstore.server.service import Service
from kvstore.server.store import New
from kvstore.server.ticket import Ticket
from kvstore.spec import Spec
from pslite import Config, ids, wire
from pslite.dtypes import CODES
from pslite.memory import PLAIN
from pslite.postoffice.actions import PeerAway, PeerBack, PeerEnded
from pslite.wire import Kind, Message, Op

from .process import Process

if TYPE_CHECKING:
    from .job import Job

RULE = OptimizerRule(optimizer.create("test")).to_wire()  # adds what is pushed; its slot must be equal to the value


@dataclass
class Kept:
    """A key as of its last update."""

    unit: Unit
    applied: dict[int, int]  # by rank: the number of its last push that is in the value


class Office:
    """What Service uses of a Postoffice."""

    memory = PLAIN

    def __init__(self, server: Server) -> None:
        self._server = server
        self.config = Config(restarts=server.restarts)
        self.node, self.rank = server.node, server.rank
        self.num_workers, self.num_servers = server.core.num_workers, server.core.num_servers
        self.customers: dict[tuple[int, int], Callable[[Message], None]] = {}
        self.on_ended: list[Callable[[int, Any], None]] = []
        self.on_moved: list[Callable[[Any], None]] = []

    def register(self, app: int, customer: int, accept: Callable[[Message], None]) -> None:
        self.customers[app, customer] = accept

    def answer(self, request: Message, reply: Message) -> None:
        wire.check(reply)
        self._server.run(list(self._server.core.delivery.reply(request, reply)))

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
    """Serves until the job is over."""

    def __init__(self, job: Job, role: str, rank: int, restarts: int = 0) -> None:
        super().__init__(job, role, rank, restarts)
        self.kept: dict[int, Kept] = job.kept[rank]
        self.network.bind(self)

    def on_join(self) -> None:
        self._office: Any = Office(self)
        self.service = Service(self._office)
        store = self.store = self.service.store
        store.settings.agree(None, 0, "type", "sync" if self.job.plan.sync else "async")
        store.settings.agree(None, 0, "rule", RULE)
        for key in self.job.keys_of(self.rank):
            zero = np.zeros(2 * self.core.num_workers, np.float32)
            store.init(None, 0, {key: New(Spec(f"key{key}", zero.shape, CODES["float32"], False), False, zero)})
            if key in self.kept:
                self._restore(store._entries[key], self.kept[key])
        self._apply_to, store._apply = store._apply, self._apply  # type: ignore[method-assign]

    def _restore(self, entry: Entry, kept: Kept) -> None:
        entry.value.restore(kept.unit, self.store.settings.rule_of(0))
        entry.rounds = kept.unit.version
        entry.taken, entry.applied = dict(kept.applied), dict(kept.applied)

    def _apply(self, entry: Entry, contributions: list[Contribution]) -> list[Ticket]:
        """A round: the process may die before it is kept, after that, and in the midst of several keys."""
        done = self._apply_to(entry, contributions)
        for key, kept in self._units(entry):
            self.point("commit")
            self.kept[key] = kept
        self.point("committed")
        return done

    def _units(self, entry: Entry) -> list[tuple[int, Kept]]:
        whole = entry.value.unit(True, None)
        whole = replace(whole, arrays={name: array.copy() for name, array in whole.arrays.items()})
        if not isinstance(entry, Bundle):
            return [(self.job.key_named(entry.value.spec.key), Kept(whole, dict(entry.applied)))]  # type: ignore[arg-type]
        applied = {rank: entry.each(numbers).tolist() for rank, numbers in entry.applied.items()}
        return [
            (key, Kept(unit, {rank: numbers[i] for rank, numbers in applied.items()}))
            for i, (key, unit) in enumerate(entry.units(whole).items())
        ]

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

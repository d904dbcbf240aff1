"""A process: the real Core in a shell without threads, which can be slow, stop for a while, and die at any point."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pslite import ids
from pslite.delivery import Delivery, Send
from pslite.flow import Arrivals
from pslite.postoffice.actions import Action, Connect, Deliver, PeerAway, PeerBack, PeerEnded
from pslite.postoffice.core import LOOPBACK, Core
from pslite.postoffice.recovery import routing_id
from pslite.van.base import Received, VanEvent
from pslite.wire import Frame, Kind, Link, Message, decode

if TYPE_CHECKING:
    from .job import Job
    from .network import Connection

FOR_EVER = float("inf")
TICK = 1e-6  # seconds: a timer that by a rounding error is not due yet is not due at the same time again
Item = tuple[Link, list[Frame]] | VanEvent


class Crashed(BaseException):
    """This process dies here. No Exception, so that no handler of errors survives it."""


class Process:
    """One process of the job; its successor is another object."""

    def __init__(self, job: Job, role: str, rank: int, restarts: int = 0) -> None:
        self.job, self.world, self.network = job, job.world, job.network
        self.role, self.rank, self.restarts = role, rank, restarts
        self.incarnation = self.world.rng.getrandbits(62)
        self.link = routing_id("job", role, self.incarnation).encode()
        self.address = "root" if role == "scheduler" else f"sim:{self.incarnation:x}"
        self.node = ids.node_id(role, rank)
        self.place = ids.name_of(self.node)  # where it is, in the network; its successor is there, too
        self.name = f"{self.place}#{restarts}"
        self.pid = job.next_pid()
        self.core = Core(role, Delivery(self.incarnation, job.plan.resend_timeout), returns=True)
        self.connections: dict[int, Connection] = {}  # that it made, by node
        self.routes: dict[bytes, Connection] = {}  # that were made to it, by routing id
        self.alive = True
        self.joined = False
        self.leaving = False  # it has nothing left to do but to leave: it is not harmed any more
        self.status: int | None = None  # with which it has ended by itself
        self.excused = False  # something was done to it for which it may be taken for dead
        self.free_at = 0.0  # until then it handles nothing
        self.slowness = 0.0  # seconds that it takes for each event
        self.doom: tuple[str, int] | None = None  # it dies at the n-th point of this kind from now on
        self._inbox: deque[Item] = deque()  # while it handles nothing
        self._wakes = False  # an event that empties the inbox is planned
        self._local: deque[Message] = deque()
        self._deliveries: Arrivals[Any] = Arrivals()
        self._timer_at = FOR_EVER
        self._delivered: set[tuple[int, int]] = set()  # requests that its application has had

    # -- what the kinds of processes do -------------------------------------------------------------------------------

    def begin(self) -> None:
        """The process starts."""
        self.network.connect(self, ids.SCHEDULER, "root")
        addresses = [self.address] if self.role == "server" else []
        asked = self.job.plan.asked if self.role == "worker" else ""
        wishes = (self.rank, addresses, "host", self.pid, self.restarts, asked)
        self._guarded(lambda: self.run(self.core.join(self.world.now, *wishes)))

    def on_join(self) -> None:
        """It is a member now."""

    def deliver(self, message: Message) -> None:
        """A request for the application."""

    def on_peer_ended(self, action: PeerEnded) -> None:
        """A peer will not come again."""

    def on_peer_moved(self, action: PeerAway | PeerBack) -> None:
        """A peer has died, or has a successor."""

    def progress(self) -> None:
        """Runs after every event."""

    def die(self) -> None:
        """This process is no more."""

    # -- events -------------------------------------------------------------------------------------------------------

    def arrive(self, item: Item) -> None:
        """Something comes from the network."""
        if not self.alive:
            return
        if self._inbox or self.free_at > self.world.now:
            self._inbox.append(item)
            self._wake()
        else:
            self._guarded(self._handle, item)

    def pause(self, seconds: float) -> None:
        """Handle nothing for so long, as after SIGSTOP."""
        self.free_at, self.excused = max(self.free_at, self.world.now + seconds), True
        self.network.on_pause(self, self.world.now + seconds)

    @property
    def stopped(self) -> bool:
        """Whether it handles nothing now."""
        return self.free_at > self.world.now

    def _wake(self) -> None:
        if not self._wakes:
            self._wakes = True
            self.world.at(self.free_at, self._empty)

    def _empty(self) -> None:
        """Handle what came meanwhile; which connection is read first is anybody's guess."""
        self._wakes = False
        if len(self._inbox) > 2:
            self._shuffle()
        while self._inbox and self.alive:
            if self.free_at > self.world.now:
                self._wake()
                return
            self._guarded(self._handle, self._inbox.popleft())

    def _shuffle(self) -> None:
        lines: dict[Any, deque[Item]] = {}
        for item in self._inbox:
            lines.setdefault(item[0] if isinstance(item, tuple) else item, deque()).append(item)
        self._inbox.clear()
        while lines:
            link = self.world.rng.choice(list(lines))
            self._inbox.append(lines[link].popleft())
            if not lines[link]:
                del lines[link]

    def _handle(self, item: Item) -> None:
        self.point("event")
        if isinstance(item, tuple):
            link, frames = item
            message = decode(frames)
            self.world.note(self.name, message, frames[0])  # type: ignore[arg-type]
            self.run(self.core.on_event(self.world.now, Received(link, message)))
        else:
            self.world.note(self.name, item)
            self.run(self.core.on_event(self.world.now, item))

    def _guarded(self, step: Callable[..., None], *args: Any) -> None:
        """Take a step, which may be the last one, and do all that follows from it."""
        if not self.alive:
            return
        self.job.acting = self
        if self.slowness:
            self.free_at = max(self.free_at, self.world.now + self.slowness)
        try:
            step(*args)
            self._settle()
        except Crashed:
            self.world.note(self.name, "is killed")
            self.job.launcher.kill(self)

    def _settle(self) -> None:
        if not self.joined and self.core.ready:
            self.joined = True
            self.on_join()
        while self._local or self._deliveries.count:
            if self._local:
                self.run(self.core.on_event(self.world.now, Received(LOOPBACK, self._local.popleft())))
            else:
                self._deliveries.pop()()
        if self.core.fatal is not None:
            self.job.launcher.give_up(self, self.core.fatal)
            return
        self.progress()
        if self._local or self._deliveries.count:
            self._settle()
        elif self.alive:
            self._plan_timer()

    def _plan_timer(self) -> None:
        due = max(self.core.next_timer(), self.world.now + TICK)
        if due < self._timer_at:
            self._timer_at = due
            self.world.at(due, self._on_timer)

    def _on_timer(self) -> None:
        if not self.alive or self._timer_at > self.world.now:
            return  # a later one was planned, or none is due any more
        if self.free_at > self.world.now:
            self._timer_at = self.free_at
            self.world.at(self.free_at, self._on_timer)
            return
        self._timer_at = FOR_EVER
        self._guarded(lambda: self.run(self.core.on_timer(self.world.now)))

    def poke(self, job: Callable[[], None] = lambda: None) -> None:
        """Do something as soon as possible, and see whether there is anything else to do by now."""
        if self.stopped:
            self.world.at(self.free_at, lambda: self.poke(job))
        else:
            self._guarded(job)

    def later(self, callback: Callable[[], None]) -> None:
        """Run this when what is being done is done."""
        self._deliveries.add(callback)

    # -- actions ------------------------------------------------------------------------------------------------------

    def do(self, decide: Callable[[], list[Action]]) -> None:
        """Carry out what the core decides outside an event of its own, for the launcher."""
        self._guarded(lambda: self.run(decide()))

    def run(self, actions: list[Action]) -> None:
        """Carry out actions, as the real shell does."""
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Deliver):
                self._check_delivery(action.message)
                self._deliveries.add(partial(self.deliver, action.message), action.message)
            elif isinstance(action, Connect):
                self.network.connect(self, action.node, action.addresses[0])
            elif isinstance(action, PeerEnded):
                self._deliveries.add(partial(self.on_peer_ended, action))
            elif isinstance(action, (PeerAway, PeerBack)):
                self._deliveries.add(partial(self.on_peer_moved, action))

    def _send(self, send: Send) -> None:
        if send.link == LOOPBACK:
            self._local.append(send.message)
            return
        if send.message.kind != Kind.BEAT:
            self.point("send")
        if not self.network.send(self, send.link, send.message) and send.message.kind == Kind.BEAT:
            self.core.on_unreachable(self.world.now, send.link)

    def _check_delivery(self, message: Message) -> None:
        self.job.oracle.on_delivery(self, message, (message.incarnation, message.seq) in self._delivered)
        self._delivered.add((message.incarnation, message.seq))

    def point(self, kind: str) -> None:
        """A point at which this process may die."""
        if self.doom is not None and self.doom[0] == kind:
            self.doom = kind, self.doom[1] - 1
            if not self.doom[1] and not self.leaving:
                raise Crashed

"""The in-process van: the real protocol without sockets, for tests, notebooks and LocalCluster.

It is as unforgiving as the real one: every header is encoded and decoded, a buffer is read only when the receiver
takes the message (as ZeroMQ reads it some time after ``send``), and received arrays are read-only copies.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from pslite.errors import BindError, ProtocolError
from pslite.wire import Frame, Link, Message, decode, encode

from .base import LinkDown, LinkUp, Received, Rejected, Van, VanEvent

Fault = Callable[[str, str, Message], int]
"""Decides the fate of a message from one van to another (by name): how many times it arrives, 0 loses it."""


class Hub:
    """Connects the in-process vans of one cluster."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.lock = threading.Lock()  # guards all mailboxes and tables of the hub's vans
        self.bound: dict[str, InprocVan] = {}  # by address
        self.by_name: dict[bytes, InprocVan] = {}  # by routing id
        self.fault = fault

    def kill(self, van: InprocVan) -> None:
        """Make a van's process look dead: nothing goes in or out any more, its peers see their links break."""
        with self.lock:
            van.dead = True
            van.mailbox.clear()
            self.by_name.pop(van.name, None)
            for address in [a for a, v in self.bound.items() if v is van]:
                del self.bound[address]
            for other in self.by_name.values():
                for node, peer in other.links.items():
                    if peer is van:
                        other.links[node], other.wanted[node] = None, other.addresses[node]
                        other.post(LinkDown(node))


class InprocVan(Van):
    """One process's end of a Hub."""

    def __init__(self, hub: Hub, name: str) -> None:
        self.hub = hub
        self.name = name.encode()
        self.dead = False
        self.mailbox: deque[tuple[Link, list[Frame]] | VanEvent] = deque()  # guarded by the hub's lock
        self.links: dict[int, InprocVan | None] = {}  # peers that we connected to, by node id; guarded likewise
        self.addresses: dict[int, str] = {}  # where we connected to them; guarded likewise
        self.wanted: dict[int, str] = {}  # connections to addresses that nobody has bound now; guarded likewise
        self.queued: dict[int, list[list[Frame]]] = {}  # what was sent on them; guarded likewise
        self._ready = threading.Condition(hub.lock)
        self._woken = False
        hub.by_name[self.name] = self

    def bind(self, address: str, fd: int | None = None) -> str:
        with self.hub.lock:
            if address in self.hub.bound:
                raise BindError(address=address, reason="another process of this cluster has it")
            self.hub.bound[address] = self
            for van in self.hub.by_name.values():
                for node in [n for n, wanted in van.wanted.items() if wanted == address]:
                    van.establish(node, self)
        return address

    def connect(self, node: int, address: str) -> Link:
        with self.hub.lock:
            self.addresses[node] = self.wanted[node] = address
            self.links[node] = None
            self.queued.pop(node, None)  # it was for another process
            peer = self.hub.bound.get(address)
            if peer is not None:
                self.establish(node, peer)
        return node

    def establish(self, node: int, peer: InprocVan) -> None:
        """The peer that we wanted to connect to is there; the hub's lock is held."""
        del self.wanted[node]
        self.links[node] = peer
        self.post(LinkUp(node))
        for frames in self.queued.pop(node, []):
            peer.post((self.name, frames))

    def disconnect(self, node: int) -> None:
        with self.hub.lock:
            self.links.pop(node, None)
            self.wanted.pop(node, None)
            self.queued.pop(node, None)

    def send(self, link: Link, message: Message) -> bool:
        frames = encode(message)
        with self.hub.lock:
            if self.dead:
                return True
            peer = self.links.get(link) if isinstance(link, int) else self.hub.by_name.get(link)
            if isinstance(link, int) and link in self.wanted:
                self.queued.setdefault(link, []).append(frames)
            if peer is None or peer.dead:
                return link in self.links
            back = self._link_from(peer) if isinstance(link, bytes) else self.name
            if back is None:
                return False  # the peer dropped its connection to us
            copies = 1 if self.hub.fault is None else self.hub.fault(self.name.decode(), peer.name.decode(), message)
            for _ in range(copies):
                peer.post((back, frames))
        return True

    def _link_from(self, peer: InprocVan) -> int | None:
        """The node id under which a peer connected to us: its reply arrives on that link."""
        return next((node for node, van in peer.links.items() if van is self), None)

    def post(self, item: tuple[Link, list[Frame]] | VanEvent) -> None:
        """Put something into the mailbox; the hub's lock is held."""
        if not self.dead:
            self.mailbox.append(item)
            self._ready.notify_all()

    def receive(self) -> VanEvent | None:
        with self.hub.lock:
            if self.dead or not self.mailbox:
                return None
            item = self.mailbox.popleft()
        if not isinstance(item, tuple):
            return item
        link, frames = item
        try:
            return Received(link, decode([bytes(frame) for frame in frames]))
        except ProtocolError as error:
            return Rejected(link, str(error))

    def wait(self, timeout: float | None) -> bool:
        with self.hub.lock:
            came = self._ready.wait_for(lambda: self._woken or (self.mailbox and not self.dead), timeout)
            self._woken = False
        return bool(came)

    def wake(self) -> None:
        with self.hub.lock:
            self._woken = True
            self._ready.notify_all()

    def close(self, linger: float) -> None:
        with self.hub.lock:
            already = self.dead
        if not already:
            self.hub.kill(self)

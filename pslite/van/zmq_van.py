"""The ZeroMQ van: one ROUTER that peers connect to, and one DEALER per peer that we connect to, over tcp and ipc."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import select
from collections.abc import Sequence
from functools import partial
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from pslite import ids
from pslite.errors import BindError, JoinError, ProtocolError
from pslite.flow import SMALL, cost
from pslite.memory import PACK_BELOW
from pslite.wire import Array, Flag, Link, Message, Place, decode, encode

from .base import LinkDown, LinkUp, Received, Rejected, Van, VanEvent
from .shared.exchange import TIDY_EVERY, Exchange

log = logging.getLogger("pslite")

# malloc.h: M_MMAP_THRESHOLD, whose largest value this is; M_TRIM_THRESHOLD; M_TOP_PAD
_MALLOC = ((-3, 32 * 1024 * 1024), (-1, 1024 * 1024 * 1024), (-2, 64 * 1024 * 1024))

COPY_BELOW = 64 * 1024  # bytes; for smaller frames a copy is cheaper than ZeroMQ's book-keeping of a foreign buffer
HEARTBEAT_INTERVAL = 250  # ms
HEARTBEAT_TIMEOUT = 1000  # ms for an answer; then the peer is disconnected, and is lost if it does not come back soon
ACKNOWLEDGED_WITHIN = 2000  # ms for a peer's kernel to take what we send; else the same

_POLLIN = int(zmq.POLLIN)  # plain ints: the operators of pyzmq's enums cost microseconds
_UP, _DOWN = int(zmq.EVENT_HANDSHAKE_SUCCEEDED), int(zmq.EVENT_DISCONNECTED)
_DONTWAIT, _DONTWAIT_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)


class ZmqVan(Van):
    """A van over ZeroMQ. Its sockets are used under the postoffice's lock only, except that ``wait`` polls their
    file descriptors.

    The scheduler and every member exchange heartbeats, but members do not among themselves: while a large frame is on
    its way no heartbeat gets through, and a slow network would have its connections cut in the midst of each. There
    TCP tells who cannot be reached: by what is not acknowledged, be it only a probe of what is overdue.
    ``heartbeats``: whether those who connect to us get them, as on the scheduler. ``exchange``: for peers that share
    memory with us.
    """

    def __init__(self, identity: str, heartbeats: bool = False, exchange: Exchange | None = None) -> None:
        if zmq.zmq_version_info() < (4, 3, 3):  # older ones can be blocked by a raw TCP client (CVE-2020-15166)
            raise JoinError(node="this process", reason=f"libzmq {zmq.zmq_version()} is too old, 4.3.3 is needed")
        self._context = zmq.Context()
        # The default of 1023 sockets is one DEALER and two monitor ends per peer: 341 peers.
        self._context.set(zmq.MAX_SOCKETS, 65_535 if zmq.zmq_version_info() >= (4, 3) else 1023)
        self._identity = identity.encode()
        self._heartbeats = heartbeats
        self._exchange = exchange
        if exchange is not None:
            self.memory = exchange.memory
        else:
            _keep_freed_memory()
        self._transports: dict[int, str] = {}  # by the node that we connected to
        self._router: zmq.Socket[bytes] | None = None
        self._dealers: dict[int, zmq.Socket[bytes]] = {}
        self._monitors: dict[int, zmq.Socket[bytes]] = {}
        self._nodes: dict[zmq.Socket[bytes], int] = {}  # the node that a DEALER or monitor is for
        self._sockets: dict[int, zmq.Socket[bytes]] = {}  # all that are read, by file descriptor
        self._signalled: dict[zmq.Socket[bytes], None] = {}  # may have a message; whoever waits is awake, or woken
        self._polled: list[tuple[int, int]] = []  # what ``wait`` found, for ``receive``: not under the lock
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._offers = -1 if exchange is None else exchange.fileno()
        if exchange is not None:
            self._poll.register(self._offers, select.POLLIN)
        self._offered = False  # whether the exchange has something to receive; set by the thread in ``wait``

    # -- connections --------------------------------------------------------------------------------------------------

    def bind(self, address: str, fd: int | None = None) -> str:
        if self._router is None:
            self._router = self._socket(zmq.ROUTER, self._heartbeats)
            # Without it a message to an unknown or dead peer vanishes silently; with it send says EHOSTUNREACH.
            self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            # A peer that comes back before we have looked at its end would be ignored for good: it takes over instead.
            self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
            self._register(self._router)
        router = self._router
        try:
            if fd is not None:
                router.setsockopt(zmq.USE_FD, fd)  # the launcher opened it: no other process can take the address
            router.setsockopt(zmq.IPV6, int("[" in address))  # else tcp://[::1] is "no such device"
            router.bind(address)
        except zmq.ZMQError as error:
            raise BindError(address=address, reason=zmq.strerror(error.errno or 0)) from error
        finally:
            if fd is not None:
                router.setsockopt(zmq.USE_FD, -1)
            self._look(router)  # binding a second address may have swallowed the signal of the first one's peers
        return address if address.startswith("ipc:") else router.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, node: int, address: str) -> Link:
        self.disconnect(node)
        dealer = self._socket(zmq.DEALER, heartbeats=node == ids.SCHEDULER)
        dealer.setsockopt(zmq.IDENTITY, self._identity)  # fresh per process: a reused one is ignored by the ROUTER
        dealer.setsockopt(zmq.IPV6, int("[" in address))
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)  # ms; the default backs off to nothing and finds a restart late
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        monitor = dealer.get_monitor_socket(_UP | _DOWN)
        self._dealers[node], self._monitors[node] = dealer, monitor
        self._register(dealer)
        self._register(monitor)
        self._nodes[dealer] = self._nodes[monitor] = node
        scheme = address.partition(":")[0]
        incarnation = os.path.basename(address).removesuffix(".sock")
        shares = self._exchange is not None and scheme == "ipc" and self._exchange.meet(node, incarnation)
        self._transports[node] = "shm" if shares else scheme
        log.info("%s is reached by %s", ids.name_of(node), self._transports[node])
        dealer.connect(address)
        self.wake()  # a thread that polls does not know the new descriptors
        return node

    def disconnect(self, node: int) -> None:
        dealer = self._dealers.pop(node, None)
        if dealer is None:
            return
        if self._exchange is not None:
            self._exchange.part(node)
        monitor = self._monitors.pop(node)
        for sock in (dealer, monitor):
            fd = _fd(sock)
            self._poll.unregister(fd)
            del self._sockets[fd], self._nodes[sock]
            self._signalled.pop(sock, None)
        dealer.disable_monitor()
        monitor.close(linger=0)
        dealer.close(linger=0)

    def forget(self, incarnation: int) -> None:
        if self._exchange is not None:
            self._exchange.forget(incarnation)

    def _socket(self, kind: int, heartbeats: bool) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self._context.socket(kind)
        # The high-water mark counts messages, not bytes, and a ROUTER drops above it: what may be in flight is
        # bounded by the protocol (parked rounds), not here.
        sock.setsockopt(zmq.SNDHWM, 0)
        sock.setsockopt(zmq.RCVHWM, 0)
        sock.setsockopt(zmq.LINGER, 0)  # close(linger) sets it; the default of -1 hangs on a dead peer for ever
        if heartbeats:
            # TCP alone does not notice a frozen or cut peer; ZeroMQ's own thread answers, so a busy interpreter lives.
            sock.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_INTERVAL)
            sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT)
        else:
            # TCP would try for a quarter of an hour to reach a peer that the scheduler hears and we do not.
            sock.setsockopt(zmq.TCP_MAXRT, ACKNOWLEDGED_WITHIN)
        sock.setsockopt(zmq.HANDSHAKE_IVL, 2000)  # ms; silent connections would hold a descriptor for 30 s
        return sock

    def _register(self, sock: zmq.Socket[bytes]) -> None:
        fd = _fd(sock)
        self._sockets[fd] = sock
        self._poll.register(fd, select.POLLIN)
        self._signalled[sock] = None  # no signal comes before a first look

    # -- messages -----------------------------------------------------------------------------------------------------

    def send(self, link: Link, message: Message) -> bool:
        frames = encode(message, None if self._exchange is None else partial(self._place, link, message.flags))
        sock = self._router if isinstance(link, bytes) else self._dealers.get(link)
        if sock is None:
            return False
        if isinstance(link, bytes):
            frames = [link, *frames]
        last = len(frames) - 1
        try:
            for i, frame in enumerate(frames):
                sock.send(frame, _DONTWAIT_MORE if i < last else _DONTWAIT, copy=len(frame) < COPY_BELOW)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        finally:
            self._look(sock)
        return True

    def _place(self, link: Link, flags: int, array: Array) -> Place | None:
        """Where a peer finds an array of a message in our memory, if it may read it there."""
        if self._exchange is None or flags & Flag.BY_VALUE or not self._exchange.shares(link):
            return None
        return self._exchange.place(link, array)

    def _look(self, sock: zmq.Socket[bytes]) -> None:
        """Whatever a socket does may swallow the signal of its descriptor: see whether it has a message."""
        if sock not in self._signalled and sock.getsockopt(zmq.EVENTS) & _POLLIN:  # type: ignore[operator]
            self._signalled[sock] = None
            self.wake()

    def receive(self) -> VanEvent | None:
        if self._polled:
            polled, self._polled = self._polled, []
            for fd, _ in polled:
                if (sock := self._sockets.get(fd)) is not None:
                    self._signalled[sock] = None
        while self._signalled:
            sock = next(iter(self._signalled))
            event = self._read(sock)
            del self._signalled[sock]
            if sock.getsockopt(zmq.EVENTS) & _POLLIN:  # type: ignore[operator]
                self._signalled[sock] = None  # the others have their turn first
            if event is not None:
                return event
        self._keep_memory()
        return None

    def _read(self, sock: zmq.Socket[bytes]) -> VanEvent | None:
        """The event in a socket; None if it has no message, or a monitor's that says nothing new."""
        try:
            frame = sock.recv(_DONTWAIT, copy=False)
        except zmq.Again:
            return None
        frames = [frame]
        while frame.more:
            frame = sock.recv(_DONTWAIT, copy=False)
            frames.append(frame)
        node = self._nodes.get(sock)
        if node is None:
            return self._decoded(frames[0].bytes, frames[1:])
        if sock is self._dealers[node]:
            return self._decoded(node, frames)
        event = parse_monitor_message([f.bytes for f in frames])["event"]
        return LinkUp(node) if event == _UP else LinkDown(node) if event == _DOWN else None

    def _decoded(self, link: Link, frames: Sequence[Any]) -> VanEvent:
        try:
            find = None if self._exchange is None else self._exchange.find
            return Received(link, decode([frame.buffer for frame in frames], find))
        except ProtocolError as error:
            return Rejected(link, str(error))

    def transport(self, node: int) -> str:
        return self._transports[node]

    def weigh(self, link: Link, message: Message) -> int:
        weight = cost(message)
        if weight and self._exchange is not None and self._exchange.shares(link):
            weight -= sum(a.nbytes for a in message.arrays if a.nbytes >= PACK_BELOW and self._exchange.has(a))
        return weight if weight >= SMALL else 0

    def _keep_memory(self) -> None:
        """Take in what peers have offered, give back what was not needed for long; when there is nothing else to do."""
        if self._exchange is None:
            return
        if self._offered:
            self._offered = False
            self._exchange.receive()
        self._exchange.tidy()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> None:
        if self._exchange is not None:
            timeout = TIDY_EVERY if timeout is None else min(timeout, TIDY_EVERY)
        # A descriptor is readable from the signal on until its socket was looked at, which ``receive`` does until None.
        self._polled = self._poll.poll(None if timeout is None else max(timeout, 0) * 1000)
        if (self._wakeup, select.POLLIN) in self._polled:
            os.eventfd_read(self._wakeup)
        if (self._offers, select.POLLIN) in self._polled:
            self._offered = True

    def wake(self) -> None:
        os.eventfd_write(self._wakeup, 1)

    def close(self, linger: float) -> None:
        for node in list(self._dealers):
            dealer = self._dealers[node]
            dealer.setsockopt(zmq.LINGER, int(linger * 1000))
            monitor = self._monitors[node]
            dealer.disable_monitor()
            monitor.close(linger=0)
            dealer.close(linger=int(linger * 1000))
        self._dealers.clear()
        self._monitors.clear()
        if self._router is not None:
            self._router.close(linger=int(linger * 1000))
            self._router = None
        if self._exchange is not None:
            self._exchange.close()
        self._context.term()  # returns when everything queued has left, or after linger
        os.close(self._wakeup)


def _fd(sock: zmq.Socket[bytes]) -> int:
    fd = sock.getsockopt(zmq.FD)
    assert isinstance(fd, int)
    return fd


@functools.cache
def _keep_freed_memory() -> None:
    """Have the allocator keep what large frames leave free: else each takes new pages, which the kernel has to clear.

    Measured with 102 MB by TCP: workers take 0.55 instead of 0.75 CPU seconds per GB. For glibc only.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, nbytes in _MALLOC:
            mallopt(option, nbytes)

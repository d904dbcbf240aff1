"""The ZeroMQ van: one ROUTER that peers connect to, and one DEALER per peer that we connect to, over tcp and ipc."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import select
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import zmq
from zmq.utils.garbage import gc as collector
from zmq.utils.monitor import parse_monitor_message

from pslite import ids, network
from pslite.config import host_of
from pslite.errors import BindError, JoinError, ProtocolError
from pslite.flow import SMALL, cost
from pslite.memory import PACK_BELOW, KeptMemory
from pslite.security import Keys
from pslite.wire import MAX_FRAME, Array, Flag, Link, Message, Place, decode, encode

from . import allocation
from .base import LinkDown, LinkRefused, LinkUp, Received, Rejected, Van, VanEvent
from .causes import why_not_bound
from .guard import DOMAIN, Guard, of_peer
from .shared.exchange import TIDY_EVERY, Exchange
from .shared.kept import KeptArena

log = logging.getLogger("pslite")

COPY_BELOW = 64 * 1024  # bytes; for smaller frames a copy is cheaper than ZeroMQ's book-keeping of a foreign buffer
HEARTBEAT_INTERVAL = 250  # ms
HEARTBEAT_TIMEOUT = 1000  # ms for an answer; then the peer is disconnected, and is lost if it does not come back soon
ACKNOWLEDGED_WITHIN = 2000  # ms for a peer's kernel to take what we send; else the same
CONNECTED_WITHIN = 500  # ms for a peer's kernel to take a connection, more than any round trip; then once more
HANDSHAKE = 2000  # ms
MAX_CLOSED = 20  # connections that a peer closed in the handshake, 50 ms apart: it will not have us as we are
MAX_REFUSED = 1024  # links that nothing more is taken from
LOOK_AT_ROSTER = 1.0  # seconds between two looks whether a key was taken out of it

COPIES = 4  # of a frame that there are while ZeroMQ encrypts or decrypts it; it ends the process if it cannot have them

_POLLIN = int(zmq.POLLIN)  # plain ints: the operators of pyzmq's enums cost microseconds
_UP, _DOWN = int(zmq.EVENT_HANDSHAKE_SUCCEEDED), int(zmq.EVENT_DISCONNECTED)
_DENIED, _MISMATCH = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH), int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_CLOSED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_REASONS = {
    _DENIED: "it does not know the key of this process: take PSLITE_KEY_FILE from the keys of this job",
    _MISMATCH: "one of the two has keys and the other has none: set PSLITE_KEY_FILE, or PSLITE_SECURITY=none, for both",
    _CLOSED: "it does not have the key that the roster says: it belongs to another job, or is not what it should be",
}
_ONE_AT_A_TIME = threading.Lock()  # vans of a process that begin something that is the process's
_DONTWAIT, _DONTWAIT_MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)


class ZmqVan(Van):
    """A van over ZeroMQ. Its sockets are used under the postoffice's lock only, except that ``wait`` polls their
    file descriptors.

    The scheduler and every member exchange heartbeats, but members do not among themselves: while a large frame is on
    its way no heartbeat gets through, and a slow network would have its connections cut in the midst of each. There
    TCP tells who cannot be reached: by what is not acknowledged, be it only a probe of what is overdue.
    ``heartbeats``: whether those who connect to us get them, as on the scheduler. ``exchange``: for peers that share
    memory with us. ``keys``: with them tcp is encrypted, and each end proves to the other who it is; ipc is as without
    them, for its sockets are in a directory that nobody else can enter.
    """

    def __init__(
        self, identity: str, heartbeats: bool = False, exchange: Exchange | None = None, keys: Keys | None = None
    ) -> None:
        # Older ones can be blocked by a raw TCP client (CVE-2020-15166) or crashed by one (CVE-2021-20234 to 20237).
        if zmq.zmq_version_info() < (4, 3, 5):
            raise JoinError(node="this process", reason=f"libzmq {zmq.zmq_version()} is too old, 4.3.5 is needed")
        allocation.prepare(large_frames=exchange is None)
        self._limited = allocation.is_limited()
        self._context = zmq.Context()
        # The default of 1023 sockets is one DEALER and two monitor ends per peer: 341 peers.
        self._context.set(zmq.MAX_SOCKETS, 65_535)
        # Who knows a routing id can take over what is sent to it (ROUTER_HANDOVER). All members know each other's job,
        # role and incarnation; the rest of the id they do not.
        self._identity = (f"{secrets.token_hex(8)}/{identity}" if keys else identity).encode()
        self._role = identity.rpartition("/")[0].rpartition("/")[2]  # for errors
        self._keys = keys
        self._guard = Guard(keys.roster.nodes if keys else {})
        self._look_at_roster = 0.0  # when it is due
        self._refused: dict[bytes, None] = {}  # links that nothing more is taken from, the oldest first
        self._closed: dict[int, int] = {}  # connections closed in the handshake since the last good one, by node
        self._heartbeats = heartbeats
        self._exchange = exchange
        if exchange is not None:
            self.memory = exchange.memory
        self._transports: dict[int, str] = {}  # by the node that we connected to
        self._files: dict[str, int] = {}  # sockets that we made in the file system, by path: their inodes
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
        self._zap: zmq.Socket[bytes] | None = None
        if keys is not None:
            self._zap = self._context.socket(zmq.REP)
            self._zap.bind("inproc://zeromq.zap.01")  # where ZeroMQ asks; without it any key would do
            self._register(self._zap)

    # -- connections --------------------------------------------------------------------------------------------------

    def bind(self, address: str, fd: int | None = None) -> str:
        if self._router is None:
            self._router = self._socket(zmq.ROUTER, self._heartbeats)
            # Without it a message to an unknown or dead peer vanishes silently; with it send says EHOSTUNREACH.
            self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            # A peer that comes back before we have looked at its end would be ignored for good: it takes over instead.
            self._router.setsockopt(zmq.ROUTER_HANDOVER, 1)
            self._register(self._router)
            with _ONE_AT_A_TIME:
                if not collector.is_alive():  # pyzmq's thread for large frames: there may be no memory for it later
                    collector.start()
        router = self._router
        try:
            if fd is not None:
                router.setsockopt(zmq.USE_FD, fd)  # the launcher opened it: no other process can take the address
            router.setsockopt(zmq.IPV6, int("[" in address or "*" in address))  # else tcp://[::1] is "no such device"
            self._secure(router, address)
            router.bind(address)
        except zmq.ZMQError as error:
            interface = network.interface_of(host_of(address), network.interfaces())
            reason = why_not_bound(address, error.errno or 0)
            raise BindError(address=address, node=self._role, interface=interface, reason=reason) from error
        finally:
            if fd is not None:
                router.setsockopt(zmq.USE_FD, -1)
            self._look(router)  # binding a second address may have swallowed the signal of the first one's peers
            self.wake()  # a thread that polls does not know the new descriptor
        if fd is None and address.startswith("ipc://"):
            path = address.removeprefix("ipc://")
            with contextlib.suppress(OSError):  # an abstract socket has no file
                self._files[path] = os.stat(path).st_ino
        return address if address.startswith("ipc:") else router.getsockopt_string(zmq.LAST_ENDPOINT)

    def connect(self, node: int, address: str) -> Link:
        self.disconnect(node)
        dealer = self._socket(zmq.DEALER, heartbeats=node == ids.SCHEDULER)
        dealer.setsockopt(zmq.IDENTITY, self._identity)  # fresh per process: a reused one is ignored by the ROUTER
        # With it ZeroMQ takes IPv6 where there is any, even if this host has no way to it.
        dealer.setsockopt(zmq.IPV6, int(network.is_reached_by_ipv6(host_of(address))))
        dealer.setsockopt(zmq.RECONNECT_IVL, 50)  # ms; the default backs off to nothing and finds a restart late
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        # TCP asks again after 1, 3, 7, 15 s: it would find out late that a cut network is whole again.
        dealer.setsockopt(zmq.CONNECT_TIMEOUT, CONNECTED_WITHIN)
        self._secure(dealer, address, node)
        monitor = dealer.get_monitor_socket(_UP | _DOWN | _DENIED | _MISMATCH | _CLOSED)
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
        self._closed.pop(node, None)
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
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE)  # silent connections would hold a descriptor for 30 s
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)  # else a peer's eight bytes decide how much memory is asked for
        return sock

    def _secure(self, sock: zmq.Socket[bytes], address: str, node: int | None = None) -> None:
        """Have the next connections of a socket encrypted, if we have keys: as a server, or as a client of a node.

        ZeroMQ takes these options as they are at each bind or connect, so one socket may have both kinds: ipc first.
        """
        if self._keys is None or not address.startswith("tcp:"):
            return
        if node is None:
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)  # without it ZeroMQ need not ask us whose key it is
        else:
            # A key that fits nothing, for a node that is not in the roster: the handshake fails, and says so.
            sock.setsockopt(zmq.CURVE_SERVERKEY, self._keys.roster.key_of(node) or zmq.curve_keypair()[0])
            sock.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public)
        sock.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)

    def _register(self, sock: zmq.Socket[bytes]) -> None:
        fd = _fd(sock)
        self._sockets[fd] = sock
        self._poll.register(fd, select.POLLIN)
        self._signalled[sock] = None  # no signal comes before a first look

    # -- messages -----------------------------------------------------------------------------------------------------

    def lend_from(self, memory: KeptMemory) -> None:
        if self._exchange is not None and isinstance(memory, KeptArena):
            self._exchange.kept = memory

    def send(self, link: Link, message: Message) -> bool:
        frames = encode(message, None if self._exchange is None else partial(self._place, link, message.flags))
        sock = self._router if isinstance(link, bytes) else self._dealers.get(link)
        if sock is None:
            return False
        if isinstance(link, bytes):
            frames = [link, *frames]
        last, sent = len(frames) - 1, 0
        try:
            for frame in frames:
                sock.send(frame, _DONTWAIT_MORE if sent < last else _DONTWAIT, copy=len(frame) < COPY_BELOW)
                sent += 1
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        finally:
            if 0 < sent <= last:  # no memory was left: else the next message, whoever it is for, would be its end
                sock.send(b"", _DONTWAIT)
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
            if sock is self._zap:
                return self._admit([f.bytes for f in frames])
            link = frames[0].bytes
            return None if link in self._refused else self._decoded(link, frames[1:])
        if sock is self._dealers[node]:
            return self._decoded(node, frames)
        event = parse_monitor_message([f.bytes for f in frames])
        return self._of_connection(node, event["event"], int(event["value"]))

    def _of_connection(self, node: int, event: int, value: int) -> VanEvent | None:
        """What became of a connection that we make."""
        if event == _UP:
            self._closed.pop(node, None)
            return LinkUp(node)
        if event == _DOWN:
            return LinkDown(node)
        # A peer that is not ready yet lets the handshake time out, which is another error.
        if event == _CLOSED and value in (errno.EPIPE, errno.ECONNRESET):
            self._closed[node] = self._closed.get(node, 0) + 1
            # A peer with keys often hangs up before we have read that it wants one.
            event = _CLOSED if self._keys is not None else _MISMATCH
            return LinkRefused(node, _REASONS[event]) if self._closed[node] >= MAX_CLOSED else None
        return LinkRefused(node, _REASONS[event]) if event in (_DENIED, _MISMATCH) else None

    def _admit(self, request: list[bytes]) -> VanEvent | None:
        """ZeroMQ asks whether a key is one of this job."""
        assert self._zap is not None
        self._refresh_roster(0.0)
        refused = self._guard.refused
        self._zap.send_multipart(self._guard.answer(request))
        if self._guard.refused == refused:
            return None
        reason = f"a connection from {request[3].decode(errors='replace'):.80} with a key that is not in the roster"
        return Rejected(b"", reason, strike=False)  # there is no link yet

    def _refresh_roster(self, now: float) -> None:
        if self._keys is not None:
            self._keys.roster.refresh()
            self._guard.nodes = self._keys.roster.nodes
            self._look_at_roster = now + LOOK_AT_ROSTER

    def _decoded(self, link: Link, frames: Sequence[Any]) -> VanEvent:
        try:
            find = None if self._exchange is None else self._exchange.find
            message = decode([frame.buffer for frame in frames], find)
        except ProtocolError as error:
            return Rejected(link, str(error), strike=self._exchange is None or not self._exchange.shares(link))
        if self._keys is not None and (problem := self._disproved(link, frames[0], message)) is not None:
            return Rejected(link, problem)
        return Received(link, message)

    def _disproved(self, link: Link, frame: Any, message: Message) -> str | None:
        """Why a message is not of the peer that has proved to be at the other end of this connection."""
        if not isinstance(link, bytes):
            return of_peer(link, message)
        if (now := time.monotonic()) >= self._look_at_roster:
            self._refresh_roster(now)
        try:
            user = frame.get("User-Id")
        except zmq.ZMQError:  # no such property: by ipc, for by tcp nobody comes in without one
            return None
        return self._guard.problem(user, link, message)

    def refuse(self, link: Link) -> None:
        if isinstance(link, bytes):
            self._refused[link] = None
            if len(self._refused) > MAX_REFUSED:
                del self._refused[next(iter(self._refused))]

    def transport(self, node: int) -> str:
        return self._transports[node]

    def weigh(self, link: Link, message: Message) -> int:
        weight = cost(message)
        if weight and self._exchange is not None and self._exchange.shares(link):
            weight -= sum(a.nbytes for a in message.arrays if a.nbytes >= PACK_BELOW and self._exchange.has(a))
        return weight if weight >= SMALL else 0

    def has_room(self, link: Link, nbytes: int) -> bool:
        if not self._limited:
            return True
        shares = self._exchange is not None and self._exchange.shares(link)
        return allocation.has_room(nbytes * (COPIES if self._keys is not None and not shares else 1))

    def _keep_memory(self) -> None:
        """Take in what peers have offered, give back what was not needed for long; when there is nothing else to do."""
        if self._exchange is None:
            return
        if self._offered:
            self._offered = False
            self._exchange.receive()
        self._exchange.tidy()

    # -- waiting ------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None) -> bool:
        if self._exchange is not None:
            timeout = TIDY_EVERY if timeout is None else min(timeout, TIDY_EVERY)
        # A descriptor is readable from the signal on until its socket was looked at, which ``receive`` does until None.
        self._polled = self._poll.poll(None if timeout is None else max(timeout, 0) * 1000)
        if (self._wakeup, select.POLLIN) in self._polled:
            os.eventfd_read(self._wakeup)
        if (self._offers, select.POLLIN) in self._polled:
            self._offered = True
        return bool(self._polled)

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
        if self._zap is not None:
            self._zap.close(linger=0)
        if self._exchange is not None:
            self._exchange.close()
        self._context.term()  # returns when everything queued has left, or after linger
        for path, inode in self._files.items():  # ZeroMQ leaves them; another process may listen there by now
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        os.close(self._wakeup)


def _fd(sock: zmq.Socket[bytes]) -> int:
    fd = sock.getsockopt(zmq.FD)
    assert isinstance(fd, int)
    return fd

"""What every van promises, tried on the in-process one and on ZeroMQ over tcp and ipc."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from pslite.errors import BindError
from pslite.van.base import LinkDown, LinkUp, Received, Rejected, Van, VanEvent
from pslite.van.inproc import Hub, InprocVan
from pslite.van.zmq_van import ZmqVan
from pslite.wire import Kind, Link, Message
from tests.harness import wait_until

LONGEST = 10.0  # seconds: far above what anything here takes

on_sockets = [pytest.param(kind, marks=pytest.mark.sockets) for kind in ("tcp", "ipc")]
all_vans = pytest.mark.parametrize("vans", ["inproc", *on_sockets], indirect=True)


class Vans:
    """Makes vans of one kind and closes them."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self._hub = Hub()
        self._directory = directory
        self._open: list[Van] = []

    def make(self, name: str) -> Van:
        van: Van = InprocVan(self._hub, name) if self.kind == "inproc" else ZmqVan(name)
        self._open.append(van)
        return van

    def address(self, name: str) -> str:
        return {
            "inproc": f"inproc://{name}", "tcp": "tcp://127.0.0.1:0", "ipc": f"ipc://{self._directory}/{name}",
        }[self.kind]  # fmt: skip

    def pair(self) -> tuple[Van, Van]:
        """A bound server, and a worker that is connected to it as node 8."""
        server, worker = self.make("server"), self.make("worker")
        worker.connect(8, server.bind(self.address("server")))
        assert next_event(worker) == LinkUp(8)
        return server, worker

    def close(self, van: Van, linger: float = 0.0) -> None:
        self._open.remove(van)
        van.close(linger)

    def close_all(self) -> None:
        for van in self._open:
            van.close(0.0)


@pytest.fixture
def vans(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vans]:
    made = Vans(request.param, tmp_path)
    yield made
    made.close_all()


def next_event(van: Van, within: float = LONGEST) -> VanEvent:
    """The next event; AssertionError if none comes in time."""
    deadline = time.monotonic() + within
    while (event := van.receive()) is None:
        left = deadline - time.monotonic()
        assert left > 0, "nothing came"
        van.wait(left)
    return event


def next_message(van: Van, link: Link | None = None) -> Message:
    event = next_event(van)
    assert isinstance(event, Received), event
    assert link is None or event.link == link
    return event.message


def note(number: int) -> Message:
    return Message(Kind.REQUEST, seq=number)


@all_vans
def test_messages_keep_their_order(vans: Vans) -> None:
    server, worker = vans.pair()
    for i in range(200):
        arrays = [np.full(i * 100 % 30_000, i, np.float32)] * (i % 4)
        assert worker.send(8, Message(Kind.REQUEST, seq=i, arrays=arrays))
    for i in range(200):
        message = next_message(server)
        assert message.seq == i
        assert len(message.arrays) == i % 4
        assert all((a == i).all() for a in message.arrays)


@pytest.mark.sockets
@pytest.mark.parametrize("vans", ["tcp"], indirect=True)
@pytest.mark.parametrize("sent", [1, 2])
def test_a_message_that_cannot_be_sent_to_its_end_is_not_the_beginning_of_the_next(
    vans: Vans, sent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory pyzmq raises between two frames; the next message may be for another peer."""
    server = vans.make("server")
    address = server.bind(vans.address("server"))
    links, workers = [], [vans.make("one"), vans.make("other")]
    for worker in workers:
        worker.connect(8, address)
        assert next_event(worker) == LinkUp(8)
        worker.send(8, note(0))
        found = next_event(server)
        links.append(found.link)
    real, frames = zmq.Socket.send, iter(range(100))

    def send(self: zmq.Socket[bytes], *arguments: Any, **options: Any) -> Any:
        if next(frames) == sent:
            raise MemoryError
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(zmq.Socket, "send", send)
        server.send(links[0], Message(Kind.REPLY, seq=1, arrays=[np.ones(100_000)]))
    for number, link in enumerate(links):
        server.send(link, note(10 + number))
    assert isinstance(next_event(workers[0]), Rejected)
    assert [next_message(worker).seq for worker in workers] == [10, 11]


@all_vans
def test_a_reply_goes_back_on_the_link_that_the_request_came_on(vans: Vans) -> None:
    server = vans.make("server")
    address = server.bind(vans.address("server"))
    workers = [vans.make(f"worker {i}") for i in range(3)]
    for i, worker in enumerate(workers):
        worker.connect(8, address)
        assert next_event(worker) == LinkUp(8)
        worker.send(8, note(i))
    for _ in workers:
        event = next_event(server)
        assert isinstance(event, Received)
        assert isinstance(event.link, bytes)
        assert server.send(event.link, Message(Kind.REPLY, seq=event.message.seq))
    for i, worker in enumerate(workers):
        reply = next_message(worker, link=8)
        assert (reply.kind, reply.seq) == (Kind.REPLY, i)


@all_vans
def test_connecting_before_the_peer_listens(vans: Vans) -> None:
    """What is sent meanwhile arrives then."""
    server, worker = vans.make("server"), vans.make("worker")
    address = vans.address("server")
    if vans.kind == "tcp":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    worker.connect(8, address)
    assert worker.send(8, note(1))
    assert worker.receive() is None
    server.bind(address)
    assert next_message(server).seq == 1
    assert next_event(worker) == LinkUp(8)


@all_vans
def test_wake_ends_the_current_wait_and_the_next(vans: Vans) -> None:
    van = vans.make("server")
    van.bind(vans.address("server"))
    van.wake()
    van.wait(LONGEST)  # at once
    started = threading.Event()
    thread = threading.Thread(target=lambda: (started.set(), van.wait(None)))
    thread.start()
    started.wait()
    van.wake()
    thread.join(LONGEST)
    assert not thread.is_alive()


@all_vans
def test_a_wait_ends_with_its_time(vans: Vans) -> None:
    van = vans.make("server")
    van.bind(vans.address("server"))
    van.wait(0.0)
    van.wait(0.01)
    van.wait(-1.0)
    assert van.receive() is None


@all_vans
def test_a_message_ends_the_wait_of_another_thread(vans: Vans) -> None:
    server, worker = vans.pair()
    got: list[Message] = []
    thread = threading.Thread(target=lambda: got.append(next_message(server)))
    thread.start()
    worker.send(8, note(1))
    thread.join(LONGEST)
    assert [m.seq for m in got] == [1]


@all_vans
def test_a_peer_that_never_connected_is_unreachable(vans: Vans) -> None:
    server, _ = vans.pair()
    assert not server.send(b"stranger", note(1))


@all_vans
def test_a_peer_that_has_gone_becomes_unreachable(vans: Vans) -> None:
    server, worker = vans.pair()
    worker.send(8, note(1))
    event = next_event(server)
    assert isinstance(event, Received)
    link = event.link
    assert server.send(link, note(2))
    vans.close(worker)
    wait_until(lambda: not server.send(link, note(3)))


@all_vans
def test_link_down_and_up_again_when_the_peer_returns(vans: Vans) -> None:
    server, worker = vans.make("server"), vans.make("worker")
    address = server.bind(vans.address("server"))
    worker.connect(8, address)
    assert next_event(worker) == LinkUp(8)
    vans.close(server)
    assert next_event(worker) == LinkDown(8)
    again = vans.make("server again")
    again.bind(address)
    assert next_event(worker) == LinkUp(8)
    worker.send(8, note(5))
    assert next_message(again).seq == 5


@all_vans
def test_a_disconnected_peer_is_not_heard_any_more(vans: Vans) -> None:
    server, worker = vans.pair()
    worker.send(8, note(1))
    event = next_event(server)
    assert isinstance(event, Received)
    link = event.link
    worker.disconnect(8)
    worker.disconnect(8)  # twice is no error
    assert not worker.send(8, note(2))
    wait_until(lambda: not server.send(link, note(3)))
    assert worker.receive() is None


@all_vans
def test_received_arrays_are_read_only_and_stay(vans: Vans) -> None:
    server, worker = vans.pair()
    sent = [np.arange(10.0), np.arange(50_000.0)]
    worker.send(8, Message(Kind.REQUEST, arrays=sent))
    got = next_message(server).arrays
    for array in sent:
        array[:] = -1  # it has arrived: the sender may use its memory again
    assert np.array_equal(got[0], np.arange(10.0))
    assert np.array_equal(got[1], np.arange(50_000.0))
    for array in got:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@all_vans
def test_large_arrays_arrive_intact(vans: Vans) -> None:
    server, worker = vans.pair()
    rng = np.random.default_rng(0)
    sent = [rng.integers(0, 255, 20 << 20, np.uint8), rng.random((1000, 700)), np.empty((0, 3), np.int8)]
    worker.send(8, Message(Kind.REQUEST, arrays=list(sent)))
    got = next_message(server).arrays
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(got, sent, strict=True))


@pytest.mark.parametrize("vans", ["inproc", on_sockets[0]], indirect=True)
def test_an_address_in_use_is_named(vans: Vans) -> None:
    """Not so with ipc: there ZeroMQ takes over the path."""
    server, other = vans.make("server"), vans.make("other")
    address = server.bind(vans.address("server"))
    with pytest.raises(BindError) as caught:
        other.bind(address)
    assert caught.value.address == address
    assert address in str(caught.value)


@pytest.mark.sockets
@pytest.mark.parametrize("address", ["tcp://203.0.113.7:5555", "ipc:///no/such/directory/x", "tcp://127.0.0.1:http"])
def test_an_address_that_cannot_be_used_is_named(address: str) -> None:
    van = ZmqVan("server")
    try:
        with pytest.raises(BindError, match="cannot listen on " + address):
            van.bind(address)
    finally:
        van.close(0.0)


@pytest.mark.sockets
@pytest.mark.parametrize("root", ["tcp://127.0.0.1", "tcp://[::1]", "tcp://name.of.this.host"])
def test_a_listening_socket_of_both_families_is_taken_over(root: str) -> None:
    """Whatever the root is: the launcher's agent opened the socket, at all addresses of the host."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as made:
        made.setblocking(False)
        port = made.getsockname()[1]
        van, workers = ZmqVan("job/scheduler/1"), [ZmqVan(f"job/worker/{number}") for number in range(3)]
        try:
            van.bind(f"{root}:{port}", os.dup(made.fileno()))
            for worker, host in zip(workers, ["127.0.0.1", "[::1]", "localhost"], strict=True):
                worker.connect(8, f"tcp://{host}:{port}")
                assert next_event(worker) == LinkUp(8)
        finally:
            for each in (van, *workers):
                each.close(0.0)


@pytest.mark.sockets
def test_all_addresses_of_both_families_can_be_listened_on() -> None:
    van, workers = ZmqVan("job/server/1"), [ZmqVan(f"job/worker/{number}") for number in range(2)]
    try:
        port = van.bind("tcp://*:0").rpartition(":")[2]
        for worker, host in zip(workers, ["127.0.0.1", "[::1]"], strict=True):
            worker.connect(8, f"tcp://{host}:{port}")
            assert next_event(worker) == LinkUp(8)
    finally:
        for each in (van, *workers):
            each.close(0.0)


@all_vans
def test_the_last_message_leaves_before_the_end(vans: Vans) -> None:
    server, worker = vans.pair()
    array = np.arange(3_000_000, dtype=np.float64)
    worker.send(8, note(1))
    worker.send(8, Message(Kind.REQUEST, seq=2, arrays=[array]))
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(next_message(server).seq for _ in range(2)))
    thread.start()
    vans.close(worker, linger=LONGEST)
    thread.join(LONGEST)
    assert got == [1, 2]


@all_vans
def test_closing_waits_for_nobody_who_is_not_there(vans: Vans) -> None:
    worker = vans.make("worker")
    worker.connect(8, "tcp://127.0.0.1:9" if vans.kind == "tcp" else vans.address("nobody"))
    worker.send(8, note(1))
    vans.close(worker, linger=0.05)


@all_vans
def test_a_second_connection_replaces_the_first(vans: Vans) -> None:
    servers = [vans.make(f"server {i}") for i in range(2)]
    addresses = [van.bind(vans.address(f"server{i}")) for i, van in enumerate(servers)]
    worker = vans.make("worker")
    for address in addresses:
        worker.connect(8, address)
        assert next_event(worker) == LinkUp(8)
    worker.send(8, note(1))
    assert next_message(servers[1]).seq == 1
    assert servers[0].receive() is None


@pytest.mark.sockets
@pytest.mark.parametrize("junk", [[b""], [b"hello"], [b"\x93\x01\x02\x03", b"x"], [bytes(100), bytes(100)]])
def test_what_is_no_message_is_rejected_and_the_next_arrives(junk: list[bytes]) -> None:
    server = ZmqVan("server")
    address = server.bind("tcp://127.0.0.1:0")
    worker = ZmqVan("worker")
    worker.connect(8, address)
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.IDENTITY, b"stranger")
            stranger.connect(address)
            stranger.send_multipart(junk)
            event = next_event(server)
            assert isinstance(event, Rejected)
            assert event.link == b"stranger"
            assert event.reason
        worker.send(8, note(1))
        assert next_message(server).seq == 1
    finally:
        worker.close(0.0)
        server.close(0.0)


@pytest.mark.sockets
def test_bytes_that_are_not_zeromq_do_no_harm() -> None:
    server, worker = ZmqVan("server"), ZmqVan("worker")
    try:
        address = server.bind("tcp://127.0.0.1:0")
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(1000))
            worker.connect(8, address)
            worker.send(8, note(1))
            assert next_message(server).seq == 1
    finally:
        worker.close(0.0)
        server.close(0.0)


@pytest.mark.sockets
def test_a_socket_that_the_launcher_opened_is_taken_over(tmp_path: Path) -> None:
    server, worker = ZmqVan("server"), ZmqVan("worker")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "root"))
    listener.listen()
    listener.setblocking(False)
    try:
        worker.connect(1, f"ipc://{tmp_path}/root")
        assert server.bind(f"ipc://{tmp_path}/root", listener.fileno()) == f"ipc://{tmp_path}/root"
        worker.send(1, note(1))
        assert next_message(server).seq == 1
    finally:
        worker.close(0.0)
        server.close(0.0)
        listener.detach()  # the van has closed it


# The in-process van's own


def test_a_buffer_is_read_when_it_is_received_as_zeromq_may() -> None:
    """A caller that changes an array too early is found in tests, not in production."""
    hub = Hub()
    server, worker = InprocVan(hub, "server"), InprocVan(hub, "worker")
    server.bind("inproc://s")
    worker.connect(8, "inproc://s")
    array = np.zeros(50_000)
    worker.send(8, Message(Kind.REQUEST, arrays=[array]))
    array[:] = 7
    assert next_message(server).arrays[0][0] == 7


@pytest.mark.parametrize("copies", [0, 1, 3])
def test_a_fault_decides_how_often_a_message_arrives(copies: int) -> None:
    seen: list[tuple[str, str, int]] = []
    fault: Callable[[str, str, Message], int] = lambda a, b, m: (seen.append((a, b, m.seq)), copies)[1]  # noqa: E731
    hub = Hub(fault)
    server, worker = InprocVan(hub, "server"), InprocVan(hub, "worker")
    server.bind("inproc://s")
    worker.connect(8, "inproc://s")
    worker.send(8, note(4))
    assert seen == [("worker", "server", 4)]
    assert [next_message(server).seq for _ in range(copies)] == [4] * copies
    assert server.receive() is None


def test_a_killed_van_is_silent() -> None:
    hub = Hub()
    server, worker = InprocVan(hub, "server"), InprocVan(hub, "worker")
    server.bind("inproc://s")
    worker.connect(8, "inproc://s")
    assert next_event(worker) == LinkUp(8)
    worker.send(8, note(1))
    hub.kill(server)
    assert server.receive() is None
    assert server.send(b"worker", note(2))
    assert worker.receive() == LinkDown(8)
    assert worker.receive() is None

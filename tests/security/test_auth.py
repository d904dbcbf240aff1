"""Who gets into a job over tcp, and who does not: on real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from pslite import Config, Postoffice, run_all
from pslite.errors import AuthError
from pslite.van.base import LinkRefused, LinkUp, Received, Rejected, Van
from pslite.van.zmq_van import ZmqVan
from pslite.wire import Kind, Message, encode

from .jobs import (
    INCARNATION,
    NODE,
    NOT_ITS_OWN,
    Keyring,
    Tap,
    event,
    free_root,
    outsider,
    received,
    request,
    stolen_roster,
)

pytestmark = pytest.mark.sockets

Keep = Callable[[Any], Any]
ANYWHERE = "tcp://127.0.0.1:0"


def test_the_right_key_gets_in_and_is_answered(ring: Keyring, keep: Keep) -> None:
    scheduler, worker = keep(ring.van("scheduler")), keep(ring.van("worker"))
    worker.connect(1, scheduler.bind(ANYWHERE))
    assert event(worker, scheduler) == LinkUp(1)
    worker.send(1, request(9, seq=5))
    found = event(scheduler, which=lambda e: isinstance(e, Received))
    assert isinstance(found, Received)
    assert found.message.seq == 5
    assert scheduler.send(found.link, Message(Kind.REPLY, sender=1, seq=5))
    assert received(worker).seq == 5


def test_ipc_and_tcp_on_one_socket(ring: Keyring, keep: Keep, tmp_path: Path) -> None:
    """Unix sockets are guarded by their directory: what goes there is not encrypted."""
    server, near, far = keep(ring.van("server")), keep(ring.van("worker")), keep(ring.van("worker", 1))
    addresses = [server.bind(f"ipc://{tmp_path}/s"), server.bind(ANYWHERE)]
    for van, node, address in ((near, 9, addresses[0]), (far, 11, addresses[1])):
        van.connect(8, address)
        assert event(van, server) == LinkUp(8)
        van.send(8, request(node))
        assert received(server).sender == node


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no keys", "one of the two has keys and the other has none"),
        ("unknown key", "it does not know the key of this process"),
        ("another job's key", "it belongs to another job"),
    ],
)
@pytest.mark.parametrize("role", ["scheduler", "server"])
def test_who_has_no_key_of_the_job_is_told_and_heard_by_nobody(
    kind: str, said: str, role: str, ring: Keyring, other_ring: Keyring, keep: Keep
) -> None:
    host, guest = keep(ring.van(role)), keep(outsider(kind, ring, other_ring))
    guest.connect(NODE[role], host.bind(ANYWHERE))
    guest.send(NODE[role], request(9))
    heard: list[Any] = []
    refusal = event(guest, Listening(host, heard), which=lambda e: isinstance(e, LinkRefused))
    assert isinstance(refusal, LinkRefused)
    assert said in refusal.reason
    assert [e for e in heard if isinstance(e, Received)] == []


@pytest.mark.parametrize(
    ("keys", "said"), [(True, "it belongs to another job"), (False, "one of the two has keys and the other has none")]
)
def test_a_peer_that_hangs_up_in_the_handshake_is_not_tried_for_ever(
    keys: bool, said: str, ring: Keyring, keep: Keep
) -> None:
    """One with keys may do so before a process without has read that it wants one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        guest = keep(ring.van("worker") if keys else ZmqVan("job/worker/1"))
        try:
            guest.connect(1, f"tcp://127.0.0.1:{listener.getsockname()[1]}")
            refusal = event(guest, which=lambda e: isinstance(e, LinkRefused))
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert isinstance(refusal, LinkRefused)
    assert said in refusal.reason


class Listening(Van):
    """Notes what a van hears while another one is looked at."""

    def __init__(self, van: Van, heard: list[Any]) -> None:
        self._van, self._heard = van, heard

    def wait(self, timeout: float | None) -> bool:
        return self._van.wait(timeout)

    def receive(self) -> Any:
        while (found := self._van.receive()) is not None:
            self._heard.append(found)

    bind = connect = disconnect = send = wake = close = None  # type: ignore[assignment]


def test_a_peer_without_keys_is_not_taken_for_one_that_has_them(ring: Keyring, keep: Keep) -> None:
    host, guest = keep(ZmqVan("job/scheduler/1", True)), keep(ring.van("worker"))
    guest.connect(1, host.bind(ANYWHERE))
    assert isinstance(event(guest, host, which=lambda e: isinstance(e, LinkRefused)), LinkRefused)


@pytest.mark.parametrize("mechanism", ["PLAIN", "NULL", "CURVE with a key of its own"])
def test_a_stranger_with_zeromq_only(mechanism: str, ring: Keyring, keep: Keep) -> None:
    host, friend = keep(ring.van("scheduler")), keep(ring.van("worker"))
    address = host.bind(ANYWHERE)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.setsockopt(zmq.IDENTITY, f"x/job/worker/{INCARNATION:016x}".encode())
        if mechanism == "PLAIN":
            stranger.plain_username, stranger.plain_password = b"worker", b"secret"
        elif mechanism != "NULL":
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            stranger.curve_serverkey = ring.keys("scheduler").public
        stranger.connect(address)
        stranger.send_multipart(encode(request(9, seq=1)))
        friend.connect(1, address)
        friend.send(1, request(9, seq=2))
        assert received(host, friend).seq == 2


@pytest.mark.parametrize(("identity", "message"), NOT_ITS_OWN)
def test_a_right_key_speaks_for_its_own_role_and_rank_only(
    identity: str, message: Message, ring: Keyring, keep: Keep
) -> None:
    """The key is worker 1's, node 11."""
    server, insider = keep(ring.van("server")), keep(ring.van("worker", 1, identity))
    insider.connect(8, server.bind(ANYWHERE))
    assert event(insider, server) == LinkUp(8)
    insider.send(8, message)
    assert isinstance(event(server, insider), Rejected)


def test_an_insider_does_not_get_the_replies_of_another_worker(ring: Keyring, keep: Keep) -> None:
    """Members know each other's job, role and incarnation; a routing id has more to it."""
    server, victim = keep(ring.van("server")), keep(ring.van("worker"))
    thief = keep(ring.van("worker", 1, f"job/worker/{INCARNATION:016x}"))
    address = server.bind(ANYWHERE)
    for van in (victim, thief):
        van.connect(8, address)
        assert event(van, server) == LinkUp(8)
    victim.send(8, request(9))
    found = event(server, which=lambda e: isinstance(e, Received))
    assert isinstance(found, Received)
    assert server.send(found.link, Message(Kind.REPLY, sender=8, seq=3))
    assert received(victim).seq == 3
    assert thief.receive() is None


def test_a_key_that_is_taken_out_of_the_roster_counts_no_more(ring: Keyring, keep: Keep) -> None:
    """Neither on the connections that it has, nor for new ones."""
    server, member = keep(ring.van("server")), keep(ring.van("worker", 1))
    address = server.bind(ANYWHERE)
    member.connect(8, address)
    member.send(8, request(11))
    assert received(server, member).sender == 11
    late = keep(ring.van("worker", 1))
    ring.change(worker_1=None)
    late.connect(8, address)
    refusal = event(late, server, which=lambda e: isinstance(e, LinkRefused))
    assert isinstance(refusal, LinkRefused)
    member.send(8, request(11))
    found = event(server, which=lambda e: isinstance(e, Rejected) and bool(e.link))
    assert isinstance(found, Rejected)
    assert "not in the roster any more" in found.reason


def test_a_node_that_is_not_in_the_roster_is_not_connected_to(ring: Keyring, keep: Keep) -> None:
    server, worker = keep(ring.van("server")), keep(ring.van("worker"))
    address = server.bind(ANYWHERE)
    ring.change(server_0=None)
    other = keep(ring.van("worker", 1))
    other.connect(8, address)
    assert isinstance(event(other, server, worker, which=lambda e: isinstance(e, LinkRefused)), LinkRefused)


# -- whole jobs -------------------------------------------------------------------------------------------------------


def test_a_job_with_keys(ring: Keyring, keep: Keep) -> None:
    root = free_root()
    offices = [keep(ring.office(role, root=root)) for role in ("scheduler", "server", "worker")]
    run_all([office.start for office in offices])
    assert [office.name.split(" (")[0] for office in offices] == ["scheduler", "server 0", "worker 0"]
    run_all([lambda office=office: office.barrier(7) for office in offices])
    offices[2].publish({"a": 1})
    assert offices[1].lookup(["a"]) == {"a": 1}
    run_all([office.finalize for office in offices])


@pytest.mark.parametrize("kind", ["no keys", "unknown key", "another job's key"])
def test_who_may_not_join_hears_it(kind: str, ring: Keyring, other_ring: Keyring, keep: Keep) -> None:
    root = free_root()
    scheduler = keep(ring.office("scheduler", root=root))
    scheduler._open_job()
    if kind == "no keys":
        guest = Postoffice(Config(role="worker", root=root, start_timeout=30.0))
    else:
        if kind == "unknown key":
            stolen_roster(ring, other_ring)
        guest = other_ring.office("worker", root=root)
    with pytest.raises(AuthError, match="no connection to scheduler"):
        keep(guest).start()


def test_a_worker_with_keys_does_not_talk_to_a_scheduler_without(ring: Keyring, keep: Keep) -> None:
    root = free_root()
    scheduler = keep(Postoffice(Config(role="scheduler", root=root, start_timeout=30.0)))
    scheduler._open_job()
    with pytest.raises(AuthError, match="one of the two has keys"):
        keep(ring.office("worker", root=root)).start()


def test_the_body_of_a_message_is_not_on_the_wire_in_clear(ring: Keyring, keep: Keep) -> None:
    secret = msgpack.packb("a word that nobody else should read")
    sent = encode(request(9, body="a word that nobody else should read"))
    assert secret in b"".join(bytes(frame) for frame in sent)  # it is there before CURVE
    host, tap, worker = keep(ring.van("scheduler")), Tap(), keep(ring.van("worker"))
    try:
        worker.connect(1, tap.to(host.bind(ANYWHERE)))
        worker.send(1, request(9, body="a word that nobody else should read"))
        assert received(host, worker).body == "a word that nobody else should read"
        assert len(tap.seen) > 200
        assert b"nobody else" not in tap.seen
    finally:
        tap.close()

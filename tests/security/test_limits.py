"""What strangers and broken peers may cost: a bounded table, a few lines of log, never the process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import hypothesis.strategies as st
import pytest
import zmq
from hypothesis import given

from pslite import InprocCluster, ids
from pslite.errors import JoinError, ProtocolError
from pslite.postoffice.core import Log, Refuse
from pslite.postoffice.membership import Membership
from pslite.postoffice.permissions import PERMISSIONS, permitted
from pslite.postoffice.strikes import LINE_EVERY, LINES, MAX_LINKS, MAX_STRIKES, Strikes, printable
from pslite.van import zmq_van
from pslite.van.base import LinkUp, Received, Rejected
from pslite.wire import MAX_HEADER, Kind, Message, Op, decode

from .jobs import Keyring, event, received, request

Keep = Callable[[Any], Any]
ANYWHERE = "tcp://127.0.0.1:0"


# -- strikes and logs -------------------------------------------------------------------------------------------------


def test_bad_messages_in_a_row_cost_the_link() -> None:
    strikes = Strikes()
    assert [strikes.count(b"x") for _ in range(MAX_STRIKES)] == [False] * (MAX_STRIKES - 1) + [True]
    assert not strikes.count(b"y")


def test_a_good_message_between_them_forgives() -> None:
    strikes = Strikes()
    for _ in range(MAX_STRIKES * 3):
        assert not strikes.count(b"x")
        strikes.clear(b"x")


def test_links_of_our_own_making_are_not_given_up() -> None:
    strikes = Strikes()
    assert not any(strikes.count(8) for _ in range(MAX_STRIKES * 3))


def test_the_table_is_bounded() -> None:
    strikes = Strikes()
    for number in range(3 * MAX_LINKS):
        strikes.count(number.to_bytes(4, "big"))
    assert len(strikes._of) == MAX_LINKS
    assert strikes.total == 3 * MAX_LINKS


def test_peers_cannot_fill_the_log() -> None:
    strikes = Strikes()
    lines = [strikes.line(0.001 * i, "bad") for i in range(10_000)]
    said = [line for line in lines if line is not None]
    assert LINES <= len(said) <= LINES + 10_000 * 0.001 / LINE_EVERY
    later = strikes.line(10_000.0, "bad")
    assert later is not None
    assert f"{10_000 - len(said)} more lines like this were left out" in later


@given(st.text(max_size=2000))
def test_what_a_peer_says_stays_on_one_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    assert len(shown) <= 500 * 10 + 3


def test_no_line_of_the_log_can_be_forged() -> None:
    assert printable("x\n[scheduler] all is well\x1b[2J") == "x\\n[scheduler] all is well\\x1b[2J"
    assert printable("plain ü") == "plain ü"


def test_the_core_refuses_and_logs_little(caplog: pytest.LogCaptureFixture) -> None:
    with InprocCluster(workers=1, servers=1) as cluster:
        core = cluster.servers[0]._core
        actions = [core.on_event(50.0, Rejected(b"x", "nonsense")) for _ in range(100)]
        flat = [action for each in actions for action in each]
        assert [a for a in flat if isinstance(a, Refuse)] == [Refuse(b"x")] * (100 - MAX_STRIKES + 1)
        assert sum(isinstance(a, Log) for a in flat) == LINES
        assert core.on_event(50.0, Rejected(b"y", "memory that is not shared", strike=False)) == []
        cluster.workers[0].barrier(ids.WORKER_GROUP)


@pytest.mark.parametrize(
    "body",
    [
        ["worker", 0, [], "evil\nhost", 1],
        ["worker", 0, [], "\x1b[2J", 1],
        ["worker", 0, [], "h" * 1000, 1],
        ["worker", 0, [], "h", -1],
        ["worker", 0, [], "h", 2**40],
        ["worker", 0, [], "h", True],
        ["server", 0, ["tcp://h:1"] * 100, "h", 1],
        ["server", 0, ["tcp://h:1\n"], "h", 1],
        ["scheduler", 0, [], "h", 1],
        ["boss", 0, [], "h", 1],
    ],
)
def test_names_that_would_end_up_in_everybodys_log_are_refused(body: list[Any]) -> None:
    membership = Membership(1, 1, "job", None, 0.0)
    [answer] = membership.join(b"link", Message(Kind.REQUEST, op=Op.JOIN, body=body)).answers
    assert isinstance(answer.error, JoinError)
    assert not membership.members


# -- who may ask for what ---------------------------------------------------------------------------------------------


def test_the_table_names_every_operation() -> None:
    assert set(PERMISSIONS) == set(Op)


@pytest.mark.parametrize(
    ("op", "sender", "receiver", "may"),
    [
        (Op.JOIN, "worker", "scheduler", True),
        (Op.JOIN, "worker", "server", False),
        (Op.EVENT, "scheduler", "server", True),
        (Op.EVENT, "worker", "server", False),
        (Op.EVENT, "server", "worker", False),
        (Op.EVENT, "worker", "scheduler", False),
        (Op.PUBLISH, "worker", "scheduler", True),
        (Op.PUBLISH, "server", "scheduler", False),
        (Op.LEAVE, "worker", "server", False),
        (Op.BARRIER, "worker", "server", False),
        (Op.DATA, "worker", "server", True),
        (Op.REPLICATE, "server", "server", True),
        (Op.REPLICATE, "worker", "server", False),
        (Op.REPLICATE, "server", "worker", False),
        (Op.REPLICATE, "scheduler", "server", False),
        (99, "worker", "server", False),
    ],
)
def test_who_may_ask_whom(op: int, sender: str, receiver: str, may: bool) -> None:
    assert permitted(op, sender, receiver) is may


@pytest.mark.parametrize("target", [ids.server_id(0), ids.worker_id(1), ids.SCHEDULER])
def test_a_worker_cannot_end_the_job_or_declare_somebody_dead(target: int) -> None:
    with InprocCluster(workers=2, servers=1) as cluster:
        worker = cluster.workers[0]
        for body in (["over", True], ["ended", 11, ["PeerLost", {"node": "worker 1", "reason": "so"}]]):
            with pytest.raises(ProtocolError, match="operation 6 is not for a worker to ask"):
                worker.call(target, Op.EVENT, body, "a command")
        assert not any(office.job_over for office in cluster.offices)
        assert [office.ended(11) for office in cluster.offices] == [None] * 4


# -- the wire ---------------------------------------------------------------------------------------------------------


def test_a_header_that_is_too_long_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        decode([bytes(MAX_HEADER + 1)])


def test_an_old_libzmq_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(JoinError, match=r"4\.3\.5 is needed"):
        zmq_van.ZmqVan("job/worker/1")


@pytest.mark.sockets
def test_nonsense_on_a_connection_ends_that_connection_only(keep: Keep) -> None:
    host, friend = keep(zmq_van.ZmqVan("job/server/1")), keep(zmq_van.ZmqVan("job/worker/2"))
    address = host.bind(ANYWHERE)
    friend.connect(8, address)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.setsockopt(zmq.IDENTITY, b"stranger")
        stranger.connect(address)
        for frames in ([b""], [b"\xc1" * 99], [b"\x93" * 400], [b"x", b"y" * 70_000], [b"\xdd\xff\xff\xff\xff"]):
            stranger.send_multipart(frames)
            assert isinstance(event(host), Rejected)
        host.refuse(b"stranger")
        stranger.send_multipart([b"more"])
        friend.send(8, request(9))
        assert received(host).sender == 9
        assert host.receive() is None


def raw(address: str) -> socket.socket:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)))


@pytest.mark.sockets
@pytest.mark.parametrize("keys", [True, False])
def test_silent_and_noisy_connections_keep_nobody_out(keys: bool, ring: Keyring, keep: Keep) -> None:
    """Half open handshakes (slowloris), bytes that are no ZMTP, and a frame that announces 2**62 bytes."""
    scheduler = keep(ring.van("scheduler") if keys else zmq_van.ZmqVan("job/scheduler/1", True))
    worker = keep(ring.van("worker") if keys else zmq_van.ZmqVan("job/worker/2"))
    address = scheduler.bind(ANYWHERE)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + (b"CURVE" if keys else b"NULL").ljust(20, b"\0") + bytes(32)
    with ExitStack() as stack:
        for number in range(200):
            stranger = stack.enter_context(raw(address))
            huge = b"\x06" + (1 << 62).to_bytes(8, "big")
            stranger.send((b"", b"GET / HTTP/1.1\r\n\r\n", greeting, greeting + huge)[number % 4])
        worker.connect(1, address)
        assert event(worker, scheduler) == LinkUp(1)
        worker.send(1, request(9))
        assert isinstance(event(scheduler, which=lambda e: isinstance(e, Received)), Received)


@pytest.mark.sockets
def test_a_frame_that_is_too_large_is_not_taken(keep: Keep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_van, "MAX_FRAME", 1000)
    host, friend = keep(zmq_van.ZmqVan("job/server/1")), keep(zmq_van.ZmqVan("job/worker/2"))
    address = host.bind(ANYWHERE)
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(address)
        stranger.send_multipart([b"x", bytes(100_000)])
        friend.connect(8, address)
        friend.send(8, request(9))
        assert received(host, friend).sender == 9  # and nothing came before it

"""Who is let in, and whose messages a connection may bring: without sockets."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from zmq.utils import z85

from pslite.van.guard import Guard, of_peer
from pslite.wire import Kind, Message, Op

from .jobs import INCARNATION, request

RAW = bytes(range(32))
KEY = z85.encode(RAW)
LINK = f"nonce/job/worker/{INCARNATION:016x}".encode()


def ask(**changed: bytes) -> list[bytes]:
    frames = {"version": b"1.0", "id": b"7", "domain": b"pslite", "address": b"127.0.0.1", "identity": b"",
              "mechanism": b"CURVE", "key": RAW}  # fmt: skip
    return list((frames | changed).values())


def test_a_known_key_is_let_in_and_is_the_user_id() -> None:
    assert Guard({KEY: 9}).answer(ask()) == [b"1.0", b"7", b"200", b"OK", KEY, b""]


@pytest.mark.parametrize(
    "request_",
    [
        ask(key=bytes(32)),
        ask(key=b""),
        ask(key=RAW + b"x"),
        ask(mechanism=b"NULL"),
        ask(mechanism=b"PLAIN"),
        ask(domain=b"other"),
        ask(domain=b""),
        ask(version=b"2.0"),
        ask()[:6],
        [*ask(), b"more"],
        [],
        [b""],
    ],
)
def test_everybody_else_is_not(request_: list[bytes]) -> None:
    guard = Guard({KEY: 9})
    reply = guard.answer(request_)
    assert (reply[2], reply[4], len(reply)) == (b"400", b"", 6)
    assert guard.refused == 1


@given(st.lists(st.binary(max_size=40), max_size=9))
def test_no_request_is_an_exception(frames: list[bytes]) -> None:
    assert Guard({KEY: 9}).answer(frames)[2] == b"400"


def problem(link: bytes = LINK, user: str = KEY.decode(), node: int = 9, **fields: Any) -> str | None:
    return Guard({KEY: 9}).problem(user, link, request(node, **fields))


def test_what_a_worker_says_of_itself_is_taken() -> None:
    assert problem() is None
    assert problem(sender=0) is None  # it does not know its node id yet
    assert problem(sender=0, op=Op.JOIN, body=["worker", 0, [], "host", 1]) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sender": 11}, "sender 11"),
        ({"sender": 1}, "sender 1"),
        ({"sender": 8}, "sender 8"),
        ({"sender": -1}, "sender -1"),
        ({"incarnation": 5}, "routing id"),
        ({"link": LINK.replace(b"worker", b"server")}, "routing id"),
        ({"link": b"", "incarnation": 0}, "routing id"),
        ({"link": b"scheduler"}, "routing id"),
        ({"user": "nobody"}, "not in the roster any more"),
        ({"user": "\udcff\n"}, "not in the roster any more"),
        ({"op": Op.JOIN, "body": ["worker", 1, [], "host", 1]}, "wish to join"),
        ({"op": Op.JOIN, "body": ["server", 0, ["tcp://h:1"], "host", 1]}, "wish to join"),
        ({"op": Op.JOIN, "body": ["worker", None, [], "host", 1]}, "wish to join"),
        ({"op": Op.JOIN, "body": None}, "wish to join"),
    ],
)
def test_what_is_anothers_is_refused(changed: dict[str, Any], said: str) -> None:
    assert said in str(problem(**changed))


@pytest.mark.parametrize("kind", [*Kind, 99])
def test_no_kind_of_message_goes_past(kind: int) -> None:
    assert "sender 11" in str(Guard({KEY: 9}).problem(KEY.decode(), LINK, request(11, kind=kind)))


def test_a_key_that_is_taken_out_has_no_say() -> None:
    guard = Guard({KEY: 9})
    guard.nodes = {}
    assert "any more" in str(guard.problem(KEY.decode(), LINK, request(9)))


def test_a_server_speaks_for_itself_only_and_the_scheduler_relays() -> None:
    assert of_peer(8, Message(Kind.REPLY, sender=8)) is None
    assert of_peer(1, Message(Kind.REPLY, sender=9)) is None
    assert "server 0 sent it with the sender 1" in str(of_peer(8, Message(Kind.REPLY, sender=1)))

"""What an agent keeps for a server, with the server's own end of the connection."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import keeper as agent_side
from launcher.keeper import Keeper
from pslite.errors import ConfigError
from pslite.van.shared import Keeper as ServerEnd
from pslite.van.shared import keeper as server_side
from tests.harness import wait_until

Connect = Callable[[], ServerEnd]


class Agent(Keeper):
    """A keeper with the complaints it has made."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        super().__init__(self.complaints.append)


@pytest.fixture
def agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.close()


@pytest.fixture
def connect(agent: Agent) -> Iterator[Connect]:
    """A new process of the server, as the agent starts it; an earlier one has ended."""
    ends: list[ServerEnd] = []

    def connect() -> ServerEnd:
        for end in ends:
            end.close()
        ends.append(ServerEnd(agent.connect()))
        agent.serve()
        return ends[-1]

    yield connect
    for end in ends:
        end.close()


def keep(end: ServerEnd, name: str, content: bytes) -> None:
    fd = os.memfd_create("kept")
    try:
        os.write(fd, content)
        end.keep(name, fd)
    finally:
        os.close(fd)


def take(end: ServerEnd) -> dict[str, bytes]:
    """What came back, read and closed."""
    return {name: read(fd) for name, fd in end.take().items()}


def read(fd: int) -> bytes:
    try:
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def test_nothing_is_kept_for_the_first_process(connect: Connect) -> None:
    assert connect().take() == {}


def test_a_successor_gets_the_same_memory(connect: Connect) -> None:
    keep(connect(), "table.0", b"weights")
    fd = connect().take()["table.0"]
    os.pwrite(fd, b"WEIGHTS", 0)
    os.close(fd)
    assert take(connect()) == {"table.0": b"WEIGHTS"}


def test_what_was_sent_just_before_the_end_counts(connect: Connect) -> None:
    """Neither the agent has looked since, nor did the server ever read what it was told: the kernel says so by an
    error that must not hide the packets."""
    end = connect()
    for number in range(3):
        keep(end, f"a{number}", b"%d" % number)
    end.drop("a1")
    assert take(connect()) == {"a0": b"0", "a2": b"2"}


def test_a_name_is_kept_once(agent: Agent, connect: Connect) -> None:
    end = connect()
    keep(end, "a", b"old")
    keep(end, "a", b"new")
    end.drop("never-kept")
    assert take(connect()) == {"a": b"new"}
    assert agent.complaints == []


def test_more_than_the_queue_holds_comes_as_it_is_read(agent: Agent, connect: Connect) -> None:
    end = connect()
    fd = os.memfd_create("many")
    names = [f"n{number}" for number in range(400)]
    for name in names:
        end.keep(name, fd)
        agent.serve()
    os.close(fd)
    end = connect()
    assert agent.wants_to_send, "all of them fit: this test needs more"
    end.drop("n399")  # before it has heard of it
    agent.serve()
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(take, end)
        wait_until(lambda: agent.serve() or taking.done())
    assert list(taking.result()) == names[:-1]


def test_what_a_server_left_behind_holds_nothing_up(agent: Agent, connect: Connect) -> None:
    with socket.socket(fileno=os.dup(connect()._socket.fileno())) as left:  # as a forked child has it
        fd = os.memfd_create("late")
        assert take(connect()) == {}
        with pytest.raises(BrokenPipeError):
            socket.send_fds(left, [b"keep late"], [fd])
        os.close(fd)


@pytest.mark.parametrize(
    ("packet", "fds"),
    [
        (b"keep a", 0),
        (b"keep a", 2),
        (b"keep a", 5),
        (b"drop a", 1),
        (b"hold a", 1),
        (b"keep A", 1),
        (b"keep a\n", 1),
        (b"keep " + b"a" * 81, 1),
        (b"keep a" + b" " * 200, 1),
        (b"\xff\0", 0),
    ],
)
def test_a_malformed_packet_is_refused_and_said(agent: Agent, connect: Connect, packet: bytes, fds: int) -> None:
    end = connect()
    fd = os.memfd_create("x")
    socket.send_fds(end._socket, [packet], [fd] * fds)
    os.close(fd)
    keep(end, "b", b"good")
    agent.serve()
    assert len(agent.complaints) == 1
    assert take(connect()) == {"b": b"good"}


def test_no_more_than_the_limit_is_kept(agent: Agent, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    assert agent_side.MOST == server_side.MOST
    monkeypatch.setattr(agent_side, "MOST", 2)
    end = connect()
    for name in "abc":
        keep(end, name, name.encode())
    keep(end, "b", b"again")
    agent.serve()
    assert agent.complaints == ["c is not kept: 2 descriptors are, and no more"]
    assert take(connect()) == {"a": b"a", "b": b"again"}


def test_nothing_is_held_after_the_end(agent: Agent, connect: Connect) -> None:
    reader, writer = os.pipe()
    connect().keep("pipe", writer)
    os.close(writer)
    agent.serve()
    agent.close()
    assert os.read(reader, 1) == b""  # nobody has the other end
    os.close(reader)


@given(st.text(st.sampled_from("az09._-A /\n\0é"), max_size=82))
def test_both_ends_allow_the_same_names(name: str) -> None:
    agent = Agent()
    end = ServerEnd(agent.connect())
    try:
        keep(end, name, b"")
    except ConfigError:
        allowed = False
    else:
        allowed = True
    agent.serve()
    assert (list(agent._kept) == [name]) is allowed
    assert agent.complaints == []
    end.close()
    agent.close()

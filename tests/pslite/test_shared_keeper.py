"""A server's end of the connection to who keeps its memory, and an agent that misbehaves."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from pslite import Config
from pslite.errors import ConfigError, KeeperError
from pslite.van.shared import Keeper, keeper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs memfd_create")


Pair = tuple[socket.socket, Keeper]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The agent's socket, and the server's end."""
    agent, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.setblocking(False)
    fd = theirs.detach()
    os.set_inheritable(fd, True)
    end = Keeper.from_config(Config(keeper_fd=fd))
    assert end is not None
    with agent:
        yield agent, end
    end.close()


def give(agent: socket.socket, packet: bytes, count: int = 1) -> None:
    """Send a packet with so many descriptors."""
    fd = os.memfd_create("x")
    socket.send_fds(agent, [packet], [fd] * count)
    os.close(fd)


def test_without_a_launcher_nobody_keeps() -> None:
    assert Keeper.from_config(Config.from_env({})) is None


@pytest.mark.parametrize("kind", ["file", "closed", "datagram"])
def test_a_descriptor_that_is_no_such_connection_is_an_error(kind: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram, open(os.devnull) as file:
        fd = {"file": file.fileno(), "closed": 1 << 20, "datagram": datagram.fileno()}[kind]
        with pytest.raises(ConfigError, match=f"keeper_fd={fd} is not allowed"):
            Keeper.from_config(Config(keeper_fd=fd))


def test_programs_that_a_server_starts_do_not_inherit_it(pair: Pair) -> None:
    assert not os.get_inheritable(pair[1]._socket.fileno())


def test_what_it_says_to_the_agent(pair: Pair) -> None:
    agent, end = pair
    fd = os.memfd_create("x")
    end.keep("a-1", fd)
    end.drop("a-1")
    data, fds, _, _ = socket.recv_fds(agent, 100, 9)
    assert (data, len(fds)) == (b"keep a-1", 1)
    assert os.path.sameopenfile(fd, fds[0])
    assert socket.recv_fds(agent, 100, 9)[:2] == (b"drop a-1", [])
    for one in (fd, *fds):
        os.close(one)


@pytest.mark.parametrize(
    ("packet", "count", "said"),
    [
        (b"kept a", 0, "the agent sent b'kept a' with 0 descriptors"),
        (b"kept a", 2, "with 2 descriptors"),
        (b"kept b", 1, "the agent sent b'kept b'"),
        (b"kept A", 1, "the agent sent b'kept A'"),
        (b"end", 1, "with 1 descriptors"),
        (b"\xff", 0, "the agent sent b'\\xff'"),
    ],
)
def test_nonsense_of_the_agent_is_an_error_and_leaks_nothing(pair: Pair, packet: bytes, count: int, said: str) -> None:
    agent, end = pair
    give(agent, b"kept b")
    give(agent, packet, count)
    with pytest.raises(KeeperError) as raised:
        end.take()
    assert said in str(raised.value)


def test_an_agent_that_does_not_answer(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, end = pair
    give(agent, b"kept b")
    with pytest.raises(KeeperError, match="taking back what was kept failed: the agent does not answer"):
        end.take(timeout=0.01)
    end._socket.settimeout(0.01)
    with pytest.raises(KeeperError, match="the agent does not answer"):
        for _ in range(10_000):
            end.drop("a")


def test_an_agent_that_has_gone(pair: Pair) -> None:
    agent, end = pair
    agent.close()
    with pytest.raises(KeeperError, match="taking back what was kept failed: the agent has gone"):
        end.take()
    with pytest.raises(KeeperError, match="drop a failed: Broken pipe"):
        end.drop("a")


def test_too_many_are_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "MOST", 2)
    agent, end = pair
    give(agent, b"kept a")
    agent.send(b"end")
    for fd in end.take().values():
        end.keep("a", fd)
        end.keep("b", fd)
        with pytest.raises(KeeperError, match="keeping c failed: 2 descriptors are kept"):
            end.keep("c", fd)
        end.drop("a")
        end.keep("c", fd)
        os.close(fd)

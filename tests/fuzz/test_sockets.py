"""A hundred thousand messages that are wrong, on every socket that listens, while a job trains: it notices nothing."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pslite.wire import Kind, Message, Op, decode, encode
from tests.cases.seed import SEED
from tests.harness import wait_until
from tests.network.hosts import ThisMachine
from tests.network.jobs import LanesJob, listening_port, memory
from tests.system.jobs import Process

from . import zmtp
from .messages import malformed

pytestmark = [pytest.mark.processes, pytest.mark.slow]

MESSAGES = 100_000
EACH = 100  # by one connection
CONNECTIONS = 5_000
MOST = 50.0  # MiB that a process may grow


@contextlib.contextmanager
def training(tmp_path: Path) -> Iterator[LanesJob]:
    """A job that pushes and pulls meanwhile, and must come to its end with the right values."""
    here = ThisMachine()
    with LanesJob(tmp_path, here, [here], [here, here]) as made:
        made.begin("dist_sync", (1, 100), PSLITE_TRANSPORT="tcp", PSLITE_JOB_ID="fuzzed")
        made.go_on(20)
        yield made
        made.go_on(20)
        made.finish()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["scheduler", "server"])
def test_malformed_messages(role: str, tmp_path: Path) -> None:
    with training(tmp_path) as job:
        [target] = job.of(role)
        before = memory(target.popen.pid)
        send_messages(listening_port(target.popen.pid), malformed("fuzzed", SEED))
        check(target, before)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", ["scheduler", "server"])
def test_bytes_that_are_no_zmtp(role: str, tmp_path: Path) -> None:
    with training(tmp_path) as job:
        [target] = job.of(role)
        before, port = memory(target.popen.pid), listening_port(target.popen.pid)
        for data in itertools.islice(zmtp.nonsense(SEED), CONNECTIONS):
            zmtp.say(port, data)
        check(target, before)


def check(target: Process, before: float) -> None:
    """It has not grown, and nothing surprised it."""
    grown = memory(target.popen.pid) - before
    print(f"{target.role}: {grown:.0f} MiB more")  # noqa: T201 - a figure to look at
    assert grown < MOST
    assert "Traceback" not in target.stderr, target.stderr[-3000:]


def send_messages(port: int, messages: Iterator[list[bytes]]) -> None:
    """Send so many, at the pace of the target, for what is not read yet lies in its memory.

    Who sends many bad ones in a row is not listened to any more, so they come by many connections. It takes one from
    each in turn: when it has refused as many questions by their numbers as others sent messages, it has read these.
    """
    with zmq.Context() as context, connected(context, port) as asking:
        for first in range(2**40, 2**40 + MESSAGES // 10, EACH):
            socks = [connected(context, port) for _ in range(10)]
            for sock in socks:
                for frames in itertools.islice(messages, EACH):
                    sock.send_multipart(frames)
            for number in range(first, first + EACH):
                question = Message(Kind.REQUEST, "fuzzed", sender=9, incarnation=777, seq=number, op=Op.BARRIER)
                asking.send_multipart(encode(question))
            wait_until(lambda: number in replies(asking), 30, "the answer to a message")  # noqa: B023 - called here
            for sock in socks:
                sock.close(linger=1000)


def connected(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    sock = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect(f"tcp://127.0.0.1:{port}")
    return sock


def replies(sock: zmq.Socket[bytes]) -> set[int]:
    """The numbers in all answers that are there."""
    found = set()
    with contextlib.suppress(zmq.Again):
        while True:
            found.add(decode(sock.recv_multipart(zmq.DONTWAIT)).seq)
    return found

"""What carries the bytes between real processes, and how much of it."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from pslite.van.base import LinkDown, Received, VanEvent
from pslite.van.zmq_van import ZmqVan
from pslite.wire import Kind, Message, Op

from .jobs import SCRIPTS, HandMadeJob, launch

SIZE = 300_000_000
HEAVY = SCRIPTS / "with_heavy_imports.py"


@pytest.mark.processes
def test_a_large_value_over_tcp(job: HandMadeJob) -> None:
    job.workers = 1
    job.start_all(SCRIPTS / "large.py", SIZE)
    job.wait()
    assert [p.status for p in job.processes] == [0] * 3, job.processes
    assert job.processes[-1].word("pulled") == str(SIZE)


@pytest.mark.processes
def test_a_large_value_over_ipc() -> None:
    done = launch("-n", 2, "-s", 1, sys.executable, SCRIPTS / "large.py", SIZE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"pulled {SIZE}") == 2


@pytest.mark.processes
@pytest.mark.parametrize("transport, sockets", [("auto", 3), ("shm", 3), ("ipc", 3), ("tcp", 0)])
def test_transport(transport: str, sockets: int) -> None:
    """With auto, the scheduler and two servers listen in the job's directory. What is heavy, only workers import."""
    done = launch("-n", 2, "-s", 2, sys.executable, HEAVY, PSLITE_TRANSPORT=transport)
    assert done.returncode == 0, done.stderr
    assert [line.count(".sock") for line in re.findall("sockets .*", done.stdout)] == [sockets] * 2, done.stdout
    assert done.stdout.count("pulled [2. 2. 2.] with heavy") == 2
    assert re.findall("imported by (.*)", done.stdout) == ["worker"] * 2


@pytest.mark.processes
def test_unknown_transport() -> None:
    done = launch("-n", 1, "-s", 1, sys.executable, HEAVY, PSLITE_TRANSPORT="rdma")
    assert done.returncode == 1
    assert "ConfigError: PSLITE_TRANSPORT='rdma' is not allowed; allowed are auto, shm, ipc, tcp" in done.stderr


class SlowNetwork:
    """A TCP proxy that lets so many bytes per second through, in each direction of each connection."""

    def __init__(self, target: str, rate: float) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self._target, self._rate = (host, int(port)), rate
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets = [self._listener]  # changed by the accepting thread only
        self._threads = [threading.Thread(target=self._accept)]
        self._closed = threading.Event()
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                ends = [self._listener.accept()[0], socket.create_connection(self._target)]
                self._sockets += ends
                for source, sink in (ends, ends[::-1]):
                    self._threads.append(threading.Thread(target=self._pump, args=(source, sink)))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        begin, sent = time.monotonic(), 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                sink.sendall(data)
                sent += len(data)
                self._closed.wait(max(0.0, begin + sent / self._rate - time.monotonic()))
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closed.set()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in self._sockets:
            end.close()


@pytest.fixture
def server() -> Iterator[ZmqVan]:
    van = ZmqVan("job/server/1")
    yield van
    van.close(0)


@pytest.fixture
def worker() -> Iterator[ZmqVan]:
    van = ZmqVan("job/worker/2")
    yield van
    van.close(0)


@pytest.mark.sockets
def test_a_large_value_over_a_slow_network(server: ZmqVan, worker: ZmqVan) -> None:
    """It takes longer than a silent peer is waited for: heartbeats must not cut the connection in the midst of it."""
    network = SlowNetwork(server.bind("tcp://127.0.0.1:0"), rate=40e6)
    try:
        worker.connect(8, network.address)
        value = np.arange(100_000_000, dtype=np.uint8)
        worker.send(8, Message(Kind.REQUEST, op=Op.DATA, seq=1, sender=9, recver=8, arrays=[value]))
        message = _received(server, worker)
        assert np.array_equal(message.arrays[0], value)
    finally:
        network.close()


def _received(server: ZmqVan, worker: ZmqVan) -> Message:
    while True:
        server.wait(0.01)
        for van in (server, worker):
            event: VanEvent | None = van.receive()
            assert not isinstance(event, LinkDown)
            if isinstance(event, Received):
                return event.message

"""What is on its way keeps the bytes that it had when it was sent, on real sockets and with a slow reader."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import pytest

from kvstore.spec import Spec
from kvstore.value import Value
from pslite.dtypes import CODES
from pslite.van.base import Received
from pslite.van.zmq_van import ZmqVan
from pslite.wire import Kind, Message, encode
from tests.fuzz import zmtp

pytestmark = pytest.mark.sockets

SIZE = 1 << 23  # of float64: far more than the kernel's buffers hold
TAIL = 1 << 20  # bytes at its end, which cannot have left before the reader reads


def values_are_written_where_they_are_read() -> AbstractContextManager[Any]:
    """The bug: the next value is written into the last but one, whoever still reads that."""

    def target(self: Value) -> Any:
        self.spare = self._new() if self.spare is None else self.spare
        return self.spare

    return mock.patch.object(Value, "_target", target)


def tail_as_read() -> Any:
    """The end of a value that was sent before two updates, and read after them."""
    van = ZmqVan("job/server/1")
    try:
        port = int(van.bind("tcp://127.0.0.1:0").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 20) as reader:
            asked = zmtp.message([bytes(frame) for frame in encode(Message(Kind.REQUEST, seq=1))])
            reader.sendall(zmtp.GREETING)
            reader.recv(1)  # its peer may hang up if more comes with the greeting
            reader.sendall(zmtp.frame(zmtp.READY, 4) + asked)
            while not isinstance(event := van.receive(), Received):
                van.wait(20.0)
            value = Value.create(Spec(0, (SIZE,), CODES["float64"]), np.zeros(SIZE))
            van.send(event.link, Message(Kind.REPLY, seq=1, arrays=[value.read()]))
            for number in (1.0, 2.0):
                value.apply([np.full(SIZE, number)], None)
            assert (value.data == 2.0).all()
            left, last = SIZE * 8, b""
            while left > 0:
                data = reader.recv(1 << 20)
                left, last = left - len(data), (last + data)[-TAIL:]
            return np.frombuffer(last, np.float64)
    finally:
        van.close(0.0)


@pytest.mark.parametrize("bug", [False, True])
def test_a_reply_is_read_long_after_it_was_sent(bug: bool) -> None:
    with values_are_written_where_they_are_read() if bug else nullcontext():
        tail = tail_as_read()
    assert bool((tail == 0.0).all()) is not bug, "and the bug is found"

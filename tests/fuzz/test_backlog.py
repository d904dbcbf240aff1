"""What came and was not read yet lies in a process's memory; what was read, and who sent it, leaves nothing there."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from pslite.van.base import Rejected
from pslite.van.zmq_van import ZmqVan
from tests.harness import wait_until

from . import zmtp

pytestmark = pytest.mark.sockets

STRANGERS = 400
OPENING = zmtp.GREETING + zmtp.frame(zmtp.READY, 4)
PATIENCE = 20.0


class _MallInfo(ctypes.Structure):
    _fields_ = [("numbers", ctypes.c_size_t * 10)]


def in_use() -> float:
    """MiB that the C library has given out; what is free it keeps for later, so the process stays as large."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("needs glibc 2.33")
    libc.mallinfo2.restype = _MallInfo
    numbers = libc.mallinfo2().numbers
    return float(numbers[4] + numbers[7]) / 2**20  # hblkhd, uordblks


@pytest.fixture
def van() -> Iterator[ZmqVan]:
    made = ZmqVan("server")
    yield made
    made.close(0.0)


def test_what_strangers_sent_is_free_again_when_it_was_read(van: ZmqVan) -> None:
    port = int(van.bind("tcp://127.0.0.1:0").rpartition(":")[2])
    before = in_use()
    for _ in range(STRANGERS):
        zmtp.say(port, OPENING + zmtp.message([b"x" * 100]) * 100)
    wait_until(lambda: in_use() > before + 10, PATIENCE, "messages of all in memory")

    def all_is_free() -> bool:
        van.wait(0)
        while (event := van.receive()) is not None:
            assert isinstance(event, Rejected)
        return in_use() < before + 1

    wait_until(all_is_free, PATIENCE, "all memory free")

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pslite.errors import BindError
from pslite.van.shared import Arena, Channel, Location, available, channel
from tests.harness import FakeClock

OWNER, READER = 2**64 - 1, 12  # incarnations
PAGE = 4096
pytestmark = pytest.mark.skipif(not available(), reason="needs sealed memory: Linux since 5.1")


class Pair:
    """A process that owns an arena, and one that reads: both are this one."""

    def __init__(self, directory: Path, clock: FakeClock) -> None:
        self.path = str(directory / "reader")
        self.arena = Arena(clock)
        self.owner = Channel(str(directory / "owner"), OWNER)
        self.reader = Channel(self.path, READER)

    def offer(self, segment: int = 0) -> bool:
        return self.owner.offer(self.path, segment, self.arena.fd(segment), self.arena.size(segment))

    def array(self, n: int, fill: int) -> tuple[npt.NDArray[np.int64], Location]:
        array = self.arena.empty((n,), np.int64)
        array[...] = fill
        where = self.arena.locate(array)
        assert where is not None
        return array, where

    def read(self, where: Location, nbytes: int) -> memoryview | None:
        return self.reader.view(OWNER, where.segment, where.offset, nbytes)

    def close(self) -> None:
        for thing in (self.owner, self.reader, self.arena):
            thing.close()


@pytest.fixture
def pair(tmp_path: Path, fake_clock: FakeClock) -> Iterator[Pair]:
    pair = Pair(tmp_path, fake_clock)
    yield pair
    pair.close()


def as_numbers(view: memoryview | None) -> list[int]:
    assert view is not None
    return np.frombuffer(view, np.int64).tolist()


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_peer_reads_what_was_offered(pair: Pair) -> None:
    array, where = pair.array(100, 7)
    assert pair.offer()
    view = pair.read(where, array.nbytes)
    assert as_numbers(view) == [7] * 100
    assert view is not None
    assert view.readonly
    assert pair.reader.generation(OWNER, where.segment, where.header) == where.generation
    array[3] = 8
    assert as_numbers(view)[3] == 8, "the memory is the same"


def test_what_was_not_offered_is_unknown(pair: Pair) -> None:
    array, where = pair.array(100, 7)
    assert pair.read(where, array.nbytes) is None
    assert pair.reader.generation(OWNER, where.segment, where.header) is None
    assert pair.offer()
    assert pair.reader.view(OWNER - 1, 0, where.offset, 8) is None
    assert pair.reader.view(OWNER, 1, where.offset, 8) is None
    assert pair.read(where, array.nbytes) is not None


ANYTHING: list[Any] = [-1, -64, 2**64, 1.0, True, None, "0", [0], np.int64(0), 64 * 1024 * 1024 + 64]


@pytest.mark.parametrize("wrong", ANYTHING, ids=repr)
def test_a_location_outside_is_refused(pair: Pair, wrong: Any) -> None:
    pair.array(100, 7)
    assert pair.offer()
    view, generation = pair.reader.view, pair.reader.generation
    assert view(OWNER, 0, 0, pair.arena.size(0)) is not None
    for found in (
        view(OWNER, 0, wrong, 8), view(OWNER, 0, 0, wrong), view(OWNER, wrong, 0, 8), view(wrong, 0, 0, 8),
        generation(OWNER, 0, wrong), generation(OWNER, wrong, 0), generation(wrong, 0, 0),
    ):  # fmt: skip
        assert found is None


def test_the_last_bytes_of_a_segment(pair: Pair) -> None:
    pair.array(1, 1)
    assert pair.offer()
    size = pair.arena.size(0)
    assert pair.reader.view(OWNER, 0, size - 1, 1) is not None
    assert pair.reader.view(OWNER, 0, size, 0) is not None
    assert pair.reader.view(OWNER, 0, size - 1, 2) is None
    assert pair.reader.generation(OWNER, 0, size - 64) is not None
    assert pair.reader.generation(OWNER, 0, size) is None
    assert pair.reader.generation(OWNER, 0, 32) is None


@pytest.mark.parametrize("change", ["nothing", "renewed", "freed"])
def test_a_reader_notices_that_the_owner_writes_meanwhile(pair: Pair, change: str) -> None:
    array, where = pair.array(100, 1)
    assert pair.offer()
    view = pair.read(where, array.nbytes)
    assert view is not None
    copy = bytearray(view[:400])
    if change == "renewed":
        pair.arena.renew(array)
        array[...] = 2
    elif change == "freed":
        del array
        array, _ = pair.array(100, 2)
    copy += view[400:]
    after = pair.reader.generation(OWNER, where.segment, where.header)
    assert (after == where.generation) == (change == "nothing")
    assert (as_numbers(memoryview(copy)) == [1] * 100) == (change == "nothing")


def test_views_outlive_what_is_withdrawn_forgotten_and_closed(pair: Pair, fake_clock: FakeClock) -> None:
    array, where = pair.array(100, 7)
    assert pair.offer()
    view = pair.read(where, array.nbytes)
    del array
    pair.arena.tidy()
    fake_clock.advance(60)
    assert pair.owner.withdraw(pair.path, pair.arena.tidy())
    pair.reader.receive()
    assert pair.reader.mapped == {}
    assert pair.read(where, 800) is None
    pair.close()
    assert as_numbers(view) == [7] * 100


def test_a_peer_is_forgotten_and_others_stay(pair: Pair, tmp_path: Path) -> None:
    pair.array(1, 1)
    other = Channel(str(tmp_path / "other"), 5)
    assert pair.offer()
    assert other.offer(pair.path, 0, pair.arena.fd(0), pair.arena.size(0))
    pair.reader.receive()
    pair.reader.forget(OWNER)
    assert list(pair.reader.mapped) == [(5, 0)]
    other.close()


def test_withdrawals_of_many_segments(pair: Pair) -> None:
    arrays = [pair.arena.empty((64 * 1024 * 1024,), np.uint8) for _ in range(3)]
    for segment in range(len(arrays)):
        assert pair.offer(segment)
    pair.reader.receive()
    assert pair.owner.withdraw(pair.path, [0, 2, *range(100, 1000)])
    pair.reader.receive()
    assert (list(pair.reader.mapped), pair.reader.refused) == ([(OWNER, 1)], 0)


def test_an_offer_said_twice_is_one(pair: Pair) -> None:
    pair.array(1, 1)
    assert pair.offer()
    pair.reader.receive()
    before = descriptors()
    assert pair.offer()
    pair.reader.receive()
    assert (len(pair.reader.mapped), pair.reader.refused) == (1, 0)
    assert descriptors() == before


# -- what cannot be delivered -----------------------------------------------------------------------------------------


def test_a_full_queue_is_no_wait(pair: Pair) -> None:
    pair.array(1, 1)
    sent = 0
    while pair.offer():
        sent += 1
        assert sent < 10_000
    assert sent > 0
    assert not pair.owner.withdraw(pair.path, [0])
    pair.reader.receive()
    assert pair.offer()


def test_a_peer_that_is_not_there(pair: Pair, tmp_path: Path) -> None:
    pair.array(1, 1)
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(stale))
    for path in (tmp_path / "nobody", stale, tmp_path, tmp_path / ("x" * 200)):
        assert not pair.owner.offer(str(path), 0, pair.arena.fd(0), pair.arena.size(0))
        assert not pair.owner.withdraw(str(path), [0])


def test_a_stale_socket_is_replaced_and_close_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
    channel = Channel(str(path), 1)
    assert channel.fileno() >= 0
    assert channel.withdraw(str(path), [1])
    channel.close()
    channel.close()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_bound(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "socket", tmp_path / ("x" * 200)):
        with pytest.raises(BindError, match="cannot listen on"):
            Channel(str(path), 1)


# -- what a peer must not send ----------------------------------------------------------------------------------------


class Attacker:
    """Sends datagrams to a channel, and checks that they do nothing and leave nothing."""

    def __init__(self, target: Channel, path: str) -> None:
        self._target, self._path = target, path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(self, data: bytes, fds: list[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        before, refused = descriptors(), self._target.refused
        self._socket.sendmsg([data], ancillary, 0, self._path)
        self._target.receive()
        assert self._target.mapped == {}
        assert self._target.refused == refused + 1
        assert descriptors() == before

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def attacker(pair: Pair) -> Iterator[Attacker]:
    attacker = Attacker(pair.reader, pair.path)
    yield attacker
    attacker.close()


def offer(segment: int = 0, size: int = PAGE, magic: bytes = b"PSSM", version: int = 1, kind: int = 1) -> bytes:
    return struct.pack("<4sHHQQQ", magic, version, kind, OWNER, segment, size)


@contextlib.contextmanager
def memfd(size: int = PAGE, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW) -> Iterator[int]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    yield fd
    os.close(fd)


def test_what_these_tests_change_is_all_that_is_wrong(pair: Pair, attacker: Attacker) -> None:
    with memfd() as fd, pytest.raises(AssertionError):
        attacker.send(offer(), [fd])
    assert list(pair.reader.mapped) == [(OWNER, 0)]


def test_random_bytes(attacker: Attacker) -> None:
    rng = random.Random(3)
    with memfd() as fd:
        for n in (0, 1, 15, 16, 17, 31, 32, 33, 100, 5000):
            data = rng.randbytes(n)
            attacker.send(data, [])
            attacker.send(data, [fd])
            attacker.send(offer()[:16] + data if n != 16 else data, [])


@pytest.mark.parametrize("wrong", [{"magic": b"PSSN"}, {"version": 2}, {"kind": 0}, {"kind": 2}, {"kind": 3}], ids=repr)
def test_another_protocol(attacker: Attacker, wrong: dict[str, Any]) -> None:
    with memfd() as fd:
        attacker.send(offer(**wrong), [fd])


def test_datagrams_cut_short_or_too_long(attacker: Attacker) -> None:
    with memfd() as fd:
        for n in range(32):
            attacker.send(offer()[:n], [fd])
        attacker.send(offer() + b"\0", [fd])
        attacker.send(offer() + bytes(100_000), [fd])


@pytest.mark.parametrize("n", [0, 2, 8, 9, 200])
def test_any_other_number_of_descriptors_than_one(attacker: Attacker, n: int) -> None:
    with memfd() as fd:
        attacker.send(offer(), [fd] * n)


@pytest.mark.parametrize("size", [0, 1, PAGE - 64, PAGE + 64, 2 * PAGE, 2**41, 2**64 - 1])
def test_another_size_than_announced(attacker: Attacker, size: int) -> None:
    with memfd() as fd:
        attacker.send(offer(size=size), [fd])


def test_a_size_that_no_arena_makes(attacker: Attacker) -> None:
    with memfd(size=PAGE + 1) as fd:
        attacker.send(offer(size=PAGE + 1), [fd])
    with memfd(size=0) as fd:
        attacker.send(offer(size=0), [fd])


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_WRITE])
def test_memory_that_could_be_truncated_under_the_reader(attacker: Attacker, seals: int) -> None:
    with memfd(seals=seals) as fd:
        attacker.send(offer(), [fd])


def test_a_descriptor_of_something_else(attacker: Attacker, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGE))
    pipe = os.pipe()
    fds = [os.open(file, os.O_RDWR), os.open(tmp_path, os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY), *pipe]
    for fd in fds:
        attacker.send(offer(), [fd])
        os.close(fd)


def test_another_user(attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with memfd() as fd:
        attacker.send(offer(), [fd])


def test_more_segments_than_anybody_needs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_SEGMENTS", 3)
    with memfd() as fd:
        for segment in range(5):
            assert pair.owner.offer(pair.path, segment, fd, PAGE)
        before = descriptors()
        pair.reader.receive()
        assert len(pair.reader.mapped) == 3
        assert pair.reader.refused == 2
        assert len(descriptors() - before) == 3
        pair.reader.forget(OWNER)
        assert descriptors() == before


def test_no_descriptor_is_left_for_what_is_offered(pair: Pair) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    array, where = pair.array(1, 7)
    for free in (0, 1):  # one comes with the datagram, and the mapping holds another
        assert pair.offer()
        lowest = os.dup(pair.arena.fd(0))
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
        try:
            assert pair.read(where, array.nbytes) is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pair.reader.refused == 2
    assert pair.offer()
    assert as_numbers(pair.read(where, array.nbytes)) == [7]


# -- processes --------------------------------------------------------------------------------------------------------

# Offers an array to argv[2], says where it is, and waits for an order to give up.
CHILD = """
import sys, time
import numpy as np
from pslite.van.shared import Arena, Channel

channel = Channel(sys.argv[1], 77)
arena = Arena(time.monotonic)
array = arena.empty((1000,), np.int64)
array[...] = range(1000)
where = arena.locate(array)
assert channel.offer(sys.argv[2], where.segment, arena.fd(where.segment), arena.size(where.segment))
print(*where, flush=True)
for line in sys.stdin:
    arena.renew(array)
    array[...] = int(line)
    print(*arena.locate(array), flush=True)
arena.close()
channel.close()
"""


@contextlib.contextmanager
def child_process(code: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, *args], stdin=pipe, stdout=pipe, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def location(child: subprocess.Popen[str]) -> Location:
    assert child.stdout
    return Location(*map(int, child.stdout.readline().split()))


@pytest.mark.processes
def test_another_process_is_read_while_it_lives(tmp_path: Path) -> None:
    reader = Channel(str(tmp_path / "reader"), READER)
    with child_process(CHILD, str(tmp_path / "child"), reader._path) as child:
        where = location(child)
        view = reader.view(77, where.segment, where.offset, 8000)
        assert as_numbers(view) == list(range(1000))
        assert child.stdin
        print(5, file=child.stdin, flush=True)
        new = location(child)
        assert as_numbers(view) == [5] * 1000
        assert reader.generation(77, where.segment, where.header) == new.generation != where.generation
        child.stdin.close()
        assert child.wait() == 0
    reader.close()
    assert list(tmp_path.iterdir()) == []
    assert as_numbers(view) == [5] * 1000


@pytest.mark.processes
def test_a_killed_process_leaves_a_socket_and_nothing_else(tmp_path: Path) -> None:
    named = set(os.listdir("/dev/shm"))
    before = descriptors()
    reader = Channel(str(tmp_path / "reader"), READER)
    with child_process(CHILD, str(tmp_path / "child"), reader._path) as child:
        where = location(child)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert {path.name for path in tmp_path.iterdir()} == {"child", "reader"}
        assert not [name for name in set(os.listdir("/dev/shm")) - named if "pslite" in name]
    view = reader.view(77, where.segment, where.offset, 8000)
    assert as_numbers(view) == list(range(1000)), "what it offered can still be read"
    del view
    reader.forget(77)
    with child_process(CHILD, str(tmp_path / "child"), reader._path) as child:
        assert location(child).segment == 0, "its successor takes the same path"
    reader.close()
    assert descriptors() == before


THIEF = """
import mmap, os, socket, sys

with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.bind(sys.argv[1])
    print(flush=True)
    _, [fd], _, _ = socket.recv_fds(sock, 100, 1)
size = os.fstat(fd).st_size
for attempt in (
    lambda: mmap.mmap(fd, size),
    lambda: os.ftruncate(fd, 0),
    lambda: os.pwrite(fd, bytes(8), 0),
    lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC),
):
    try:
        attempt()
    except PermissionError:
        print("refused", flush=True)
    else:
        print("done", flush=True)
"""


@pytest.mark.processes
def test_a_peer_can_only_read(pair: Pair, tmp_path: Path) -> None:
    array, _ = pair.array(100, 7)
    with child_process(THIEF, str(tmp_path / "thief")) as child:
        assert child.stdout
        child.stdout.readline()
        assert pair.owner.offer(str(tmp_path / "thief"), 0, pair.arena.fd(0), pair.arena.size(0))
        assert child.stdout.read().split() == ["refused"] * 4
    assert os.fstat(pair.arena.fd(0)).st_size == pair.arena.size(0)
    assert array.tolist() == [7] * 100

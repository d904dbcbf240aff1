"""Two vans that share memory: large arrays are read where they are, whatever a peer says about where that is."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

from pslite.dtypes import BFLOAT16
from pslite.van.base import LinkDown, LinkUp, Received, Rejected, VanEvent
from pslite.van.shared import arena, available, exchange
from pslite.van.shared.exchange import TIDY_EVERY, Exchange
from pslite.van.zmq_van import ZmqVan
from pslite.wire import PACK_BELOW, Flag, Kind, Link, Message, decode, encode
from tests.harness import FakeClock

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(not available(), reason="needs sealed memory: Linux since 5.1"),
]

LONGEST = 10.0  # seconds: far above what anything here takes
WORKER, SERVER = "00000000000000a1", "00000000000000b2"  # incarnations
MIB = 1024 * 1024
NODE = 8  # the server's, as the worker calls it
PLACES = 19  # the header's field


class Pair:
    """A server that a worker is connected to, in one directory; both are this process."""

    def __init__(self, directory: Path, clock: FakeClock) -> None:
        self.directory, self._clock = directory, clock
        self.server = self.van("server", SERVER)
        self.worker = self.van("worker", WORKER)
        self.address = self.server.bind(f"ipc://{directory}/{SERVER}.sock")
        self.worker.connect(NODE, self.address)
        assert next_event(self.worker) == LinkUp(NODE)

    def van(self, role: str, incarnation: str, shares: bool = True) -> ZmqVan:
        made = Exchange(str(self.directory), incarnation, self._clock) if shares else None
        return ZmqVan(f"job/{role}/{incarnation}", exchange=made)

    def to_server(self, *arrays: Any, **fields: Any) -> Message:
        assert self.worker.send(NODE, message(WORKER, *arrays, **fields))
        return self.next(self.server)

    def to_worker(self, link: Link, *arrays: Any, **fields: Any) -> Message:
        assert self.server.send(link, message(SERVER, *arrays, **fields))
        return self.next(self.worker)

    def next(self, van: ZmqVan) -> Message:
        event = next_event(van)
        assert isinstance(event, Received), event
        return event.message

    @property
    def link(self) -> bytes:
        """The worker, as the server calls it."""
        return f"job/worker/{WORKER}".encode()

    def close(self) -> None:
        self.worker.close(0)
        self.server.close(0)


@pytest.fixture
def pair(tmp_path: Path, fake_clock: FakeClock) -> Iterator[Pair]:
    made = Pair(tmp_path, fake_clock)
    yield made
    made.close()


def next_event(van: ZmqVan) -> VanEvent:
    deadline = time.monotonic() + LONGEST
    while (event := van.receive()) is None:
        left = deadline - time.monotonic()
        assert left > 0, "nothing came"
        van.wait(left)
    return event


def message(incarnation: str, *arrays: Any, **fields: Any) -> Message:
    return Message(Kind.REQUEST, incarnation=int(incarnation, 16), arrays=list(arrays), **fields)


def filled(van: ZmqVan, shape: Any, dtype: Any = np.float32, start: int = 0) -> Any:
    """An array in the van's memory, with numbers that say where they are."""
    array = van.memory.empty(shape, dtype)
    array[...] = (np.arange(array.size) + start).reshape(array.shape)
    return array


def shared(array: Any, received: Any) -> bool:
    """Whether what was received is the memory of the sender's array; the array is written to."""
    before = array.flat[0].copy()
    array.flat[0] = before + 1
    seen = received.flat[0] == array.flat[0]
    array.flat[0] = before
    return bool(seen)


# -- what travels, and what does not ----------------------------------------------------------------------------------


def test_a_large_array_is_read_where_it_is(pair: Pair) -> None:
    array = filled(pair.worker, (100, 1000))
    got = pair.to_server(array)
    np.testing.assert_array_equal(got.arrays[0], array)
    assert shared(array, got.arrays[0])
    assert not got.arrays[0].flags.writeable
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        got.arrays[0].flags.writeable = True
    assert got.intact()


def test_no_frame_has_its_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    send = zmq.Socket.send
    monkeypatch.setattr(zmq.Socket, "send", lambda s, data, *a, **k: (sizes.append(len(data)), send(s, data, *a, **k)))
    pair.to_server(filled(pair.worker, (8 * MIB,), np.uint8))
    assert sizes
    assert max(sizes) < 1024
    pair.to_server(np.zeros(8 * MIB, np.uint8))
    assert max(sizes) == 8 * MIB


def test_small_arrays_are_packed(pair: Pair) -> None:
    small, large = filled(pair.worker, (PACK_BELOW // 4 - 1,)), filled(pair.worker, (PACK_BELOW // 4,))
    got = pair.to_server(small, large)
    assert [shared(a, b) for a, b in zip((small, large), got.arrays, strict=True)] == [False, True]


def test_places_and_bytes_in_one_message(pair: Pair) -> None:
    """In any order, each array is what it was."""
    mine = [filled(pair.worker, (30_000,), np.int64, start) for start in (1, 2, 3)]
    arrays = [mine[0], np.arange(5), np.arange(50_000.0), mine[1], np.empty((0, 3)), mine[2], np.arange(40_000)]
    got = pair.to_server(*arrays)
    for sent, came in zip(arrays, got.arrays, strict=True):
        np.testing.assert_array_equal(sent, came)
    assert len(got.leases) == 3


@pytest.mark.parametrize("dtype", ["float16", "float64", "bool", "int8", "uint64"])
def test_dtypes(pair: Pair, dtype: str) -> None:
    array = filled(pair.worker, (30, 7, 101), dtype)
    got = pair.to_server(array)
    assert got.arrays[0].dtype == dtype
    np.testing.assert_array_equal(got.arrays[0], array)
    assert got.leases


def test_bfloat16_has_its_code(pair: Pair) -> None:
    bits = filled(pair.worker, (300, 100), np.uint16)
    got = pair.to_server(bits, codes=[BFLOAT16])
    assert got.codes == [BFLOAT16]
    np.testing.assert_array_equal(got.arrays[0], bits)
    assert got.leases


def test_views_of_an_array(pair: Pair) -> None:
    """Contiguous ones are read where they are, others are sent."""
    array = filled(pair.worker, (200, 1000))
    views = {
        "rows": (array[50:150], True),
        "flat": (array.reshape(-1)[1000:-1000], True),
        "other dtype": (array.view(np.int32), True),
        "columns": (array[:, 10:510], False),
        "backwards": (array[::-1], False),
        "transposed": (array.T, False),
        "copy": (array.copy(), False),
    }
    for name, (view, in_place) in views.items():
        got = pair.to_server(view)
        np.testing.assert_array_equal(got.arrays[0], view, name)
        assert bool(got.leases) == in_place, name


def test_answers_come_the_same_way(pair: Pair) -> None:
    pair.to_server(np.zeros(1))
    array = filled(pair.server, (100, 1000))
    assert shared(array, pair.to_worker(pair.link, array).arrays[0])


def test_by_value(pair: Pair) -> None:
    array = filled(pair.worker, (100, 1000))
    got = pair.to_server(array, flags=Flag.BY_VALUE)
    np.testing.assert_array_equal(got.arrays[0], array)
    assert not got.leases
    assert not shared(array, got.arrays[0])


def test_who_copies_while_the_owner_writes_finds_out(pair: Pair) -> None:
    first, second = filled(pair.worker, (20_000,)), filled(pair.worker, (20_000,))
    got = pair.to_server(first, second)
    assert got.intact()
    pair.worker.memory.renew(second)
    assert not got.intact()
    assert pair.to_server(first, second).intact()


def test_an_array_that_is_gone_and_whose_place_is_taken_again(pair: Pair) -> None:
    first = filled(pair.worker, (20_000,))
    got = pair.to_server(first)
    del first
    second = filled(pair.worker, (20_000,), start=5)
    assert not got.intact()
    again = pair.to_server(second)
    assert again.intact()
    np.testing.assert_array_equal(again.arrays[0], second)


# -- peers ------------------------------------------------------------------------------------------------------------


def test_a_peer_that_shares_nothing_gets_bytes(pair: Pair) -> None:
    plain = pair.van("worker", "00000000000000c3", shares=False)
    try:
        plain.connect(NODE, pair.address)
        assert next_event(plain) == LinkUp(NODE)
        assert plain.transport(NODE) == "ipc"
        assert pair.worker.transport(NODE) == "shm"
        plain.send(NODE, message("00000000000000c3", np.arange(50_000)))
        event = next_event(pair.server)
        assert isinstance(event, Received)
        array = filled(pair.server, (50_000,))
        pair.server.send(event.link, message(SERVER, array))
        got = pair.next(plain)
        np.testing.assert_array_equal(got.arrays[0], array)
        assert not got.leases
    finally:
        plain.close(0)


@pytest.mark.parametrize("identity", ["", "x", "job/worker/", "job/worker/..", "job/worker/\0", "a/" + "b" * 200])
def test_a_peer_of_any_name_gets_bytes(pair: Pair, identity: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        if identity:
            dealer.setsockopt(zmq.IDENTITY, identity.encode())
        dealer.connect(pair.address)
        dealer.send_multipart(encode(message("00000000000000c3", np.zeros(1))))
        event = next_event(pair.server)
        assert isinstance(event, Received)
        array = filled(pair.server, (50_000,))
        assert pair.server.send(event.link, message(SERVER, array))
        np.testing.assert_array_equal(decode(dealer.recv_multipart()).arrays[0], array)


def test_a_connection_that_breaks_and_comes_back(pair: Pair) -> None:
    """What was offered is still there, and what is new is offered."""
    relay = Relay(pair.directory / "relay", pair.address)
    worker = pair.van("worker", "00000000000000c3")
    try:
        worker.connect(NODE, relay.address)
        assert next_event(worker) == LinkUp(NODE)
        array = filled(worker, (50_000,))
        for arrays in ([array], [array, filled(worker, (arena.SEGMENT,), np.uint8)]):
            assert worker.send(NODE, message("00000000000000c3", *arrays))
            got = pair.next(pair.server)
            assert [shared(a, b) for a, b in zip(arrays, got.arrays, strict=True)] == [True] * len(arrays)
            relay.cut()
            assert next_event(worker) == LinkDown(NODE)
            assert next_event(worker) == LinkUp(NODE)
    finally:
        worker.close(0)
        relay.close()


class Relay:
    """Between a peer and an ipc address: its connections can be cut. The file has the same name, elsewhere."""

    def __init__(self, directory: Path, target: str) -> None:
        directory.mkdir()
        self._target = target.removeprefix("ipc://")
        path = str(directory / Path(self._target).name)
        self.address = f"ipc://{path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._ends: list[socket.socket] = []  # changed by the accepting thread only
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                one, other = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
                other.connect(self._target)
                self._ends += [one, other]
                for source, sink in ((one, other), (other, one)):
                    self._threads.append(threading.Thread(target=self._pump, args=(source, sink)))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)

    def cut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()


def test_a_connection_made_anew(pair: Pair) -> None:
    """All is offered again, for it may be another process."""
    array = filled(pair.worker, (50_000,))
    first = pair.to_server(array)
    assert pair.worker._exchange is not None
    pair.worker._exchange.part(NODE)
    assert not pair.worker._exchange.shares(NODE)
    assert pair.worker._exchange.meet(NODE, SERVER)
    again = pair.to_server(array)
    assert [shared(array, got.arrays[0]) for got in (first, again)] == [True, True]


def test_a_process_that_comes_in_the_place_of_another(pair: Pair) -> None:
    """It has another incarnation, and none of what was offered to the one before."""
    pair.to_server(np.zeros(1))
    array = filled(pair.server, (50_000,))
    pair.to_worker(pair.link, array)
    pair.worker.close(0)
    pair.worker = pair.van("worker", "00000000000000d4")
    pair.worker.connect(NODE, pair.address)
    assert next_event(pair.worker) == LinkUp(NODE)
    pair.worker.send(NODE, message("00000000000000d4", np.zeros(1)))
    event = next_event(pair.server)
    assert isinstance(event, Received)
    assert shared(array, pair.to_worker(event.link, array).arrays[0])


# -- offers that do not arrive ----------------------------------------------------------------------------------------


def test_what_cannot_be_offered_is_sent_and_later_it_can(pair: Pair) -> None:
    """The peer's queue is full, as it does not look at it."""
    with open("/proc/sys/net/unix/max_dgram_qlen") as file:
        longest = int(file.read())
    if longest > 512:
        pytest.skip("a queue of this host is too long to fill")
    others = [Exchange(str(pair.directory), f"{number:016x}", time.monotonic) for number in range(1, longest + 3)]
    try:
        made = []
        for other in others:
            assert other.meet(1, SERVER)
            made.append(other.memory.empty((50_000,), np.float32))
            other.place(1, made[-1])
        array = filled(pair.worker, (50_000,))
        got = pair.to_server(array)
        np.testing.assert_array_equal(got.arrays[0], array)
        assert not got.leases
        pair.server._exchange.receive()  # type: ignore[union-attr]
        assert pair.to_server(array).leases
    finally:
        for other in others:
            other.close()


def test_what_was_offered_and_refused_is_a_rejected_message(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender does not know: the message is as good as lost, and will be sent again by value."""
    monkeypatch.setattr(pair.server._exchange._channel, "_map", _refuse)  # type: ignore[union-attr]
    array = filled(pair.worker, (50_000,))
    assert pair.worker.send(NODE, message(WORKER, array))
    assert isinstance(next_event(pair.server), Rejected)
    np.testing.assert_array_equal(pair.to_server(array, flags=Flag.BY_VALUE).arrays[0], array)


def _refuse(*_: object) -> None:
    raise OSError(24, "too many open files")


# -- memory that is given back ----------------------------------------------------------------------------------------


def mapped() -> int:
    """How many mappings of shared memory this process has."""
    with open("/proc/self/maps") as file:
        return sum("memfd:pslite" in line for line in file)


def turn(*vans: ZmqVan) -> None:
    """Let each van look once at what there is."""
    for van in vans:
        van.wait(0.0)
        assert van.receive() is None


def test_memory_is_given_back_and_unmapped_by_the_peer(pair: Pair, fake_clock: FakeClock) -> None:
    before = mapped()
    array = filled(pair.worker, (50_000,))
    got = pair.to_server(array)
    assert mapped() == before + 2
    del array
    fake_clock.advance(TIDY_EVERY)
    turn(pair.worker)  # which notices that it is free
    fake_clock.advance(arena.KEEP_EMPTY - 1)
    turn(pair.worker, pair.server)
    assert mapped() == before + 2, "the next round of training needs it again"
    fake_clock.advance(2)
    turn(pair.worker, pair.server)
    assert pair.worker.memory.nbytes == 0  # type: ignore[attr-defined]
    assert mapped() == before + 1, "what was received is still there"
    del got
    assert mapped() == before


def test_what_is_given_back_can_be_made_again(pair: Pair, fake_clock: FakeClock) -> None:
    for number in range(3):
        array = filled(pair.worker, (50_000,), start=number)
        assert shared(array, pair.to_server(array).arrays[0])
        del array
        turn(pair.worker)
        fake_clock.advance(arena.KEEP_EMPTY + 1)
        turn(pair.worker, pair.server)


def test_memory_in_use_is_not_given_back(pair: Pair, fake_clock: FakeClock) -> None:
    array = filled(pair.worker, (50_000,))
    view = array[5:]
    del array
    fake_clock.advance(arena.KEEP_EMPTY * 3)
    turn(pair.worker, pair.server)
    assert shared(view, pair.to_server(view).arrays[0])


def test_the_end_of_the_owner_leaves_what_was_received(pair: Pair) -> None:
    got = pair.to_server(filled(pair.worker, (50_000,)))
    pair.worker.close(0)
    np.testing.assert_array_equal(got.arrays[0], np.arange(50_000, dtype=np.float32))
    pair.worker = pair.van("worker", "00000000000000d4")


def test_a_process_that_was_lost_is_forgotten(pair: Pair) -> None:
    before = mapped()
    got = pair.to_server(filled(pair.worker, (50_000,)))
    pair.server.forget(int(WORKER, 16))
    assert got.arrays[0][-1] == 49_999
    assert not got.intact()
    del got
    assert mapped() == before + 1, "the owner's own"
    pair.server.forget(int(WORKER, 16))
    assert pair.server.send(pair.link, message(SERVER, filled(pair.server, (50_000,))))


def test_links_that_strangers_name_are_not_all_remembered(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_INCOMING", 10)
    made = pair.server._exchange
    assert made is not None
    link = f"job/worker/{WORKER}".encode()
    assert made.shares(link)
    for number in range(1000):
        assert not made.shares(f"stranger {number}".encode())
        assert len(made._peers) <= 10
    assert link in made._peers, "who shares memory is forgotten last"
    for number in range(100):  # many names of one process
        assert made.shares(f"{number}/{WORKER}".encode())
    assert len(made._peers) == 10
    received = pair.to_server(filled(pair.worker, (PACK_BELOW,)))
    assert received.leases, "it is met again"
    made.forget(int(WORKER, 16))
    assert not made._peers and not made._incoming


def test_nothing_is_left_in_the_directory(tmp_path: Path, fake_clock: FakeClock) -> None:
    pair = Pair(tmp_path, fake_clock)
    assert {path.suffix for path in tmp_path.iterdir()} == {".sock", ".shm"}
    pair.close()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".shm"] == []


# -- hostile headers --------------------------------------------------------------------------------------------------

BIG = 2**64 - 1
HOSTILE: dict[str, Callable[[list[int], int], Any]] = {
    "no list": lambda places, size: 5,
    "none": lambda places, size: None,
    "a map": lambda places, size: {},
    "too short": lambda places, size: places[:-1],
    "too long": lambda places, size: [*places, 1],
    "not numbers": lambda places, size: [*places[:-1], "1"],
    "floats": lambda places, size: [float(number) for number in places],
    "booleans": lambda places, size: [True, *places[1:]],
    "nested": lambda places, size: [places],
    "index out of range": lambda places, size: [2, *places[1:]],
    "index far out of range": lambda places, size: [BIG, *places[1:]],
    "negative index": lambda places, size: [-1, *places[1:]],
    "a small array": lambda places, size: [0, *places[1:]],
    "both arrays": lambda places, size: [*places, 0, *places[1:]],
    "unknown segment": lambda places, size: [places[0], 77, *places[2:]],
    "negative segment": lambda places, size: [places[0], -1, *places[2:]],
    "huge segment": lambda places, size: [places[0], BIG, *places[2:]],
    "beyond the end": lambda places, size: [*places[:2], size - 4, *places[3:]],
    "at the end": lambda places, size: [*places[:2], size, *places[3:]],
    "huge offset": lambda places, size: [*places[:2], BIG, *places[3:]],
    "an offset that wraps": lambda places, size: [*places[:2], 2**63 - 1, *places[3:]],
    "negative offset": lambda places, size: [*places[:2], -64, *places[3:]],
    "header beyond the end": lambda places, size: [*places[:3], size, places[4]],
    "huge header": lambda places, size: [*places[:3], BIG - 63, places[4]],
    "negative header": lambda places, size: [*places[:3], -64, places[4]],
    "misaligned header": lambda places, size: [*places[:3], places[3] + 1, places[4]],
    "many unknown": lambda places, size: [number for i in range(20_000) for number in (i, 7, 0, 0, 0)],
}


class Hostile:
    """A peer that offered its memory, and then writes what it likes into headers."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.array = filled(pair.worker, (50_000,))
        self.small = np.arange(10)
        pair.to_server(self.array)
        place = pair.worker._exchange.place(NODE, self.array)  # type: ignore[union-attr]
        assert place is not None
        self.places = [1, *place]
        self.size = pair.worker._exchange.memory.size(0)  # type: ignore[union-attr]

    def send(self, places: Any, more: tuple[bytes, ...] = (), table: Any = None) -> VanEvent:
        exchange = self._pair.worker._exchange
        assert exchange is not None
        header, *rest = encode(message(WORKER, self.small, self.array), lambda array: exchange.place(NODE, array))
        fields = msgpack.unpackb(header)
        fields[PLACES] = places
        fields[PLACES - 1] = fields[PLACES - 1] if table is None else table
        self._pair.worker._dealers[NODE].send_multipart([msgpack.packb(fields), *rest, *more])
        return next_event(self._pair.server)


@pytest.fixture
def hostile(pair: Pair) -> Iterator[Hostile]:
    made = Hostile(pair)
    yield made
    del made.array


@pytest.mark.parametrize("wrong", HOSTILE)
def test_a_place_that_is_none_is_refused(pair: Pair, hostile: Hostile, wrong: str) -> None:
    event = hostile.send(HOSTILE[wrong](hostile.places, hostile.size))
    assert isinstance(event, Rejected), event
    event = hostile.send(hostile.places)
    assert isinstance(event, Received), "what this test changes is all that was wrong"
    np.testing.assert_array_equal(event.message.arrays[1], hostile.array)


def test_a_place_said_twice_is_the_last_one(hostile: Hostile) -> None:
    event = hostile.send([1, 0, 0, 0, 0, *hostile.places])
    assert isinstance(event, Received)
    np.testing.assert_array_equal(event.message.arrays[1], hostile.array)


def test_frames_that_do_not_fit_the_places(hostile: Hostile) -> None:
    assert isinstance(hostile.send([]), Rejected)
    assert isinstance(hostile.send(hostile.places, (b"more",)), Rejected)


def test_a_table_larger_than_the_memory(hostile: Hostile) -> None:
    for shape in ([hostile.size], [2**40], [2**62, 4], [2**63 - 1, 2**63 - 1], [2**64 - 1]):
        table = [[4, 10], [12, *shape]]
        assert isinstance(hostile.send(hostile.places, table=table), Rejected)


def test_a_misaligned_place_is_read_as_it_is(pair: Pair, hostile: Hostile) -> None:
    """It harms nobody: numpy reads such arrays, and a peer may tell us any numbers."""
    index, segment, offset, header, generation = hostile.places
    event = hostile.send([index, segment, offset - 3, header, generation])
    assert isinstance(event, Received)
    misread = event.message.arrays[1]
    assert misread.tobytes()[3:] == hostile.array.tobytes()[:-3]
    assert not misread.flags.writeable


@pytest.mark.parametrize("generation", [0, 1, -1, BIG])
def test_a_wrong_generation_is_never_intact(hostile: Hostile, generation: int) -> None:
    event = hostile.send([*hostile.places[:4], generation])
    assert isinstance(event, Received)
    assert not event.message.intact()


def test_the_memory_of_another_peer_is_not_ours(pair: Pair, hostile: Hostile) -> None:
    """Who takes another incarnation's name in a message finds what that one has offered, or nothing."""
    other = pair.van("worker", "00000000000000c3")
    try:
        other.connect(NODE, pair.address)
        assert next_event(other) == LinkUp(NODE)
        frames = encode(message("00000000000000c3", hostile.small, hostile.array), lambda _: tuple(hostile.places[1:]))  # type: ignore[arg-type,return-value]
        other._dealers[NODE].send_multipart(frames)
        assert isinstance(next_event(pair.server), Rejected)
    finally:
        other.close(0)


def test_a_van_that_shares_nothing_refuses_places(pair: Pair) -> None:
    plain = pair.van("server", "00000000000000e5", shares=False)
    try:
        pair.worker.connect(NODE + 2, plain.bind(f"ipc://{pair.directory}/00000000000000e5.sock"))
        assert next_event(pair.worker) == LinkUp(NODE + 2)
        frames = encode(message(WORKER, np.zeros(50_000)), lambda _: (0, 64, 0, 1))
        pair.worker._dealers[NODE + 2].send_multipart(frames)
        assert isinstance(next_event(plain), Rejected)
    finally:
        plain.close(0)
        pair.worker.disconnect(NODE + 2)


def test_who_waits_takes_in_what_is_offered(pair: Pair) -> None:
    """Else offers that no message mentions yet would fill the queue."""
    array = pair.worker.memory.empty((50_000,), np.float32)
    assert pair.worker._exchange is not None and pair.server._exchange is not None
    assert pair.worker._exchange.place(NODE, array) is not None
    deadline = time.monotonic() + LONGEST
    while not pair.server._exchange._channel.mapped:
        assert time.monotonic() < deadline
        pair.server.wait(deadline - time.monotonic())
        assert pair.server.receive() is None


def test_the_path_of_a_channel() -> None:
    assert exchange.path_in("/d", WORKER) == os.path.join("/d", f"{WORKER}.shm")

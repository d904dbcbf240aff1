"""The wire format: what goes in comes out, and what is malformed is refused before anything is allocated."""

from __future__ import annotations

import tracemalloc
from typing import Any

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings

from pslite import dtypes, wire
from pslite.errors import DTypeError, ProtocolError
from pslite.van.base import Received
from pslite.van.inproc import Hub, InprocVan
from pslite.wire import Kind, Message, decode, encode

numbers = st.integers(-(2**63), 2**64 - 1)
bodies = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple) | st.sampled_from([(17_000,), (100, 50), (2, 3, 4_000)])
codes = st.integers(0, len(dtypes.NAMES) - 1)
HEADER = [wire.MAGIC, wire.VERSION, 1, "job", 9, 8, 77, 1, 1, [], 7, 0, 0, 0, 1, 0, 0, None]


def filled(code: int, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """An array with arbitrary bits; booleans are 0 or 1."""
    dtype = dtypes.storage(code)
    size = int(np.prod(shape, dtype=np.int64))
    raw = np.random.default_rng(seed).integers(0, 256, size * dtype.itemsize, np.uint8)
    return (raw % 2).astype(np.bool_).reshape(shape) if dtype == np.bool_ else raw.view(dtype).reshape(shape)


def sent(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


def header(**changes: Any) -> bytes:
    """A valid header of an empty request, with some of its positions changed: ``f7=-1``; ``table=[...]``."""
    fields = [*HEADER, changes.pop("table", [])]
    for name, value in changes.items():
        fields[int(name[1:])] = value
    return bytes(msgpack.packb(fields))


# What goes in comes out


@given(
    data=st.data(),
    job=st.text(max_size=20).filter(lambda s: len(s) <= 64),
    fields=st.lists(numbers, min_size=12, max_size=12),
    acks=st.lists(st.integers(0, 2**40), max_size=5).map(lambda a: a + a),
    body=bodies,
)
def test_every_field_arrives(data: st.DataObject, job: str, fields: list[int], acks: list[int], body: Any) -> None:
    f = fields
    message = Message(1, job, *f[:5], acks, *f[5:], body)
    specs = data.draw(st.lists(st.tuples(codes, shapes), max_size=5))
    message.arrays = [filled(code, shape, i) for i, (code, shape) in enumerate(specs)]
    message.codes = [code for code, _ in specs] or None
    got = decode(sent(message))
    for name in Message.__slots__:
        if name not in ("arrays", "codes"):
            assert getattr(got, name) == getattr(message, name), name
    assert got.codes == [code for code, _ in specs]
    for a, b in zip(got.arrays, message.arrays, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()
        assert not a.flags.writeable


@pytest.mark.parametrize("name", dtypes.NAMES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (40_000,), (300, 200)], ids=str)
def test_every_dtype_and_size(name: str, shape: tuple[int, ...]) -> None:
    code = dtypes.CODES[name]
    array = filled(code, shape, 1)
    got = decode(sent(Message(Kind.REQUEST, arrays=[array], codes=[code])))
    assert got.codes == [code]
    assert (got.arrays[0].shape, got.arrays[0].tobytes()) == (shape, array.tobytes())


@pytest.mark.parametrize("size, count", [(5, 3), (10_000, 4)])
def test_packed_and_large_arrays_may_be_mixed(size: int, count: int) -> None:
    small, large = np.arange(size, dtype=np.int8), np.arange(wire.PACK_BELOW, dtype=np.float32)
    frames = sent(Message(Kind.REQUEST, arrays=[small, large, small, large, small]))
    assert len(frames) == count  # header, pack if it is not small, two large ones
    got = decode(frames).arrays
    assert [a.tolist() for a in got] == [a.tolist() for a in (small, large, small, large, small)]


def test_packed_arrays_are_aligned() -> None:
    arrays = [np.ones(n, np.uint8) for n in (1, 3, 7)] + [np.ones(2, np.float64)]
    starts = [a.ctypes.data for a in decode(sent(Message(Kind.REQUEST, arrays=arrays))).arrays]
    assert {(s - starts[0]) % 8 for s in starts} == {0}


@pytest.mark.parametrize("size", [10, 50_000])
def test_an_array_that_is_not_contiguous_arrives_in_order(size: int) -> None:
    array = np.arange(2 * size).reshape(2, size).T[::3]
    assert np.array_equal(decode(sent(Message(Kind.REQUEST, arrays=[array]))).arrays[0], array)


def test_a_large_array_is_sent_without_a_copy() -> None:
    array = np.arange(wire.PACK_BELOW, dtype=np.float64)
    frame = encode(Message(Kind.REQUEST, arrays=[array]))[1]
    assert np.shares_memory(np.frombuffer(frame, np.float64), array)
    received = bytes(frame)
    got = decode([sent(Message(Kind.REQUEST, arrays=[array]))[0], received]).arrays[0]
    assert np.shares_memory(got, np.frombuffer(received, np.float64))


@pytest.mark.parametrize("dtype", ["complex64", "U5", "datetime64[s]", "O", "float128"])
def test_a_dtype_that_cannot_travel_is_named(dtype: str) -> None:
    with pytest.raises(DTypeError, match="expected one of float32"):
        encode(Message(Kind.REQUEST, arrays=[np.zeros(3, dtype)]))


def test_the_wrong_byte_order_is_refused_and_not_misread() -> None:
    with pytest.raises(DTypeError, match=">f4"):
        encode(Message(Kind.REQUEST, arrays=[np.ones(3, ">f4")]))


def test_codes_never_change() -> None:
    """They are part of the protocol."""
    assert dtypes.NAMES == (
        "float32", "float64", "float16", "uint8", "int32", "int8", "int64",
        "bfloat16", "bool", "int16", "uint16", "uint32", "uint64",
    )  # fmt: skip


def test_a_header_that_is_too_large_is_refused_by_its_sender() -> None:
    with pytest.raises(ProtocolError, match="send fewer keys"):
        wire.check(Message(Kind.REQUEST, body=bytes(wire.MAX_HEADER)))


# Malformed input


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_random_bytes(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(frames)


@settings(max_examples=300)
@given(data=st.data())
def test_changed_bytes_of_a_valid_message(data: st.DataObject) -> None:
    """Either they are refused, or the result is a message of sound types (a changed number is still a number)."""
    arrays = [np.arange(4, dtype=np.float32), np.zeros((2, 0)), np.arange(20_000, dtype=np.uint8)]
    frames = sent(Message(Kind.REQUEST, "job", 9, 8, 2**60, 5, 3, [1, 2], 7, body={"a": [1, "x"]}, arrays=arrays))
    bad = bytearray(frames[0])
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode([bytes(bad), *frames[1:]])
    except ProtocolError:
        return
    assert all(type(getattr(message, n)) is int for n in ("kind", "sender", "seq", "floor", "op", "flags", "cmd"))
    assert sum(a.nbytes for a in message.arrays) <= sum(map(len, frames))


@given(position=st.integers(2, 17), value=bodies)
def test_a_field_of_another_type(position: int, value: Any) -> None:
    fields = header(**{f"f{position}": value})
    try:
        message = decode([fields])
    except ProtocolError:
        return
    allowed = {3: str, 9: list}
    name = Message.__slots__[position - 2]
    assert position == 17 or isinstance(getattr(message, name), allowed.get(position, int))


@given(
    entries=st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20), max_size=34), min_size=1, max_size=3),
    frames=st.lists(st.binary(max_size=64), max_size=3),
)
def test_lying_shapes(entries: list[list[int]], frames: list[bytes]) -> None:
    """Any shape may be announced; an array comes only if its bytes did."""
    try:
        message = decode([header(table=entries), *frames])
    except ProtocolError:
        return
    assert sum(a.nbytes for a in message.arrays) <= sum(map(len, frames))


@pytest.mark.parametrize(
    "table",
    [
        [[0, 2**62]],
        [[0, 2**64 - 1, 0]],
        [[0, 2**62, 2**62, 0]],
        [[0, *[2] * 31]],
        [[0, *[1] * 40]],
        [[0, -1]],
        [[0, 1.0]],
        [[0, True]],
        [[]],
        [["f", 1]],
        [[99, 1]],
        [[-1, 1]],
        [5],
        "table",
        None,
        {},
        [[0, 1]] * (wire.MAX_ARRAYS + 1),
    ],
    ids=lambda table: repr(table)[:30],
)
def test_impossible_tables(table: Any) -> None:
    with pytest.raises(ProtocolError):
        decode([header(table=table), bytes(8)])


def test_nothing_is_allocated_by_the_announced_size() -> None:
    cases = [
        [header(table=[[0, 2**40]]), bytes(100)],
        [header(table=[[3, 2**33]] * 50), bytes(100)],
        [b"\xdd\xff\xff\xff\xff" + b"\x00"],  # an array of 2**32 elements
        [b"\xdf\xff\xff\xff\xff" + b"\x00"],  # a map
        [b"\xc6\xff\xff\xff\xff" + b"\x00"],  # a byte string
        [b"\xdb\xff\xff\xff\xff" + b"\x00"],  # a string
        [b"\xc9\xff\xff\xff\xff\x01" + b"\x00"],  # an extension
        [b"\x91" * 100_000 + b"\xc0"],  # deep nesting
    ]
    tracemalloc.start()
    try:
        for frames in cases:
            with pytest.raises(ProtocolError):
                decode(frames)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(ProtocolError, match=r"version 2, this process 1: install the same pslite"):
        decode([header(f1=2)])


@pytest.mark.parametrize("frames", [[], [b""], [b"GET / HTTP/1.1\r\n"], [bytes(wire.MAX_HEADER + 1)]])
def test_not_a_message(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode(frames)


def test_every_truncation_is_refused() -> None:
    frames = sent(Message(Kind.REQUEST, body=[1], arrays=[np.arange(1000), np.arange(1500), np.zeros(20_000)]))
    for end in range(len(frames[0])):
        with pytest.raises(ProtocolError):
            decode([frames[0][:end], *frames[1:]])
    for wrong in ([frames[0]], frames[:2], [frames[0], frames[2]], [*frames, b"x"], [*frames[:2], frames[2][:-1]],
                  [frames[0], frames[1][:-1], frames[2]]):  # fmt: skip
        with pytest.raises(ProtocolError):
            decode(wrong)


@pytest.mark.slow
def test_a_value_above_2_gib() -> None:
    size = 2_200_000_000
    array = np.zeros(size, np.uint8)
    array[[0, 2**31 - 1, 2**31, size - 1]] = [1, 2, 3, 4]
    hub = Hub()
    server, worker = InprocVan(hub, "server"), InprocVan(hub, "worker")
    server.bind("inproc://server")
    worker.connect(8, "inproc://server")
    worker.send(8, Message(Kind.REQUEST, arrays=[array]))
    del array
    event = server.receive()
    assert isinstance(event, Received)
    [got] = event.message.arrays
    assert got.nbytes == size
    assert got[[0, 2**31 - 1, 2**31, size - 1]].tolist() == [1, 2, 3, 4]

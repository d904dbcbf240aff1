"""Messages that are almost right: valid ones with fields, frames or bytes changed, tens of thousands a second."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import msgpack
import numpy as np

from pslite.wire import Kind, Message, Op, encode

Frames = list[bytes]

_NUMBERS = (
    -1,
    0,
    1,
    2,
    4,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    15,
    99,
    255,
    2**16,
    2**31,
    2**32,
    2**45,
    2**63 - 1,
    2**63,
    -(2**63),
)
_OTHERS = (
    None,
    True,
    1.5,
    float("nan"),
    "",
    "x" * 80,
    b"",
    b"x" * 100,
    [],
    {},
    [[]],
    [None] * 5,
    {"a": 1},
    {1: 2},
    [1, 2],
)
_BODIES = (
    *_OTHERS, ["worker", None, [], "h", 1], ["server", 0, ["tcp://127.0.0.1:1"], "h", 1], ["finished", "", True],
    ["failed", "x", False], ["ended", 8, {}], ["over", True], [[1, 5], ["why"]], [13, None], [2**40, [0]], ["k" * 300],
)  # fmt: skip
_TABLES = (
    [[0, 2**45]],
    [[0, 2**31, 2**31, 2**31]],
    [[99, 1]],
    [[0] * 40],
    [[12, 1]] * 300,
    [[0, -1]],
    [0],
    [[]],
    [[0, 0, 2**62]],
)


def corpus(job: str) -> list[list[Any]]:
    """The headers of messages of all kinds and operations, with arrays and without."""
    arrays = [np.arange(4, dtype=np.int64), np.ones((3, 5), np.float32)]
    messages = [Message(kind, job, 9, recver, 1, 1, 1, [1, 2], op=Op.DATA) for kind in Kind for recver in (0, 8, 9)]
    messages += [
        Message(Kind.REQUEST, job, 9, 0, 1, 1, 1, op=op, body=body) for op in Op for body in (None, [13, None])
    ]
    messages += [Message(Kind.REQUEST, job, 9, 0, 1, 1, 1, op=Op.DATA, flags=3, arrays=arrays, body=[13, None])]
    return [msgpack.unpackb(bytes(encode(message)[0]), strict_map_key=False) for message in messages]


def malformed(job: str, seed: int) -> Iterator[Frames]:
    """Endless; the same for the same seed. None of them comes from a member of the job."""
    random = Random(seed)
    headers = corpus(job)
    ways = (_fields, _fields, _fields, _bytes, _frames, _noise)
    while True:
        header = list(random.choice(headers))
        header[6] = random.getrandbits(62)  # each comes from a stranger of its own
        yield random.choice(ways)(random, header)


def _fields(random: Random, header: list[Any]) -> Frames:
    """One to three fields of other values or types, or a header that is cut off or goes on."""
    for _ in range(random.randrange(1, 4)):
        index = random.randrange(2, len(header))
        special = {17: _BODIES, 18: _TABLES}.get(index)
        header[index] = random.choice(special or (_NUMBERS if random.random() < 0.6 else _OTHERS))
    if random.random() < 0.1:
        header = header[: random.randrange(len(header))] if random.random() < 0.5 else [*header, None, 5]
    try:
        return [msgpack.packb(header)]
    except OverflowError:
        return [msgpack.packb(header[:5])]


def _bytes(random: Random, header: list[Any]) -> Frames:
    """Bytes of the header changed, or its end missing."""
    packed = bytearray(msgpack.packb(header))
    for _ in range(random.randrange(1, 5)):
        packed[random.randrange(len(packed))] = random.randrange(256)
    return [bytes(packed[: random.randrange(len(packed))] if random.random() < 0.3 else packed)]


def _frames(random: Random, header: list[Any]) -> Frames:
    """More frames than were announced, or other ones."""
    return [
        msgpack.packb(header),
        *(random.randbytes(random.choice((0, 1, 8, 400))) for _ in range(random.randrange(1, 4))),
    ]


def _noise(random: Random, header: list[Any]) -> Frames:
    """No header at all."""
    return [
        random.choice(
            (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x80\x04cos\nsystem\n", b"\xdd\xff\xff\xff\xff", b"\x91" * 3000)
        )
    ]

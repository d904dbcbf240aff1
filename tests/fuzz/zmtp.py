"""ZMTP by hand over plain TCP: greetings, commands and frames that no library would send.

The protocol: https://rfc.zeromq.org/spec/23/. A greeting of 64 bytes, a READY command, then frames: a byte of flags
(1: more, 2: long, 4: command), the length in one byte or in eight, and the bytes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterable, Iterator
from random import Random

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"


def frame(data: bytes, flags: int = 0) -> bytes:
    """One frame; it is long if it must be."""
    if len(data) < 256 and not flags & 2:
        return bytes((flags, len(data))) + data
    return bytes((flags | 2,)) + struct.pack(">Q", len(data)) + data


def message(frames: Iterable[bytes]) -> bytes:
    """A message of these frames."""
    *first, last = frames
    return b"".join(frame(data, 1) for data in first) + frame(last)


def nonsense(seed: int) -> Iterator[bytes]:
    """What to say in a connection, from its first byte on; endless."""
    random = Random(seed)
    hello = GREETING + frame(READY, 4)
    while True:
        way = random.randrange(6)
        if way == 0:  # no greeting
            yield random.randbytes(random.choice((1, 10, 64, 300)))
        elif way == 1:  # a greeting with other bytes, perhaps cut off
            greeting = bytearray(GREETING)
            greeting[random.randrange(64)] = random.randrange(256)
            yield bytes(greeting[: random.randrange(1, 65)]) + frame(READY, 4)
        elif way == 2:  # a READY with other bytes
            ready = bytearray(READY)
            ready[random.randrange(len(ready))] = random.randrange(256)
            yield GREETING + frame(bytes(ready), 4)
        elif way == 3:  # commands that come later
            yield hello + frame(random.choice((b"\x04PING", b"\x04PONG" + bytes(30), b"\x05ERROR\xff", READY, b"")), 4)
        elif way == 4:  # a frame that announces more than comes
            yield (
                hello + b"\x02" + struct.pack(">Q", random.choice((2**63, 2**62 + 5, 2**40, 2**31, 70_000))) + b"short"
            )
        else:  # flags that do not exist, frames that never end
            yield hello + bytes((random.randrange(8, 256), 3)) + b"abc" + frame(b"", 1) * random.randrange(50)


def say(port: int, data: bytes, patience: float = 0.001) -> None:
    """Connect, say it, and leave; the peer may hang up before.

    It does so if a whole greeting and what follows come at once: the rest is said when its own greeting is there, or
    after ``patience`` seconds.
    """
    with contextlib.suppress(ConnectionError, TimeoutError), socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.settimeout(patience)
        for part in (data[: len(GREETING)], data[len(GREETING) :]):
            sock.sendall(part)
            with contextlib.suppress(TimeoutError):
                sock.recv(1024)  # it has looked at ours

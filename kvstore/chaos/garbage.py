"""What a stranger may send to a process that listens on TCP: messages that are none."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import zmq

MESSAGES = ([b"0123456789"], [b""], [b"\xff" * 300], [b"GET / HTTP/1.1\r\n\r\n", b"x"])
_WITHIN = 1000  # ms that they may take to leave
_LISTEN = "0A"  # the state in /proc/net/tcp, include/net/tcp_states.h


def throw(pid: int) -> None:
    """Send them to every address that a process listens on."""
    with zmq.Context() as context:
        for address in addresses(pid):
            sock = context.socket(zmq.DEALER)
            sock.connect(address)
            for message in MESSAGES:
                sock.send_multipart(message)
            sock.close(linger=_WITHIN)


def addresses(pid: int) -> Iterator[str]:
    """The IPv4 addresses that a process listens on, as ZeroMQ takes them."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:")}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == _LISTEN and words[9] in inodes:
            host, port = (int(part, 16) for part in words[1].split(":"))
            yield f"tcp://{socket.inet_ntoa(host.to_bytes(4, sys.byteorder))}:{port}"

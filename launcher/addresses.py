"""Where the scheduler of a job listens, if its hosts are several."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

_SIOCGIFADDR = 0x8915


class NoAddress(Exception):
    """There is none to listen at; the text says why."""


def choose(address: str | None, interface: str | None, towards: Sequence[str]) -> str:
    """The address of this host for others: as told, the interface's, or that on the way to them. Raises NoAddress."""
    if address is not None:
        return address
    if interface is not None:
        return of_interface(interface)
    for host in towards:
        if found := on_the_way_to(host):
            return found
    if not towards:
        return "127.0.0.1"
    names = ", ".join(towards)
    raise NoAddress(f"no way from here to {names}: give the scheduler's host an address=ADDRESS, or --interface")


def listen(address: str, backlog: int, port: int = 0) -> tuple[socket.socket, int]:
    """A socket that listens there, and its port; on all of its addresses if this one is none of this host's (NAT).

    ``port``: 0 for any free one. Raises NoAddress.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise NoAddress(f"{address}: {error.strerror or error}") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # that of a job that has just ended
    try:
        try:
            listener.bind(place)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        where = f"{address}, port {port}" if port else address
        raise NoAddress(f"cannot listen at {where}: {error.strerror}") from None
    return listener, listener.getsockname()[1]


def of_interface(name: str) -> str:
    """Its IPv4 address, else its IPv6 address that others reach. Raises NoAddress."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            packed = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            return socket.inet_ntoa(packed[20:24])
        except OSError:
            pass
    for line in _lines("/proc/net/if_inet6"):
        digits, _, _, _, _, owner = line.split()
        found = ipaddress.IPv6Address(bytes.fromhex(digits))
        if owner == name and not found.is_link_local:
            return str(found)
    known = ", ".join(found for _, found in socket.if_nameindex())
    raise NoAddress(f"--interface {name}: it has no address; interfaces here are {known}")


def on_the_way_to(host: str, port: int = 1) -> str | None:
    """The address that packets to that host leave by; None if it cannot be found out."""
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)  # a UDP connect sends nothing, it only chooses the way
                return str(probe.getsockname()[0])
    except OSError:
        pass
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="ascii").splitlines()
    except OSError:
        return []

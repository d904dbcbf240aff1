"""The addresses of this host, by interface, and which of them a process takes. For Linux."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pslite.errors import ConfigError

_SIOCGIFCONF, _SIOCGIFFLAGS, _IFF_UP = 0x8912, 0x8913, 1
_IFREQ, _MOST = 40, 4096  # bytes of the kernel's record of an IPv4 address; so many are asked for
# Of an IPv6 address: not to be used yet, or in use elsewhere; and soon to be replaced.
_UNUSABLE, _TEMPORARY = 0x40 | 0x08, 0x20 | 0x01


@dataclass(frozen=True)
class Interface:
    """A network interface. ``addresses``: IPv4 first, then IPv6, the better first; link-local ones with a zone."""

    name: str
    up: bool = True
    addresses: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.addresses)})"


def interfaces() -> list[Interface]:
    """All interfaces of this host."""
    found: dict[str, list[str]] = {name: [] for _, name in socket.if_nameindex()}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name, address in (*_ipv4(probe.fileno()), *_ipv6()):
            if name in found:
                found[name].append(address)
        return [Interface(name, _is_up(probe.fileno(), name), tuple(listed)) for name, listed in found.items()]


def _ipv4(fd: int) -> Iterable[tuple[str, str]]:
    records = array.array("B", bytes(_IFREQ * _MOST))
    where, _ = records.buffer_info()
    [size] = struct.unpack_from("i", fcntl.ioctl(fd, _SIOCGIFCONF, struct.pack("iP", len(records), where)))
    for at in range(0, size, _IFREQ):
        label = records[at : at + 16].tobytes().split(b"\0")[0].decode()  # eth0:1 is another address of eth0
        yield label.split(":")[0], socket.inet_ntoa(records[at + 20 : at + 24])


def _ipv6() -> Iterable[tuple[str, str]]:
    try:
        with open("/proc/net/if_inet6") as table:
            rows = [line.split() for line in table]
    except OSError:  # a kernel without IPv6
        return
    rows = [row for row in rows if not int(row[4], 16) & _UNUSABLE]
    rows.sort(key=lambda row: (_KINDS.index(kind_of(_text(row[0]))), int(row[4], 16) & _TEMPORARY))
    for packed, _, _, _, _, name in rows:
        address = _text(packed)
        yield name, f"{address}%{name}" if kind_of(address) == "link-local" else address


def _text(packed: str) -> str:
    return str(ipaddress.IPv6Address(bytes.fromhex(packed)))


def _is_up(fd: int, name: str) -> bool:
    try:
        found = fcntl.ioctl(fd, _SIOCGIFFLAGS, struct.pack("256s", name.encode()))
    except OSError:  # it has just gone
        return False
    flags: int = struct.unpack_from("H", found, 16)[0]
    return bool(flags & _IFF_UP)


# -- pure -------------------------------------------------------------------------------------------------------------

_KINDS = ("global", "unique local", "loopback", "link-local")  # of IPv6 addresses, the better first


def kind_of(host: str) -> str:
    """What a host is as an address: 'IPv4', one of the kinds of IPv6, or 'name'."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "name"
    if address.version == 4:
        return "IPv4"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return "unique local" if address in ipaddress.ip_network("fc00::/7") else "global"


def address_on(name: str, towards: str, known: Iterable[Interface]) -> str:
    """The address of an interface that a process takes which others reach as they reach ``towards``, the scheduler.

    Of the family of ``towards``, IPv4 if that is a name; of IPv6 addresses one of the same kind, else a global one, a
    unique local one, a link-local one. Raises ConfigError that lists the interfaces with addresses.
    """
    known = list(known)
    found = next((interface for interface in known if interface.name == name), None)
    wanted = kind_of(towards)
    problem = _problem(name, found, towards)
    if found is None or problem:
        usable = "; ".join(str(interface) for interface in known if interface.up and interface.addresses)
        allowed = f"{problem}; interfaces with addresses are {usable or 'none'}"
        raise ConfigError(name="DMLC_INTERFACE", value=name, allowed=allowed)
    if wanted == "name":
        return found.addresses[0]
    fitting = [address for address in found.addresses if is_ipv6(address) == is_ipv6(towards)]
    return next((address for address in fitting if kind_of(address) == wanted), fitting[0])


def _problem(name: str, found: Interface | None, towards: str) -> str:
    """Why an interface cannot be taken; "" if it can."""
    if found is None:
        return f"this host has no interface {name}"
    if not found.up:
        return f"it is down: ip link set {name} up"
    if not found.addresses:
        return "it has no address"
    if kind_of(towards) != "name" and is_ipv6(towards) not in [is_ipv6(address) for address in found.addresses]:
        has, lacks = ("IPv4", "IPv6") if is_ipv6(towards) else ("IPv6", "IPv4")
        return f"it has {has} addresses only, and the scheduler's {towards} is {lacks}: use one kind for both"
    return ""


def is_ipv6(host: str) -> bool:
    """Whether a host is written as an IPv6 address."""
    return ":" in host


def is_wildcard(host: str) -> bool:
    """Whether a host stands for all addresses, to listen on."""
    return host in ("*", "0.0.0.0", "::")


def interface_of(host: str, known: Iterable[Interface]) -> str:
    """The name of the interface that has an address; "" if none has, or the host is a name."""
    if kind_of(host) == "name":
        return ""
    address = ipaddress.ip_address(host)
    return next((i.name for i in known if address in map(ipaddress.ip_address, i.addresses)), "")


def is_own(host: str, known: Iterable[Interface]) -> bool:
    """Whether an address is one of this host's: of an interface, or any of the loopback."""
    return kind_of(host) != "name" and (ipaddress.ip_address(host).is_loopback or bool(interface_of(host, known)))


def join(host: str, port: int | str) -> str:
    """``tcp://host:port``, with brackets where they are needed."""
    return f"tcp://[{host}]:{port}" if is_ipv6(host) else f"tcp://{host}:{port}"


# -- names and routes -------------------------------------------------------------------------------------------------


def look_up(host: str, port: int, kind: socket.SocketKind) -> list[tuple[socket.AddressFamily, Any]]:
    """What to connect a socket of this kind to, in the order in which it should be tried, each once. Raises OSError."""
    try:
        found = socket.getaddrinfo(host, port, type=kind)
    except UnicodeError:  # Python's, of a label that is empty or too long
        raise socket.gaierror(socket.EAI_NONAME, "it is not a host name") from None
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def resolve(host: str) -> list[str]:
    """The addresses of a name, the first one first. Raises OSError."""
    return [_host(address) for _, address in look_up(host, 1, socket.SOCK_STREAM)]


def is_reached_by_ipv6(host: str) -> bool:
    """Whether to connect to a host by IPv6: by what its name is first; for one that nobody knows yet, by either."""
    if host in ("", "localhost"):  # which is 127.0.0.1 to those who listen
        return False
    try:
        return is_ipv6(host) or (kind_of(host) == "name" and is_ipv6(resolve(host)[0]))
    except OSError:
        return True


def source_towards(host: str) -> str:
    """The address of this host from which packets to a host leave. Raises OSError."""
    family, address = look_up(host, 1, socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)  # a UDP connect sends nothing, it only chooses the route
        return _host(probe.getsockname())


def _host(address: Any) -> str:
    """The host of a socket's address, with its zone."""
    host, zone = str(address[0]), address[3] if len(address) > 3 else 0
    return f"{host}%{socket.if_indextoname(zone)}" if zone and "%" not in host else host

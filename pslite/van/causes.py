"""Why an address cannot be listened on or reached, in words that say what to do."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pslite import network
from pslite.config import host_of
from pslite.network import Interface

WITHIN = 3.5  # seconds for one more attempt: a neighbour that does not answer is given up after three


def not_own(known: Sequence[Interface]) -> str:
    """Behind an address: that it is none of this host's, and what that means."""
    listed = "; ".join(str(interface) for interface in known if interface.up and interface.addresses)
    return (
        f"which is not an address of this host, {listed}: start this process on the host that has it, or, "
        "if a NAT or a container's host leads from there to here, give it in DMLC_NODE_HOST, too"
    )


def no_such_name(host: str, error: OSError) -> str:
    """That a name cannot be resolved."""
    return f"the name {host} does not resolve on this host ({error.strerror}): correct it, DNS, or /etc/hosts"


def why_not_bound(address: str, code: int) -> str:
    """Why an address cannot be listened on, by the error of the system."""
    reason, host = os.strerror(code), host_of(address)
    if code == errno.EADDRINUSE:
        return f"{reason}; end who listens there (`ss -ltnp` shows it), or take another port"
    if code == errno.EADDRNOTAVAIL and host:
        return f"{reason}; it is {host}, {not_own(network.interfaces())}"
    if code == errno.EACCES and host:
        return f"{reason}; ports below 1024 are for root: take a higher one"
    return reason


@dataclass(frozen=True)
class Attempt:
    """What became of a connection. ``source``: where from, as an address with its interface; "" if unknown."""

    reason: str
    source: str = ""


def attempt(address: str, role: str) -> Attempt:
    """Connect once more without ZeroMQ, which does not say what is wrong. Takes up to WITHIN seconds.

    ``role``: of the process that should be there.
    """
    if address.startswith("ipc://"):
        return Attempt(_try(socket.AF_UNIX, address.removeprefix("ipc://"), WITHIN, role))
    if not (host := host_of(address)):
        return Attempt(f"nobody is there: is the {role} started?")
    port = int(address.rpartition(":")[2])
    try:
        found = network.look_up(host, port, socket.SOCK_STREAM)
    except OSError as error:
        return Attempt(no_such_name(host, error))
    reasons = [_try(family, where, WITHIN / len(found), role) for family, where in found]
    if len(found) > 1:
        reasons = [f"{where[0]}: {reason}" for (_, where), reason in zip(found, reasons, strict=True)]
    return Attempt("; ".join(reasons), _source(host))


def _source(host: str) -> str:
    try:
        own = network.source_towards(host)
    except OSError:
        return ""
    interface = network.interface_of(own, network.interfaces())
    return f"{own} ({interface})" if interface else own


def _try(family: socket.AddressFamily, where: Any, within: float, role: str) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(within)
        try:
            probe.connect(where)
        except OSError as error:
            code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or 0
            return _CAUSES.get(code, f"{error.strerror or error}: {{}}").format(_HINTS[role])
    return f"something listens there, but does not answer as a {role}: it is starting, hangs, or is another program"


_HINTS = {
    "scheduler": "is the scheduler started, at this address and on this port?",
    "server": "does this address lead to the server? Its DMLC_NODE_HOST or DMLC_INTERFACE can give another one",
}
_CAUSES = {
    errno.ECONNREFUSED: "connection refused, nothing listens there: {}",
    errno.ENOENT: "there is no such socket: {}",
    errno.ETIMEDOUT: "no answer: a firewall drops what is sent there, or no host has this address; {}",
    errno.EHOSTUNREACH: "no route to host: its host is down, no host there has this address, or a firewall refuses; {}",
    errno.ENETUNREACH: "network is unreachable, this host has no route to it; {}",
    errno.EACCES: "a firewall of this host, or the permissions of a socket, forbid it",
    errno.EPERM: "a firewall of this host forbids it",
    errno.EINVAL: "a link-local address needs its interface, as in [fe80::1%eth0]; {}",
}

"""The hosts of a job, as hostfiles and ``-H`` name them. A hostfile has one host per line, ``#`` begins a comment:

    node1 slots=4
    alice@node2 slots=4 port=2222 address=10.0.0.2
    fd00::3

``-H node1:slots=4,node2`` is the same on the command line; an IPv6 address is in brackets there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import UsageError

HERE = ("localhost", "127.0.0.1", "::1")  # need nothing to start an agent on

_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_MOST = {"slots": 1 << 16, "port": (1 << 16) - 1}


@dataclass(frozen=True)
class Host:
    """A host to run processes on."""

    name: str  # as the user writes it: a name, an alias of ssh's configuration, an address
    slots: int | None = None  # workers that it has room for
    user: str | None = None
    port: int | None = None  # of sshd
    address: str | None = None  # where other hosts reach its scheduler and servers, if not where it was reached itself

    @property
    def is_here(self) -> bool:
        """Whether it is the launcher's own."""
        return self.name in HERE


def parse_hosts(text: str) -> tuple[Host, ...]:
    """What ``-H`` says: the path of a hostfile, or hosts with commas between them. Raises UsageError."""
    path = Path(text)
    if not path.is_file():
        if "/" in text:
            raise UsageError(f"-H {text}: there is no such file")
        return _merged([_inline(word) for word in text.split(",") if word.strip()], f"-H {text}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"-H {text}: it cannot be read: {error}") from None
    words = ((number, line.split("#", 1)[0].split()) for number, line in enumerate(lines, 1))
    return _merged([_host(found[0], found[1:], f"{text}, line {n}") for n, found in words if found], f"-H {text}")


def _inline(word: str) -> Host:
    """``user@node1:slots=4:port=22``, ``[fd00::1]:slots=4``."""
    word = word.strip()
    user, at, rest = word.rpartition("@")
    if rest.startswith("["):
        name, _, tail = rest[1:].partition("]")
        settings = tail.split(":")[1:] if tail.startswith(":") else [tail] if tail else []
    elif rest.count(":") > 1 and "=" not in rest:
        name, settings = rest, []
    else:
        name, *settings = rest.split(":")
    return _host(user + at + name, settings, f"-H {word}")


def _host(word: str, settings: Sequence[str], where: str) -> Host:
    user, at, name = word.rpartition("@")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    bare, colon, number = name.partition(":")
    if settings and settings[0].isdigit():
        bare, colon, number = name, ":", settings[0]
    if colon and number.isdigit() and ":" not in number:
        meant = f"{bare} slots={number} for room for {number} workers, {bare} port={number} for ssh's port"
        raise UsageError(f"{where}: {bare}:{number} may mean two things: write {meant} (with -H {bare}:slots={number})")
    if not _NAME.fullmatch(name) or (at and not _USER.fullmatch(user)):
        raise UsageError(f"{where}: {word!r} is not a host: give NAME, USER@NAME or an address")
    found: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in ("slots", "port", "address") or key in found:
            raise UsageError(f"{where}: {setting!r} is not slots=N, port=N or address=ADDRESS")
        found[key] = value
    address = found.get("address")
    if address is not None and not _NAME.fullmatch(address):
        raise UsageError(f"{where}: {address!r} is not an address")
    slots, port = (_number(key, found, where) for key in ("slots", "port"))
    return Host(name, slots, user or None, port, address)


def _number(key: str, found: dict[str, str], where: str) -> int | None:
    text = found.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MOST[key]):
        raise UsageError(f"{where}: {key}={text}: give a number from 1 to {_MOST[key]}")
    return int(text)


def _merged(hosts: Iterable[Host], where: str) -> tuple[Host, ...]:
    """A host that is named again has room for more."""
    found: dict[str, Host] = {}
    for host in hosts:
        known = found.get(host.name)
        if known is None:
            found[host.name] = host
        elif replace(known, slots=None) == replace(host, slots=None):
            found[host.name] = replace(known, slots=(known.slots or 1) + (host.slots or 1))
        else:
            raise UsageError(f"{where}: {host.name} is named twice, with different settings")
    if not found:
        raise UsageError(f"{where}: no host is named there")
    return tuple(found.values())

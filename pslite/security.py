"""The keys of a job: a CURVE key pair for each process in a file of its own, and a roster of all public keys.

A key stands for a role and a rank: who proves to have it (CurveZMQ, RFC 26) is that process. A secret never leaves its
file: it is in no environment variable, command line, log or error.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from . import ids
from .errors import ConfigError

ROSTER = "roster.json"  # beside the key files
MAX_FILE = 1 << 20  # bytes: a roster of 10,000 processes is half of it
_DIGITS = 40  # of a key in Z85


@dataclass(frozen=True)
class Keys:
    """What one process has: its own key pair, and everybody's public key. Keys are Z85, as ZeroMQ prints them."""

    role: str
    rank: int
    public: bytes
    secret: bytes = field(repr=False)
    roster: Roster


class Roster:
    """Which public key stands for which node. Read from its file again when that has changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nodes: dict[bytes, int] = {}  # by key; replaced as a whole by ``refresh``
        self._read_as: tuple[int, int, int] | None = None  # inode, size, time of change of what was read
        self.refresh()

    def refresh(self) -> None:
        """Take in what has changed. A file that is damaged or gone changes nothing, once it was read."""
        try:
            found = os.stat(self.path)
            if (seen := (found.st_ino, found.st_size, found.st_mtime_ns)) == self._read_as:
                return
            nodes = dict(_entries(_read(self.path, others_may=stat.S_IRGRP | stat.S_IROTH), self.path))
        except (OSError, ConfigError):
            if self._read_as is None:
                raise
            return
        self.nodes, self._read_as = nodes, seen

    def key_of(self, node: int) -> bytes | None:
        """The public key of a node."""
        return next((key for key, owner in self.nodes.items() if owner == node), None)


def make(directory: Path, workers: int, servers: int) -> list[Path]:
    """Make the keys of a new job; returns the files, the roster last. Existing files are never written over.

    Raises ConfigError if the directory cannot be used.
    """
    nodes = [ids.SCHEDULER, *map(ids.server_id, range(servers)), *map(ids.worker_id, range(workers))]
    roster, made = {}, []
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for node in nodes:
            public, secret = (key.decode() for key in zmq.curve_keypair())
            roster[ids.name_of(node)] = public
            content = {"role": ids.role_of(node), "rank": ids.rank_of(node), "public": public, "secret": secret}
            made.append(_write(directory / file_name(ids.role_of(node), ids.rank_of(node)), content))
        made.append(_write(directory / ROSTER, roster))
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        remedy = f"keys cannot be written there: {error.strerror}: {error.filename}; give an empty directory of yours"
        raise ConfigError(name="directory", value=str(directory), allowed=remedy) from None
    return made


def file_name(role: str, rank: int) -> str:
    """``server-1.key``, ``worker-0.key``, ``scheduler.key``."""
    return "scheduler.key" if role == "scheduler" else f"{role}-{rank}.key"


def load(path: str) -> Keys:
    """Read a key file, and the roster beside it. Raises ConfigError that says what is wrong, and no key."""
    file = Path(path)
    try:
        found = _read(file, others_may=0)
        roster = Roster(file.parent / ROSTER)
    except OSError as error:
        raise _refused(Path(error.filename or file), f"it cannot be read: {error.strerror}") from None
    try:
        role, rank, public, secret = (found[name] for name in ("role", "rank", "public", "secret"))
        public, secret = public.encode("ascii"), secret.encode("ascii")
        matches = zmq.curve_public(secret) == public
        node = ids.node_id(role, rank)
    except (LookupError, TypeError, AttributeError, ValueError, zmq.ZMQError):
        raise _refused(file, "it is no key file: make one with pslite keys") from None
    if not matches or roster.nodes.get(public) != node:
        raise _refused(file, f"its key is not that of {ids.name_of(node)} in {ROSTER}: take both from the same job")
    return Keys(role, rank, public, secret, roster)


def _write(path: Path, content: dict[str, Any]) -> Path:
    # With O_EXCL nobody can have put a file or a link of his own there; the mode counts from the first byte on.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        json.dump(content, file, indent=1)
    return path


def _read(path: Path, others_may: int) -> dict[str, Any]:
    """A file of ours that others have no more rights to than ``others_may``. Raises OSError, ConfigError."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # no FIFO makes us wait
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "it is no regular file")
        if found.st_uid not in (0, os.geteuid()):
            raise _refused(path, f"it belongs to user {found.st_uid}: it must be yours")
        if found.st_uid != os.geteuid():  # root lets a group of ours read it, as Kubernetes does with a Secret
            others_may |= stat.S_IRGRP
        if stat.S_IMODE(found.st_mode) & 0o077 & ~others_may:
            mode = f"{stat.S_IMODE(found.st_mode):04o}"
            raise _refused(path, f"its mode is {mode}, so that others have access: chmod 600 {path}")
        data = file.read(MAX_FILE + 1)
    try:
        content = json.loads(data) if len(data) <= MAX_FILE else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise _refused(path, "it is damaged: make one with pslite keys")
    return content


def _entries(content: dict[str, Any], path: Path) -> Iterator[tuple[bytes, int]]:
    for name, key in content.items():
        role, _, rank = name.partition(" ")
        if role not in ids.ROLES or not (rank or "0").isdecimal() or not isinstance(key, str) or len(key) != _DIGITS:
            raise _refused(path, "it is no roster: make one with pslite keys")
        yield key.encode("ascii", "replace"), ids.node_id(role, int(rank or 0))


def _refused(path: Path, allowed: str) -> ConfigError:
    return ConfigError(name="PSLITE_KEY_FILE", value=str(path), allowed=allowed)

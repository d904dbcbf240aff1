"""A server's connection to who keeps its memory while it is dead: the launcher's agent on its host.

Packets on a Unix SOCK_SEQPACKET socket that the agent made and gave the server; descriptors travel with them as
SCM_RIGHTS (unix(7)). From the agent come ``kept NAME`` with a descriptor, once for each that an earlier process of
this server's rank gave it, and ``end``. From the server go ``keep NAME`` with a descriptor, and ``drop NAME``.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time

from pslite.config import Config
from pslite.errors import ConfigError, KeeperError

MOST = 4096  # descriptors that are kept for one server
DEADLINE = 10.0  # seconds that the agent may take: it does nothing but wait for such packets

_NAME = re.compile(r"[a-z0-9._-]{1,80}")
_LONGEST = 128  # bytes of a packet


class Keeper:
    """Hands memory to the agent, and takes that of an earlier process of the same rank. For one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.settimeout(DEADLINE)
        self._names: set[str] = set()  # what is kept now

    @classmethod
    def from_config(cls, config: Config) -> Keeper | None:
        """The connection of this server; None if nobody keeps its memory.

        Raises ConfigError if the descriptor is no such connection.
        """
        if config.keeper_fd is None:
            return None
        name, allowed = "keeper_fd", "only the launcher's agent can give it, to a server that it starts"
        try:
            connection = socket.socket(fileno=config.keeper_fd)
        except OSError:
            raise ConfigError(name=name, value=config.keeper_fd, allowed=allowed) from None
        if (connection.family, connection.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            connection.detach()  # it is somebody else's
            raise ConfigError(name=name, value=config.keeper_fd, allowed=allowed)
        connection.set_inheritable(False)  # programs that a server starts have no use for it
        return cls(connection)

    def take(self, timeout: float = DEADLINE) -> dict[str, int]:
        """What an earlier process had kept: descriptors by name, which are the caller's to close. To be called once.

        They stay kept until they are dropped. Raises KeeperError if they are not all there after ``timeout`` seconds.
        """
        found: dict[str, int] = {}
        deadline = time.monotonic() + timeout
        try:
            while name := self._next(found, deadline):
                self._names.add(name)
        except BaseException:
            for fd in found.values():
                os.close(fd)
            raise
        finally:
            self._socket.settimeout(DEADLINE)
        return found

    def _next(self, found: dict[str, int], deadline: float) -> str:
        """Receive one packet: the name of what came, "" at the end."""
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data, fds, flags, _ = socket.recv_fds(self._socket, _LONGEST, 2, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise _failed("taking back what was kept", error) from error
        verb, _, text = data.decode("ascii", "replace").partition(" ")
        if verb == "kept" and len(fds) == 1 and _NAME.fullmatch(text) and text not in found:
            found[text] = fds[0]
            return text
        for fd in fds:
            os.close(fd)
        if data == b"end" and not fds:
            return ""
        if flags & socket.MSG_CTRUNC:
            reason = f"no descriptor is left for {text} (see ulimit -n)"
        else:
            reason = f"the agent sent {data!r} with {len(fds)} descriptors" if data else "the agent has gone"
        raise KeeperError(what="taking back what was kept", reason=reason)

    def keep(self, name: str, fd: int) -> None:
        """Have this memory survive this process; what was kept under the same name is forgotten.

        The caller's descriptor stays the caller's: it may be closed. ``name``: 1 to 80 of ``a-z 0-9 . _ -``. Raises
        ConfigError, and KeeperError if the agent does not take it.
        """
        if name not in self._names and len(self._names) >= MOST:
            raise KeeperError(what=f"keeping {name}", reason=f"{MOST} descriptors are kept for this server already")
        self._send("keep", name, [fd])
        self._names.add(name)

    def drop(self, name: str) -> None:
        """Have it forgotten; a name under which nothing is kept is no error."""
        self._send("drop", name, [])
        self._names.discard(name)

    def _send(self, verb: str, name: str, fds: list[int]) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(name="name", value=name, allowed="give 1 to 80 of a-z, 0-9, '.', '_' and '-'")
        try:
            socket.send_fds(self._socket, [f"{verb} {name}".encode()], fds)
        except OSError as error:
            raise _failed(f"{verb} {name}", error) from error

    def close(self) -> None:
        """Close the connection; what is kept stays kept."""
        with contextlib.suppress(OSError):  # the agent ended before it had read everything
            self._socket.close()


def _failed(what: str, error: OSError) -> KeeperError:
    reason = "the agent does not answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return KeeperError(what=what, reason=reason)

"""What the launcher's agent tells a server process: which ranks it serves.

Packets on a Unix SOCK_SEQPACKET socket that the process inherits. From the agent:

    adopt RANK RESTARTS     with one descriptor, the connection to the keeper of this rank's memory
    release RANK

and its end, when no more ranks will come. To the agent go ``ready`` once, and ``serving RANK`` or ``released RANK``.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import dataclass

from pslite.config import Config
from pslite.errors import ConfigError, KeeperError

_PACKET = re.compile(r"(adopt|release) (\d{1,9})(?: (\d{1,9}))?")
_LONGEST = 128  # bytes of a packet


@dataclass(frozen=True)
class Order:
    """One packet; ``keeper_fd`` is the receiver's to close."""

    verb: str
    rank: int
    restarts: int = 0
    keeper_fd: int | None = None


class Orders:
    """The process's end of the connection. ``next`` is for one thread, ``say`` for any."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    @classmethod
    def from_config(cls, config: Config) -> Orders | None:
        """The connection that this process inherited; None if nobody gives it orders.

        Raises ConfigError if the descriptor is no such connection.
        """
        if config.agent_fd is None:
            return None
        name, allowed = "PSLITE_AGENT_FD", "only the launcher can set it, for a server that it starts"
        try:
            connection = socket.socket(fileno=config.agent_fd)
        except OSError:
            raise ConfigError(name=name, value=config.agent_fd, allowed=allowed) from None
        if (connection.family, connection.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            connection.detach()  # it is somebody else's
            raise ConfigError(name=name, value=config.agent_fd, allowed=allowed)
        connection.set_inheritable(False)  # it was, to come here; programs that a server starts have no use for it
        return cls(connection)

    def next(self) -> Order | None:
        """Wait for the next order; None when no more will come. Raises KeeperError for one that makes no sense."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _LONGEST, 2, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            return None
        if not data and not fds:
            return None
        found = _PACKET.fullmatch(data.decode("ascii", "replace"))
        if found is not None and (found[1] == "adopt") == (found[3] is not None) == (len(fds) == 1):
            return Order(found[1], int(found[2]), int(found[3] or 0), fds[0] if fds else None)
        for fd in fds:
            os.close(fd)
        raise KeeperError(what="taking an order", reason=f"the agent sent {data!r} with {len(fds)} descriptors")

    def say(self, text: str) -> None:
        """Tell the agent, unless it has gone."""
        with contextlib.suppress(OSError):
            self._socket.send(text.encode())

    def close(self) -> None:
        """Close the connection; ``next`` returns None in the thread that waits there."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

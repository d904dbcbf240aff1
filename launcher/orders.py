"""The agent's end of a connection to a server process: it says which ranks the process serves.

Packets on a Unix SOCK_SEQPACKET socket. To the process:

    adopt RANK RESTARTS     with one descriptor (SCM_RIGHTS), the connection to this rank's keeper
    release RANK

and the connection's end, when no more ranks will come. From the process: ``ready`` once, when it can serve, then
``serving RANK`` and ``released RANK``.
"""

from __future__ import annotations

import contextlib
import re
import socket

_PACKET = re.compile(rb"(ready|serving|released)(?: (\d{1,9}))?")
_LONGEST = 128  # bytes: anything longer than the longest packet is truncated, and ignored


class Orders:
    """A connection to one process. Never blocks: the packets for all ranks there may be have room in a socket."""

    def __init__(self) -> None:
        self._socket, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self.ended = False  # the process has closed its end

    def take_end(self) -> socket.socket:
        """The process's end, to be inherited, and closed here then. Once only."""
        return self._theirs

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._socket.fileno()

    def adopt(self, rank: int, restarts: int, keeper: socket.socket) -> None:
        """Have it serve a rank, after so many others have."""
        with contextlib.suppress(OSError):  # it has ended, as its exit status will say
            socket.send_fds(self._socket, [b"adopt %d %d" % (rank, restarts)], [keeper.fileno()])

    def release(self, rank: int) -> None:
        """Have it stop serving a rank."""
        with contextlib.suppress(OSError):
            self._socket.send(b"release %d" % rank)

    def receive(self) -> list[tuple[str, int]]:
        """What it has said: words with their ranks, -1 for none."""
        said: list[tuple[str, int]] = []
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_LONGEST):
                if packet := _PACKET.fullmatch(data):
                    said.append((packet[1].decode(), int(packet[2] or -1)))
            self.ended = True
        return said

    def close(self) -> None:
        """No more ranks will come."""
        self._socket.close()

"""Keeps descriptors for a server while it is dead: memory that its successor goes on with.

Packets on a Unix SOCK_SEQPACKET socket, with the descriptors as SCM_RIGHTS (unix(7)). From the server:

    keep NAME         with one descriptor; replaces the one kept under this name
    drop NAME

To each server process, when it starts:

    kept NAME         with its descriptor, for each one kept
    end

NAME is 1 to 80 of ``a-z 0-9 . _ -``. Nobody here maps or reads what is kept.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
from collections import deque
from collections.abc import Callable

MOST = 4096  # descriptors kept for one server

_PACKET = re.compile(rb"(keep|drop) ([a-z0-9._-]{1,80})")
_LONGEST = 128  # bytes: anything longer than the longest packet is truncated, and refused
_AT_ONCE = 64  # packets taken in before others have their turn


def allow_many_descriptors() -> tuple[int, int]:
    """Raise this process's limit of open descriptors as far as it may, for 1024 is too few.

    Returns the limits that it had, which its children should have.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    return before


class Keeper:
    """What is kept for one server, and the connection to the process that is this server now.

    Never blocks. Used by the agent's one thread only.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._tell = complain  # told why something could not be kept or given back, once for each process
        self._complained = False
        self._kept: dict[str, int] = {}
        self._socket: socket.socket | None = None
        self._untold: deque[str] = deque()  # names that the process is still to be told, and "" for the end of them

    def connect(self) -> socket.socket:
        """A new connection, for a process that is about to start: its end, to be inherited, and closed here then."""
        self.end_of_process()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        self._untold, self._complained = deque([*self._kept, ""]), False
        return theirs

    def fileno(self) -> int:
        """The descriptor to poll, while ``connected``."""
        return self._socket.fileno() if self._socket else -1

    @property
    def connected(self) -> bool:
        """Whether there is a connection to ``serve``."""
        return self._socket is not None

    @property
    def wants_to_send(self) -> bool:
        """Whether ``serve`` has something to do when the socket has room."""
        return bool(self._untold)

    def serve(self) -> None:
        """Take in what has come, and give back what is kept as far as the socket has room."""
        for _ in range(_AT_ONCE):
            if not self._receive_one():
                break
        self._send()

    def _send(self) -> None:
        try:
            while self._socket and self._untold:
                name = self._untold[0]
                if not name:
                    self._socket.send(b"end")
                elif name in self._kept:  # else it was dropped meanwhile
                    socket.send_fds(self._socket, [b"kept " + name.encode()], [self._kept[name]])
                self._untold.popleft()
        except BlockingIOError:
            pass
        except ConnectionError:  # it has closed its end, or ended; what it sent before can still be read
            self._untold.clear()
        except OSError as error:  # too many descriptors under way: it will hear no end, and say so
            self._complain(f"what was kept could not be given back: {error.strerror}")
            self._disconnect()

    def _receive_one(self) -> bool:
        if self._socket is None:
            return False
        try:
            data, fds, flags, _ = socket.recv_fds(self._socket, _LONGEST, 2, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionResetError:  # said once, if it ended without reading all; its own packets come after that
            return True
        if not data and not fds:
            self._disconnect()
            return False
        packet = None if flags & socket.MSG_TRUNC else _PACKET.fullmatch(data)
        self._take(packet[1] if packet else b"", packet[2].decode() if packet else "", fds, flags)
        return True

    def _take(self, verb: bytes, name: str, fds: list[int], flags: int) -> None:
        if flags & socket.MSG_CTRUNC:
            self._complain(f"{name} is not kept: no more descriptors can be opened")
        elif verb == b"keep" and len(fds) == 1 and (name in self._kept or len(self._kept) < MOST):
            self._forget(name)
            self._kept[name] = fds.pop()
        elif verb == b"keep" and len(fds) == 1:
            self._complain(f"{name} is not kept: {MOST} descriptors are, and no more")
        elif verb == b"drop" and not fds:
            self._forget(name)
        else:
            self._complain("what it sent to be kept is malformed")
        _close(fds)

    def end_of_process(self) -> None:
        """The process has ended: take in its last packets."""
        if self._socket:
            # Whatever it has left behind cannot send any more; what lies in the queue can still be read.
            self._socket.shutdown(socket.SHUT_RD)
            while self._receive_one():
                pass
        self._disconnect()

    def close(self) -> None:
        """Keep nothing any more."""
        self._disconnect()
        _close(list(self._kept.values()))
        self._kept.clear()

    def _complain(self, text: str) -> None:
        if not self._complained:
            self._complained = True
            self._tell(text)

    def _forget(self, name: str) -> None:
        if name in self._kept:
            _close([self._kept.pop(name)])

    def _disconnect(self) -> None:
        if self._socket:
            self._socket.close()
            self._socket = None


def _close(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # an error of the file's; it is closed nevertheless
            os.close(fd)

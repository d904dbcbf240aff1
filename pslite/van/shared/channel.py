"""Hands descriptors of shared memory to other processes of this host, and maps theirs.

A datagram on a Unix socket carries one descriptor (SCM_RIGHTS, unix(7)). It lies in the receiver's queue from the
moment it is sent: a message that is sent afterwards, on whatever connection, never comes before it. The socket's
directory keeps other users out; what comes in is checked nevertheless.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from pslite.errors import BindError

from .arena import ALIGNMENT

MAX_SEGMENTS = 1024  # mapped from all peers together; each takes a descriptor
MAX_SEGMENT = 1 << 40  # bytes; mapping costs address space only

_OFFER, _WITHDRAW = 1, 2
_HEAD = struct.Struct("<4sHHQ")  # magic, version, kind, incarnation of the owner
_BODY = struct.Struct("<QQ")  # of an offer: segment, size
_NUMBER = struct.Struct("<Q")  # of a withdrawal: any number of segments
_MAGIC, _VERSION = b"PSSM", 1
_AT_ONCE = 256  # segments in one withdrawal
_LONGEST = _HEAD.size + _AT_ONCE * _NUMBER.size  # bytes of a datagram
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
_FD = struct.Struct("i")
# More than a peer may send: what does not fit the kernel closes, what does is closed here.
_ANCILLARY = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(8 * _FD.size)

log = logging.getLogger("pslite")


class _Refused(Exception):
    """A datagram is not what a peer of this version sends."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A peer's segment, mapped read-only. The mapping lives as long as a view of it."""

    memory: memoryview  # bytes
    words: memoryview  # the same as uint64


class Channel:
    """One socket for all peers, and what they offered. Not thread-safe: used under its van's lock.

    ``path``: where peers find it, in a directory that nobody else can enter; a stale file there is replaced. Raises
    BindError. ``incarnation``: of this process, which owns what it offers.
    """

    def __init__(self, path: str, incarnation: int) -> None:
        self._path = path
        self._incarnation = incarnation
        self.mapped: dict[tuple[int, int], Segment] = {}  # by incarnation of the owner, and its number there
        self.refused = 0  # datagrams
        self._order = threading.Lock()  # for its memory ordering only, see generation()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # the kernel says who sent a datagram
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            self._socket.bind(path)
        except OSError as error:
            self._socket.close()
            raise BindError(address=path, reason=error.strerror or str(error)) from error

    def fileno(self) -> int:
        """The descriptor of the socket, which is readable when ``receive`` has something to do."""
        return self._socket.fileno()

    def close(self) -> None:
        """Remove the socket and forget all segments; views stay valid."""
        self.mapped.clear()
        if self._socket.fileno() >= 0:
            self._socket.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    # -- to a peer ----------------------------------------------------------------------------------------------------

    def offer(self, peer_path: str, segment: int, fd: int, size: int) -> bool:
        """Give a peer the descriptor of a segment of ``size`` bytes.

        False if that is impossible now: its queue of some ten datagrams is full, or it has no socket. The caller then
        has to send the bytes themselves.
        """
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(fd))
        return self._send(peer_path, _OFFER, _BODY.pack(segment, size), [rights])

    def withdraw(self, peer_path: str, segments: Sequence[int]) -> bool:
        """Tell a peer that segments are given back.

        False if it did not hear all of it: it holds their memory until it is told again, or forgets this process.
        """
        parts = (segments[i : i + _AT_ONCE] for i in range(0, len(segments), _AT_ONCE))
        return all(self._send(peer_path, _WITHDRAW, b"".join(map(_NUMBER.pack, part)), []) for part in parts)

    def _send(self, peer_path: str, kind: int, body: bytes, ancillary: list[tuple[int, int, bytes]]) -> bool:
        head = _HEAD.pack(_MAGIC, _VERSION, kind, self._incarnation)
        try:
            self._socket.sendmsg([head, body], ancillary, socket.MSG_DONTWAIT, peer_path)
        except OSError as error:  # full, gone, no memory, too many descriptors in flight: all the same to the caller
            log.debug("nothing sent to %s: %s", peer_path, error)
            return False
        return True

    # -- from peers ---------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Take in all that has come; never blocks. What is no offer of a peer is counted, logged and dropped."""
        while True:
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    _LONGEST, _ANCILLARY, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            fds = _descriptors(ancillary)
            try:
                self._accept(data, ancillary, flags, fds)
            except (_Refused, OSError) as error:
                self.refused += 1
                log.debug("datagram refused: %s", error)
            finally:
                for fd in fds:
                    os.close(fd)

    def _accept(self, data: bytes, ancillary: list[tuple[int, int, bytes]], flags: int, fds: list[int]) -> None:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise _Refused("too long, or too many descriptors")
        if _sender(ancillary) != os.getuid():
            raise _Refused("from another user")
        if len(data) < _HEAD.size:
            raise _Refused("too short")
        magic, version, kind, incarnation = _HEAD.unpack_from(data)
        body = data[_HEAD.size :]
        if (magic, version) != (_MAGIC, _VERSION):
            raise _Refused("of another protocol")
        if kind == _OFFER and len(body) == _BODY.size and len(fds) == 1:
            number, size = _BODY.unpack(body)
            self._map(incarnation, number, fds[0], size)
        elif kind == _WITHDRAW and len(body) % _NUMBER.size == 0 and not fds:
            for (number,) in _NUMBER.iter_unpack(body):
                self.mapped.pop((incarnation, number), None)
        else:
            raise _Refused("neither an offer nor a withdrawal")

    def _map(self, incarnation: int, number: int, fd: int, size: int) -> None:
        if (incarnation, number) in self.mapped:
            return  # offered twice; numbers are never used again
        if len(self.mapped) >= MAX_SEGMENTS:
            raise _Refused(f"{MAX_SEGMENTS} segments are mapped already")
        # Without these seals its owner could make it shorter, and reading would end this process by SIGBUS.
        needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & needed != needed:
            raise _Refused("not sealed")
        if not 0 < size <= MAX_SEGMENT or size % ALIGNMENT or os.fstat(fd).st_size != size:
            raise _Refused(f"size {size}")
        memory = memoryview(mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
        self.mapped[incarnation, number] = Segment(memory, memory.cast("Q"))

    def view(self, incarnation: int, segment: int, offset: int, nbytes: int) -> memoryview | None:
        """Bytes of a peer's segment, read-only, without a copy; None if it has not offered them.

        The arguments may be anything that a message brought.
        """
        if not type(offset) is type(nbytes) is int or offset < 0 or nbytes < 0:
            return None
        found = self._find(incarnation, segment)
        if found is None or offset + nbytes > len(found.memory):
            return None
        return found.memory[offset : offset + nbytes]

    def has_block(self, incarnation: int, segment: int, header: int) -> bool:
        """Whether a block's header may be there. The arguments may be anything that a message brought."""
        if type(header) is not int or header < 0 or header % ALIGNMENT:
            return False
        found = self._find(incarnation, segment)
        return found is not None and header < len(found.memory)

    def generation(self, incarnation: int, segment: int, header: int) -> int | None:
        """The generation of the block with this header; None if there can be none.

        If it is, after copying, what the owner said when it had written the data, the copy is what the owner wrote.
        That it did not change meanwhile says nothing: the owner may have been writing all the time.
        """
        found = self._find(incarnation, segment) if self.has_block(incarnation, segment, header) else None
        if found is None:
            return None
        # Leaving a lock and entering it again are a fence: what was copied before was read before this word, and what
        # is copied after it is read after it.
        with self._order:
            pass
        with self._order:
            word: int = found.words[header // _NUMBER.size]
        with self._order:
            pass
        return word

    def forget(self, incarnation: int) -> None:
        """Drop the segments of a process that has ended; views stay valid."""
        for key in [key for key in self.mapped if key[0] == incarnation]:
            del self.mapped[key]

    def _find(self, incarnation: int, segment: int) -> Segment | None:
        if not type(incarnation) is type(segment) is int:
            return None
        found = self.mapped.get((incarnation, segment))
        if found is None:
            self.receive()
            found = self.mapped.get((incarnation, segment))
        return found


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """All descriptors that came along; they are this process's now."""
    fds: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            whole = len(data) - len(data) % _FD.size
            fds += (fd for (fd,) in _FD.iter_unpack(data[:whole]))
    return fds


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """The user id of the sender, by the kernel."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and len(data) == _CREDENTIALS.size:
            uid: int = _CREDENTIALS.unpack(data)[1]
            return uid
    return None

"""What a process has in shared memory, and which of its peers may read it there."""

from __future__ import annotations

import os
from collections.abc import Callable

from pslite.wire import Array, Lease, Link, Place

from .arena import Arena
from .channel import Channel

TIDY_EVERY = 1.0  # seconds between two looks whether there is memory to give back
MAX_INCOMING = 4096  # links to us whose peers are remembered: who connects says by which, and may do so again and again


def path_in(directory: str, incarnation: str) -> str:
    """Where a process of a job finds another one's channel."""
    return f"{directory}/{incarnation}.shm"


class _Peer:
    """A process that a link leads to. Changed under the postoffice's lock only."""

    def __init__(self, path: str) -> None:
        self.path = path
        # Who shares no memory, or sees another file system, has no socket there. It was made before the link was.
        self.shares = os.path.exists(path)
        self.offered: set[int] = set()  # our segments that it has
        self.unsaid: list[int] = []  # those given back of which it has not heard


class Exchange:
    """Places in memory instead of bytes in messages, for peers that have the job's directory in common.

    Used under the postoffice's lock only, but for ``memory``. ``incarnation``: 16 hexadecimal digits.
    """

    def __init__(self, directory: str, incarnation: str, clock: Callable[[], float]) -> None:
        self.memory = Arena(clock)
        self.kept: Arena | None = None  # more of our memory, whose segments have other numbers; never replaced
        self._clock = clock
        self._look_at = 0.0  # when ``tidy`` is due
        self._directory = directory
        self._channel = Channel(path_in(directory, incarnation), int(incarnation, 16))
        self._peers: dict[Link, _Peer] = {}  # the oldest first
        self._incoming = 0  # of them

    def fileno(self) -> int:
        """Readable when ``receive`` has something to do."""
        return self._channel.fileno()

    def meet(self, link: Link, incarnation: str) -> bool:
        """A connection to this process was made: whether it shares memory with us."""
        self.part(link)
        peer = self._peers[link] = _Peer(path_in(self._directory, incarnation))
        if isinstance(link, bytes):
            self._incoming += 1
            if self._incoming > MAX_INCOMING:
                self.part(self._least())
        return peer.shares

    def _least(self) -> Link:
        """The incoming link whose loss costs least: its peer has nothing of ours, and else is offered it again."""
        return min((link for link in self._peers if isinstance(link, bytes)), key=lambda link: self._peers[link].shares)

    def part(self, link: Link) -> None:
        """The connection is given up."""
        if self._peers.pop(link, None) is not None and isinstance(link, bytes):
            self._incoming -= 1

    def shares(self, link: Link) -> bool:
        """Whether the peer behind a link reads our memory. An incoming link names its peer's incarnation."""
        peer = self._peers.get(link)
        if peer is not None:
            return peer.shares
        return isinstance(link, bytes) and self.meet(link, link.decode(errors="replace").rpartition("/")[2])

    def has(self, array: Array) -> bool:
        """Whether an array is in our memory."""
        return self.memory.has(array) or (self.kept is not None and self.kept.has(array))

    def place(self, link: Link, array: Array) -> Place | None:
        """Where the peer, which ``shares``, finds an array; None if its bytes must be sent."""
        memory, location = self.memory, self.memory.locate(array)
        if location is None and self.kept is not None:
            memory, location = self.kept, self.kept.locate(array)
        if location is None:
            return None
        peer, segment = self._peers[link], location.segment
        if segment not in peer.offered:
            if not self._channel.offer(peer.path, segment, memory.fd(segment), memory.size(segment)):
                return None
            peer.offered.add(segment)
        return location

    def find(self, incarnation: int, place: Place, nbytes: int) -> tuple[memoryview, Lease] | None:
        """The bytes of a peer's array, and whether they still are those of this place; None if there is none such."""
        segment, offset, header, generation = place
        view = self._channel.view(incarnation, segment, offset, nbytes)
        if view is None or not self._channel.has_block(incarnation, segment, header):
            return None
        return view, lambda: self._channel.generation(incarnation, segment, header) == generation

    def forget(self, incarnation: int) -> None:
        """A process has ended: drop its memory; views stay valid."""
        self._channel.forget(incarnation)
        path = path_in(self._directory, f"{incarnation:016x}")
        for link in [link for link, peer in self._peers.items() if peer.path == path]:
            self.part(link)

    def receive(self) -> None:
        """Take in what peers have offered and withdrawn."""
        self._channel.receive()

    def tidy(self) -> None:
        """Give back memory that has not been needed for a while; who did not hear of it before is told again."""
        if (now := self._clock()) < self._look_at:
            return
        self._look_at = now + TIDY_EVERY
        gone = self.memory.tidy() + ([] if self.kept is None else self.kept.tidy())
        for peer in self._peers.values():
            peer.unsaid += [segment for segment in gone if segment in peer.offered]
            if peer.unsaid and self._channel.withdraw(peer.path, peer.unsaid):
                peer.offered.difference_update(peer.unsaid)
                peer.unsaid = []

    def close(self) -> None:
        """Give everything back; arrays that are in use stay valid."""
        self._channel.close()
        self.memory.close()
        if self.kept is not None:
            self.kept.close()

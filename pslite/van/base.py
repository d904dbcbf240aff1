"""What a van is: it moves messages between processes, and knows nothing about what they mean."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from pslite.flow import cost
from pslite.memory import PLAIN, KeptMemory, Memory
from pslite.wire import Link, Message


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The connection we made to a node is established."""

    link: Link


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection we made to a node broke; the van keeps trying to restore it."""

    link: Link


@dataclass(slots=True)  # frozen would cost more than all else of it
class Received:
    """A message came in. ``link`` is what a reply is sent to."""

    link: Link
    message: Message


@dataclass(frozen=True, slots=True)
class Rejected:
    """Something came in that is not a message of this protocol, or not of the peer that the connection is to.

    ``strike``: whether it speaks against the peer; not so if only memory that it shares with us could not be found.
    """

    link: Link
    reason: str
    strike: bool = True


@dataclass(frozen=True, slots=True)
class LinkRefused:
    """The node that we connected to does not let us in, or is not who it should be: trying again is of no use."""

    link: Link
    reason: str


VanEvent = LinkUp | LinkDown | LinkRefused | Received | Rejected


class Van(abc.ABC):
    """Sends and receives messages over links.

    Order: messages sent on one link arrive in order while its connection lasts. Delivery: a message may be lost when a
    connection breaks, never doubled, never changed. Threads: every method but ``wait`` and ``wake`` is called under
    the postoffice's lock; ``wait`` is called by one thread at a time.
    """

    memory: Memory = PLAIN  # whose arrays cost least to send

    def transport(self, node: int) -> str:
        """How messages to a node that we connected to travel, as users call it."""
        return "in process"

    def weigh(self, link: Link, message: Message) -> int:
        """The bytes of a message's arrays that travel on a link; 0 if they are few."""
        return cost(message)

    def has_room(self, link: Link, nbytes: int) -> bool:
        """Whether this process has memory for another message with so many bytes on a link."""
        return True

    def lend_from(self, memory: KeptMemory) -> None:  # noqa: B027 - most vans carry all bytes
        """Have peers read the arrays of this memory, too, where they are."""

    @abc.abstractmethod
    def bind(self, address: str, fd: int | None = None) -> str:
        """Accept connections at an address, or on a listening socket that is open already.

        Returns the address to connect to (a port 0 replaced by the real one); raises BindError.
        """

    @abc.abstractmethod
    def connect(self, node: int, address: str) -> Link:
        """Make a connection to a node; returns at once, LinkUp follows. A second call replaces the first."""

    @abc.abstractmethod
    def disconnect(self, node: int) -> None:
        """Drop the connection to a node and what is queued for it."""

    def forget(self, incarnation: int) -> None:  # noqa: B027 - most vans keep nothing of a peer
        """A process has died: what it shared is not needed any more."""

    def refuse(self, link: Link) -> None:  # noqa: B027 - a van without strangers has nobody to refuse
        """Take nothing more from an incoming link."""

    @abc.abstractmethod
    def send(self, link: Link, message: Message) -> bool:
        """Queue a message; never blocks. False if the peer of an incoming link is unreachable."""

    @abc.abstractmethod
    def receive(self) -> VanEvent | None:
        """The next event, or None; never blocks."""

    @abc.abstractmethod
    def wait(self, timeout: float | None) -> bool:
        """Block until ``receive`` may have something, ``wake`` is called, or the time (seconds) is over: then False."""

    @abc.abstractmethod
    def wake(self) -> None:
        """End the current or next ``wait`` early; may be called from any thread."""

    @abc.abstractmethod
    def close(self, linger: float) -> None:
        """Close everything; what is queued still has ``linger`` seconds to leave."""

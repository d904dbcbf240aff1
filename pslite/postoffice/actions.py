"""What a core may ask its shell to do, besides ``Send``."""

from __future__ import annotations

from dataclasses import dataclass

from pslite.delivery import Send
from pslite.errors import PeerError
from pslite.wire import Link, Message


@dataclass(slots=True)
class Connect:
    """Make a connection to a node at one of these addresses."""

    node: int
    addresses: list[str]


@dataclass(slots=True)
class Disconnect:
    """End the connection that was made to a node; what is queued for it is dropped."""

    node: int


@dataclass(slots=True)
class Deliver:
    """Hand a request to the application."""

    message: Message


@dataclass(slots=True)
class PeerEnded:
    """Tell the application that a node finished, failed or was lost; ``error`` says which."""

    node: int
    error: PeerError


@dataclass(slots=True)
class PeerAway:
    """Tell the application that a node died, and that its successor is awaited."""

    node: int
    error: PeerError


@dataclass(slots=True)
class PeerBack:
    """Tell the application that a node is there again, as another process."""

    node: int


@dataclass(slots=True)
class Forget:
    """Nothing will come any more from the process with this incarnation."""

    incarnation: int


@dataclass(slots=True)
class Log:
    """Write a line to the log."""

    level: str
    text: str


@dataclass(slots=True)
class Refuse:
    """Take nothing more from this link."""

    link: Link


Action = Send | Connect | Disconnect | Deliver | PeerEnded | PeerAway | PeerBack | Forget | Refuse | Log

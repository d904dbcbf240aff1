"""The roster: what every process knows of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pslite import ids
from pslite.errors import PeerError, PeerLost, PSError, WorkerFinished

LOST_AFTER = 0.75  # seconds without a connection: ZeroMQ reconnects within 0.1 if it can, within 0.6 after a cut
LATE = 0.3  # seconds: a judge that is later than this was held up itself


@dataclass(slots=True)
class Peer:
    """A line of the roster."""

    node: int
    incarnation: int
    addresses: list[str]
    host: str
    pid: int
    restarts: int = 0  # larger with each process that has this place
    ended: PeerError | None = None
    away: bool = False  # it died, and its successor is awaited

    @property
    def state(self) -> str:
        """For users: up, away, finished or lost."""
        if self.ended is not None:
            return "finished" if isinstance(self.ended, WorkerFinished) else "lost"
        return "away" if self.away else "up"

    @property
    def name(self) -> str:
        return ids.name_of(self.node) + (f" (pid {self.pid} on {self.host})" if self.pid else "")

    def entry(self) -> list[Any]:
        """What of this travels; the fields up to ``restarts`` in their order."""
        return [self.node, self.incarnation, self.addresses, self.host, self.pid, self.restarts]


class Outage:
    """A connection that broke: the peer is lost if it does not come back in time."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.until = since + LOST_AFTER
        self._pardoned = False

    def is_final(self, now: float) -> bool:
        """Whether the time is over. A judge that was held up does not know who else was, and waits once more."""
        if now < self.until:
            return False
        if self._pardoned or now - self.until < LATE:
            return True
        self._pardoned, self.until = True, now + LOST_AFTER
        return False


def peer_error(node: int, wire: Any) -> PeerError:
    """Why a node ended, as another process tells it."""
    error = PSError.from_wire(wire)
    return error if isinstance(error, PeerError) else PeerLost(node=str(node), reason=str(error))

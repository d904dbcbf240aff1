"""The roster: what every process knows of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pslite import ids
from pslite.errors import PeerError, PeerLost, PSError, WorkerFinished


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


def peer_error(node: int, wire: Any) -> PeerError:
    """Why a node ended, as another process tells it."""
    error = PSError.from_wire(wire)
    return error if isinstance(error, PeerError) else PeerLost(node=str(node), reason=str(error))

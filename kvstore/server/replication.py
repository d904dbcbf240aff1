"""A server's shell for replicas: it tells its backup every change, and has a replica of the server before it.

Who asks is answered when the backup has what the answer shows. The store goes on meanwhile, and so do other answers.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable

from kvstore.arrays import Array
from kvstore.commands import REPLICA_APP
from pslite import PeerAway, PeerBack, Postoffice, ReplicaLink, name_of, rank_of
from pslite.errors import PeerError, ProtocolError, PSError, WorkerFinished
from pslite.failpoints import failpoint

from .replica import Contents, Replica
from .replicating import Replicated
from .store import Store

log = logging.getLogger("kvstore.server")

Adopt = Callable[[int, Contents], None]


class Replication:
    """Used on the postoffice's leading thread only."""

    def __init__(self, office: Postoffice, store: Store, adopt: Adopt) -> None:
        self._office, self._store, self._adopt = office, store, adopt
        self._link = ReplicaLink(REPLICA_APP, office, self._take, self._on_told)
        self._replica: Replica | None = Replica()  # of the server before this one; None from its end on
        self._log: Replicated | None = Replicated(office.memory, self._tell)  # None once nobody has a replica of us
        self._acknowledged = 0  # changes that the backup has
        self._held: list[tuple[int, int, Callable[[], None]]] = []  # a heap of answers, by the change that they need
        self._serial = itertools.count()
        office.on_peer_moved(self._on_peer_moved)
        office.on_peer_ended(self._on_peer_ended)
        store.tell(self._log)

    # -- what the backup has ------------------------------------------------------------------------------------------

    def when_safe(self, change: int, answer: Callable[[], None]) -> None:
        """Answer once the backup has this change, and all before it."""
        if self._log is None or change <= self._acknowledged:
            answer()
        else:
            heapq.heappush(self._held, (change, next(self._serial), answer))

    def _tell(self, change: int, arrays: list[Array]) -> None:
        failpoint("before_replicate")
        self._link.tell(change, arrays)

    def _on_told(self, change: int, error: PSError | None) -> None:
        if isinstance(error, PeerError):
            self._go_on_alone(error)
        if error is not None:  # refused: the backup may have this server's place, and what is held must not be answered
            return
        failpoint("after_replicate")
        self._acknowledged = max(self._acknowledged, change)
        while self._held and self._held[0][0] <= self._acknowledged:
            heapq.heappop(self._held)[-1]()

    def _go_on_alone(self, error: PSError) -> None:
        """Nobody will have a replica of this server any more."""
        if self._log is None:
            return
        self._log = None
        self._store.stop_telling()
        if not isinstance(error, WorkerFinished):
            log.warning("%s goes on without a replica: %s", self._office.name, error)
        while self._held:
            heapq.heappop(self._held)[-1]()

    # -- what we have of another one ----------------------------------------------------------------------------------

    def _take(self, change: list[Array]) -> None:
        if self._replica is None:
            raise ProtocolError(f"{self._office.name} has no replica of {name_of(self._link.primary)} any more")
        try:
            self._replica.take(change)
        except Exception as error:  # what we have is none of its states, and nobody could go on with that
            self._replica = None
            self._office.leave("failed", f"its replica of {name_of(self._link.primary)} is damaged: {error!r:.200}")
            raise

    def _on_peer_moved(self, event: PeerAway | PeerBack) -> None:
        if isinstance(event, PeerBack):
            return
        if event.node == self._link.primary and self._replica is not None:
            replica, self._replica = self._replica, None
            log.warning("%s takes the place of %s: %s", self._office.name, name_of(event.node), event.error)
            self._adopt(rank_of(event.node), replica)
        if event.node == self._link.backup:
            self._go_on_alone(event.error)

    def _on_peer_ended(self, node: int, error: PeerError) -> None:
        if node == self._link.primary:
            self._replica = None
        if node == self._link.backup:
            self._go_on_alone(error)

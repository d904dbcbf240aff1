"""Who takes part in a worker's steps. In a job that workers may join, server 0 knows it (``server/members.py``)."""

from __future__ import annotations

from collections.abc import Iterable

from pslite import WORKER_GROUP, Postoffice, rank_of, worker_id
from pslite.errors import WorkerDropped


class Team:
    """The workers of one step after the other. Its store's lock guards it.

    ``asks``: whether they are those that server 0 names; else newcomers count as soon as this process knows them.
    """

    def __init__(self, office: Postoffice, asks: bool) -> None:
        self._office = office
        self.asks = asks
        self.came_later = office.rank >= office.num_workers  # this worker, to a running job
        self.late: dict[int, int] = {}  # by rank of who came later and is due by now: its first step
        self.live: list[int] = []
        self.begin(())

    def begin(self, late: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """A step begins, in which these are due that came later; returns those who were not before."""
        new = [(rank, first) for rank, first in late if rank not in self.late]
        self.late.update(new)
        if self.asks or not self._office.elastic:
            ranks = [*range(self._office.num_workers), *sorted(self.late)]
        else:
            ranks = [rank_of(node) for node in self._office.node_ids(WORKER_GROUP)]
        self.live = [rank for rank in ranks if not self._is_dropped(rank)]
        return new

    @property
    def leads(self) -> bool:
        """Whether all workers of lower ranks are lost for good, as far as this process knows."""
        ranks = [rank_of(node) for node in self._office.node_ids(WORKER_GROUP)]
        return all(self._is_dropped(rank) for rank in ranks if rank < self._office.rank)

    def _is_dropped(self, rank: int) -> bool:
        return isinstance(self._office.ended(worker_id(rank)), WorkerDropped)

    def at_barrier(self, step: int) -> list[int] | None:
        """Those who came later and are members of a barrier in this step; None if that is the scheduler's to say.

        In its first step a newcomer is none: what it does before its loop the others did before theirs.
        """
        return sorted(rank for rank, first in self.late.items() if first < step) if self.asks else None

    def is_new(self, step: int) -> bool:
        """Whether this worker came for this step."""
        return self.late.get(self._office.rank) == step

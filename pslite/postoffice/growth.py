"""Workers that join a running job: how many there may be, and which ranks they get. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pslite.errors import WorkerFinished, WorkerLeft

if TYPE_CHECKING:
    from .membership import Member


MAX_RANK = 2**16


class Growth:
    """What newcomers may have. Ranks below ``first`` are of the workers that the job begins with."""

    def __init__(self, first: int, most: int) -> None:
        self.first = first
        self.most = most  # workers at a time; 0: nobody may come later
        self.early: list[Member] = []  # newcomers that came before the job had begun

    def is_newcomer(self, role: str, wish: int | None, complete: bool, present: int) -> bool:
        """Whether a process wants to join beside the workers that the job begins with."""
        if role != "worker" or not self.most:
            return False
        return complete or present >= self.first or (wish is not None and wish >= self.first)

    def refusal(self, new: Member, workers: Sequence[Member]) -> str:
        """Why a newcomer cannot join these workers; "" if it can."""
        if new.wish is not None and new.wish >= MAX_RANK:
            return f"ranks are below {MAX_RANK}"
        other = next((m for m in workers if m.rank == new.wish), None)
        if other is not None:
            return f"{other.name} has or had that rank, and no rank is given twice: give it another DMLC_RANK, or none"
        finished = next((m for m in workers if type(m.error) is WorkerFinished), None)
        if finished is not None or all(isinstance(m.error, WorkerLeft) for m in workers):
            return f"the job is ending: {finished.name if finished else 'every worker'} has finished"
        if sum(m.expected for m in workers) >= self.most:
            return f"the job has {self.most} workers, as many as --elastic allows (PSLITE_MAX_WORKERS)"
        return ""

    def rank_for(self, new: Member, workers: Iterable[Member], started: Iterable[int]) -> int:
        """The rank that it wishes for, or the next one; ``started``: ranks of the launcher's workers."""
        if new.wish is not None:
            return new.wish
        return max([self.first - 1, *(m.rank for m in workers), *started]) + 1

"""The scheduler, with the real membership, barriers and recovery; its successor knows nothing but what members tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pslite import ids
from pslite.postoffice.membership import Membership, Policy
from pslite.postoffice.recovery import Recovery
from pslite.postoffice.scheduler import Scheduler

from .process import Process

if TYPE_CHECKING:
    from .job import Job

JOIN_WITHIN = 60.0  # seconds


class Node(Process):
    """One of them; they listen at the same address."""

    def __init__(self, job: Job, role: str = "scheduler", rank: int = 0, restarts: int = 0) -> None:
        super().__init__(job, role, rank, restarts)
        plan, now = job.plan, self.world.now
        policy = Policy("wait", "wait", 6.0 if plan.lost >= 0 else None)
        self.membership = Membership(plan.workers, plan.servers, "job", JOIN_WITHIN, now, policy)
        self.core.scheduler = Scheduler(self.membership, Recovery("job", self.membership.wanted, now, restarts > 0))
        self.core.delivery.node, self.core.delivery.job = ids.SCHEDULER, "job"
        job.scheduler = self
        self.network.bind(self)

    def begin(self) -> None:
        self.poke()

    def progress(self) -> None:
        if self.membership.complete:
            self.job.oracle.on_epoch(self, self.membership.epoch)
        for role, rank, pid in self.core.given_up():
            if role == "worker" and self.membership.policy.workers == "shrink":
                self.job.oracle.dropped.add(rank)
            self.job.launcher.on_given_up(role, rank, pid)

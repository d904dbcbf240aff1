"""What must be true. Worker w adds 1 to element w of each key, and k to element W + w with its k-th push."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pslite import ids
from pslite.postoffice.membership import State
from pslite.wire import Flag, Message

from .world import Violation

if TYPE_CHECKING:
    from .job import Job
    from .process import Process

Lanes = list[int]


class Oracle:
    """Knows what was attempted and acknowledged, by key and rank, and every value that was read."""

    def __init__(self, job: Job) -> None:
        self._job, self._workers = job, job.plan.workers
        self.attempted = {key: [0] * self._workers for key in job.keys}
        self.acked = {key: [0] * self._workers for key in job.keys}
        self._values: dict[tuple[int, int], Lanes] = {}  # in dist_sync: by key and version
        self._epochs: dict[int, int] = {}  # by incarnation: as each process knows it
        self.dropped: set[int] = set()  # ranks without which the others go on

    # -- messages -----------------------------------------------------------------------------------------------------

    def on_delivery(self, receiver: Process, message: Message, again: bool) -> None:
        """A request reaches an application."""
        if again and not message.flags & Flag.REPLAY:
            raise Violation(f"{receiver.name} was given request {message.seq} of {message.sender} twice")
        self.on_accepted(receiver, message)

    def on_accepted(self, receiver: Process, message: Message) -> None:
        """A process took a message for one of a member."""
        if not self._job.launcher.restarts:
            return
        own = self._job.scheduler.membership.find(receiver.node)
        if own is not None and (own.incarnation != receiver.incarnation or own.state in (State.AWAY, State.LOST)):
            return  # it was given up itself: it hears of no successor, and nobody listens to it
        member = self._job.scheduler.membership.find(message.sender)
        if member is not None and member.state == State.UP and member.incarnation != message.incarnation:
            raise Violation(f"{receiver.name} accepted a message of a replaced {ids.name_of(message.sender)}")

    def on_epoch(self, process: Process, epoch: int) -> None:
        """What a process knows of the table of members may have changed."""
        before = self._epochs.get(process.incarnation, 0)
        if epoch < before:
            raise Violation(f"for {process.name} the epoch went back from {before} to {epoch}")
        self._epochs[process.incarnation] = epoch

    # -- values -------------------------------------------------------------------------------------------------------

    def least(self, key: int, rank: int, own: int) -> Lanes:
        """What a pull that begins now must see of each lane, by a worker that has sent ``own`` pushes before."""
        if self._job.plan.lost >= 0 and self._job.plan.sync and self._job.launcher.restarts:
            return [0] * self._workers  # as in ``on_end``
        lanes = list(self.acked[key])
        if self._job.plan.lost < 0:  # else they may have failed
            lanes[rank] = max(lanes[rank], own)
        return lanes

    def on_read(self, who: str, key: int, version: int, value: list[float], least: Lanes) -> Lanes:
        """A worker has read a value; returns the lanes."""
        counts = [int(n) for n in value[: self._workers]]
        where = f"{who} read {value} as version {version} of key {key}"
        for rank, count in enumerate(counts):
            self._check_lane(where, value, rank, least[rank], self.attempted[key][rank])
            if self._job.plan.sync and count != version and (count > version or rank not in self.dropped):
                raise Violation(f"{where}: in that round each lane is {version}")
        if self._values.setdefault((key, version), value) != value:
            raise Violation(f"{where}: others read {self._values[key, version]}")
        return counts

    def _check_lane(self, where: str, value: list[float], rank: int, least: int, most: int) -> None:
        count = int(value[rank])
        if count < least:
            raise Violation(f"{where}: lost pushes of worker {rank}, at least {least} are due")
        if count > most:
            raise Violation(f"{where}: worker {rank} has made {most} pushes, some were applied twice")
        if value[self._workers + rank] != count * (count + 1) / 2:
            raise Violation(f"{where}: a push of worker {rank} was applied twice, and another one is lost")

    def on_saved(self, where: str, key: int, value: list[float], version: int) -> None:
        """A checkpoint has this."""
        for rank in range(self._workers):
            self._check_lane(f"{where} has {value} of key {key}", value, rank, 0, self.attempted[key][rank])
            if self._job.plan.sync and rank not in self.dropped and value[rank] != version:
                raise Violation(f"{where} has {value} of key {key} as version {version}")

    def on_end(self, key: int, value: list[float]) -> None:
        """The last value of a key, where it is kept."""
        plan = self._job.plan
        for rank in range(self._workers):
            attempted, acked = self.attempted[key][rank], self.acked[key][rank]
            if plan.lost >= 0 and plan.sync and self._job.launcher.restarts:
                acked = 0  # a push that is repeated after its round has failed is answered, without its error
            self._check_lane(f"key {key} is {value} in the end", value, rank, acked, attempted)
            if plan.lost < 0 and rank not in self.dropped and not acked == attempted == plan.total:
                raise Violation(f"worker {rank} has {acked} of {plan.total} pushes of key {key} acknowledged")

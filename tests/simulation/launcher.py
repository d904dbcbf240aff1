"""The launcher: starts processes, starts those again that died, and tells the scheduler."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pslite.errors import PSError
from pslite.postoffice.membership import Hint, State

from .process import Process
from .scheduler import Node
from .server import Server
from .worker import Worker
from .world import Violation

if TYPE_CHECKING:
    from .job import Job

KILLED_WITHIN = 0.3  # seconds that the launcher takes to end a process that was given up
KINDS: dict[str, type[Process]] = {"scheduler": Node, "server": Server, "worker": Worker}


class Launcher:
    """Starts processes, and starts those again that died."""

    def __init__(self, job: Job) -> None:
        self._job, self._world = job, job.world
        self.processes: dict[tuple[str, int], Process] = {}  # the last ones
        self.restarts = 0
        self._told: set[int] = set()  # pids that were given up
        self._succeeded: set[int] = set()  # pids whose successors run, or will

    def start(self, role: str, rank: int, restarts: int = 0) -> None:
        """Start a process, and let the scheduler know."""
        process = self.processes[role, rank] = KINDS[role](self._job, role, rank, restarts)
        self._world.note(process.name, f"starts ({process.incarnation & 0xFFFF:04x})")
        process.begin()
        if restarts:
            self.restarts += 1
            self._world.after(self._world.rng.uniform(0, 0.2), self._tell)
            self._world.after(1.0, self._tell)

    def _tell(self) -> None:
        hints = [Hint(p.role, p.rank, p.pid, self._exit(p), p.restarts) for p in self.processes.values()]
        scheduler = self._job.scheduler
        if scheduler.alive:
            scheduler.do(lambda: scheduler.core.on_hints(self._world.now, hints))

    def _exit(self, process: Process) -> int | None:
        if process.alive or process.status is not None:
            return process.status
        return None if self._returns(process) else -9

    def _returns(self, process: Process) -> bool:
        """Whether another one takes its place if it is killed."""
        plan = self._job.plan
        return process.role != "worker" or (plan.asked == "wait" and process.rank != plan.lost)

    def kill(self, process: Process) -> None:
        """A process dies by a signal; its successor starts a while later."""
        if not process.alive:
            return
        process.alive = False
        process.die()
        self._job.network.on_death(process)
        if self.processes[process.role, process.rank] is process:
            if self._returns(process):
                self._succeed(process)
            elif self._world.rng.random() < 0.5:
                self._world.after(0.5, self._tell)

    def _succeed(self, process: Process) -> None:
        if process.pid in self._succeeded:
            return  # a zombie that dies before its successor starts has no other one
        self._succeeded.add(process.pid)
        delay = self._world.rng.choice((0.05, 0.3, 1.0, 2.5))
        self._world.after(delay, partial(self.start, process.role, process.rank, process.restarts + 1))

    def end(self, process: Process, status: int = 0) -> None:
        """A process has done its part and exits."""
        if process.alive:
            process.alive, process.status = False, status
            process.die()
            self._job.network.on_death(process)
            self._world.after(self._world.rng.uniform(0, 0.2), self._tell)

    def give_up(self, process: Process, error: PSError) -> None:
        """A process cannot go on. Nobody but one that was taken for dead, or lost the scheduler, may come to that."""
        self._world.note(process.name, f"gives up: {error}")
        if not self._is_out(process):
            if process.core.fatal is None and self._job.plan.lost < 0:
                raise Violation(f"{process.name} was answered {error!r}")
            if process.core.fatal is not None and getattr(error, "node", "") != "scheduler":
                raise Violation(f"{process.name} ended with {error!r}")
        self.kill(process)

    def _is_out(self, process: Process) -> bool:
        """Whether the scheduler does not take this process for a member, or knows none yet."""
        membership = self._job.scheduler.membership
        member = membership.find(process.node)
        if member is None:
            return not membership.complete
        if member.state == State.FAILED and process.leaving:
            return True  # it said so, and the scheduler died before it answered
        return member.incarnation != process.incarnation or member.state in (State.AWAY, State.LOST)

    def on_given_up(self, role: str, rank: int, pid: int) -> None:
        """The scheduler takes a process for dead, which may only be stopped or cut off."""
        process = self.processes[role, rank]
        if pid != process.pid or pid in self._told or not process.alive:
            return
        self._told.add(pid)
        if not process.excused and process.place not in self._job.network.cut_off:
            raise Violation(f"{process.name} is taken for dead, and nothing was done to it")
        zombie = role == "worker" and self._job.plan.zombies and self._returns(process)
        end = partial(self._replace if zombie else self.kill, process)
        self._world.after(self._world.rng.uniform(0, KILLED_WITHIN), end)

    def _replace(self, process: Process) -> None:
        """Start a successor although the process may live: its host cannot be reached."""
        if process.alive and self.processes[process.role, process.rank] is process:
            self._world.note(process.name, "is a zombie now")
            self._succeed(process)

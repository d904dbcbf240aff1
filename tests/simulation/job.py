"""A job under a plan: its processes, the launcher that starts them again, and the faults."""

from __future__ import annotations

import contextlib
import itertools
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import pslite.delivery
import pslite.flow
from pslite import ids
from pslite.errors import PSError
from pslite.postoffice.membership import Hint, Membership, Policy, State
from pslite.postoffice.scheduler import Scheduler

from .network import Connection, Network
from .oracle import Oracle
from .plan import Fault, Plan
from .process import Process
from .server import Kept, Server
from .worker import Worker
from .world import Violation, World

LIMIT = 400.0  # seconds within which a job must have ended
KILLED_WITHIN = 0.3  # seconds that the launcher takes to end a process that was given up


@dataclass(frozen=True)
class Result:
    """How a schedule went; ``violation`` is empty if all promises were kept."""

    seed: int
    events: int
    seconds: float  # of virtual time
    digest: int
    restarts: int
    violation: str = ""
    story: tuple[str, ...] = ()


class Node(Process):
    """The scheduler."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, "scheduler", 0)
        plan = job.plan
        policy = Policy("wait", "wait", 6.0 if plan.lost >= 0 else None)
        self.membership = Membership(plan.workers, plan.servers, "job", 60.0, 0.0, policy)
        self.core.scheduler = Scheduler(self.membership)
        self.core.delivery.node, self.core.delivery.job = ids.SCHEDULER, "job"
        self.network.bind(self)

    def begin(self) -> None:
        self.poke()

    def progress(self) -> None:
        self.job.oracle.on_epoch(self.membership.epoch)
        for role, rank, pid in self.core.given_up():
            self.job.launcher.on_given_up(role, rank, pid)


class Launcher:
    """Starts processes, and starts those again that died."""

    def __init__(self, job: Job) -> None:
        self._job, self._world = job, job.world
        self.processes: dict[tuple[str, int], Process] = {}  # the last ones
        self.restarts = 0
        self._told: set[int] = set()  # pids that were given up

    def start(self, role: str, rank: int, restarts: int = 0) -> None:
        """Start a process, and let the scheduler know."""
        kind = Server if role == "server" else Worker
        process = self.processes[role, rank] = kind(self._job, role, rank, restarts)
        self._world.note(process.name, f"starts ({process.incarnation & 0xFFFF:04x})")
        process.begin()
        if restarts:
            self.restarts += 1
            self._world.after(self._world.rng.uniform(0, 0.2), self._tell)
            self._world.after(1.0, self._tell)

    def _tell(self) -> None:
        hints = [Hint(p.role, p.rank, p.pid, None if self._returns(p) else -9, p.restarts)
                 for p in self.processes.values()]  # fmt: skip
        scheduler = self._job.scheduler
        scheduler.do(scheduler.core.on_hints(self._world.now, hints))

    def _returns(self, process: Process) -> bool:
        return process.alive or process.leaving or (process.role, process.rank) != ("worker", self._job.plan.lost)

    def kill(self, process: Process) -> None:
        """A process dies by a signal; its successor starts a while later."""
        if not process.alive:
            return
        process.alive = False
        self._job.network.on_death(process)
        if self.processes[process.role, process.rank] is process:
            if self._returns(process):
                self._succeed(process)
            elif self._world.rng.random() < 0.5:
                self._world.after(0.5, self._tell)

    def _succeed(self, process: Process) -> None:
        delay = self._world.rng.choice((0.05, 0.3, 1.0, 2.5))
        self._world.after(delay, partial(self.start, process.role, process.rank, process.restarts + 1))

    def end(self, process: Process) -> None:
        """A process has done its part and exits."""
        if process.alive:
            process.alive = False
            self._job.network.on_death(process)

    def give_up(self, process: Process, error: PSError) -> None:
        """A process cannot go on. Nobody but one that was taken for dead, or lost the scheduler, may come to that."""
        self._world.note(process.name, f"gives up: {error}")
        member = self._job.membership.find(process.node)
        replaced = member is None or member.incarnation != process.incarnation or member.state == State.AWAY
        if not replaced and process.core.fatal is None and self._job.plan.lost < 0:
            raise Violation(f"{process.name} was answered {error!r}")
        if process.core.fatal is not None and not replaced and getattr(error, "node", "") != "scheduler":
            raise Violation(f"{process.name} ended with {error!r}")
        self.kill(process)

    def on_given_up(self, role: str, rank: int, pid: int) -> None:
        """The scheduler takes a process for dead, which may only be stopped or cut off."""
        process = self.processes[role, rank]
        if pid != process.pid or pid in self._told or not process.alive:
            return
        self._told.add(pid)
        zombie = role == "worker" and self._job.plan.zombies and self._returns(process)
        end = partial(self._replace if zombie else self.kill, process)
        self._world.after(self._world.rng.uniform(0, KILLED_WITHIN), end)

    def _replace(self, process: Process) -> None:
        """Start a successor although the process may live: its host cannot be reached."""
        if process.alive and self.processes[process.role, process.rank] is process:
            self._world.note(process.name, "is a zombie now")
            self._succeed(process)


class Job:
    """One schedule."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.world = World(plan.seed)
        self._pids = itertools.count(100)
        self.keys = [key for server in range(plan.servers) for key in self.keys_of(server)]
        self.kept: list[dict[int, Kept]] = [{} for _ in range(plan.servers)]
        self.network = Network(self)
        self.oracle = Oracle(self)
        self.launcher = Launcher(self)
        self.scheduler = Node(self)
        self.membership = self.scheduler.membership
        self._armed = False

    def next_pid(self) -> int:
        return next(self._pids)

    def keys_of(self, server: int) -> list[int]:
        """The keys of a server, on the wire."""
        return [100 * server + i for i in range(self.plan.keys)]

    def key_named(self, name: str) -> int:
        return int(name.removeprefix("key"))

    # -- running ------------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Run the schedule to its end, or to a promise that is broken."""
        world, violation = self.world, ""
        with self._surroundings():
            try:
                self._begin()
                if not world.run(self._done, LIMIT):
                    raise Violation(f"it does not end: {self._waiting()}")
                self._check_end()
            except Exception as error:
                kind = "" if isinstance(error, Violation) else f"{type(error).__name__}: "
                violation = f"{kind}{error}"
                if kind:
                    world.note("", "".join(traceback.format_exception(error)))
        story = tuple(world.story()) if violation else ()
        return Result(
            self.plan.seed, world.events, world.now, world.digest, self.launcher.restarts, violation, story
        )

    def _begin(self) -> None:
        self.scheduler.begin()
        for role, count in (("server", self.plan.servers), ("worker", self.plan.workers)):
            for rank in range(count):
                self.world.at(self.world.rng.uniform(0, 0.2), partial(self.launcher.start, role, rank))

    def _done(self) -> bool:
        if not self._armed and self.scheduler.core.ready:
            self._armed = True
            for fault in self.plan.faults:
                self.world.after(fault.at, partial(self._harm, fault))
        return self._armed and self.scheduler.core.job_over and not any(
            process.alive for process in self.launcher.processes.values()
        )

    def _waiting(self) -> list[str]:
        return [f"{p.name} {p.core.delivery!r}" for p in self.launcher.processes.values() if p.alive]

    def _check_end(self) -> None:
        for server in range(self.plan.servers):
            for key in self.keys_of(server):
                kept = self.kept[server].get(key)
                if kept is not None:
                    value = kept.unit.arrays["value"].tolist()
                    self.oracle.on_end(key, value)
        if self.plan.lost < 0 and not self.scheduler.core.job_clean:
            raise Violation("the job is said to have failed")

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """The wall clock is not to be looked at: it jumps. With a small window, everything is large."""
        jumping = self.world.rng.random
        with contextlib.ExitStack() as stack:
            for clock in ("time", "monotonic"):
                stack.enter_context(mock.patch.object(time, clock, lambda: 1e9 * jumping()))
            if self.plan.window:
                stack.enter_context(mock.patch.object(pslite.flow, "WINDOW", self.plan.window))
                stack.enter_context(mock.patch.object(pslite.flow, "SMALL", 1))
                stack.enter_context(mock.patch.object(pslite.delivery, "SAY_AFTER", self.plan.window // 2))
            yield

    # -- faults -------------------------------------------------------------------------------------------------------

    def _harm(self, fault: Fault) -> None:
        process = self.launcher.processes.get((fault.role, fault.rank), self.scheduler)
        if not process.alive or process.leaving:
            return
        self.world.note(process.name, fault)
        if fault.kind == "crash":
            process.doom = fault.point, fault.count
        elif fault.kind == "pause":
            process.pause(fault.seconds)
        elif fault.kind == "slow":
            process.slowness = fault.seconds
            self.world.after(3.0, partial(setattr, process, "slowness", 0.0))
        elif fault.kind == "break":
            connection = self.network.some(self._any)
            if connection is not None:
                self.network.break_(connection)
        elif fault.kind == "cut":
            here, there = (ids.name_of(ids.node_id(*end)) for end in ((fault.role, fault.rank), fault.other))
            pairs = [[(here, there), (there, here)], [(here, there)], [(there, here)]][fault.one_way]
            self.network.cut(pairs, fault.seconds)

    def _any(self, connections: list[Connection]) -> Connection:
        return self.world.rng.choice(connections)


def simulate(plan: Plan) -> Result:
    """Run one schedule."""
    return Job(replace(plan)).run()

"""A job under a plan: its processes, the launcher that starts them again, and the faults."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import pslite.delivery
import pslite.flow
from kvstore.server import saving
from kvstore.server.store import Store
from pslite import failpoints, ids

from . import disk
from .kept import Keeper, Memory, small
from .launcher import Launcher
from .network import Connection, Network
from .oracle import Oracle
from .plan import Fault, Plan
from .process import Process
from .scheduler import Node
from .world import Violation, World

LIMIT = 400.0  # seconds within which a job must have ended
MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None  # for checkpoints


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


class Job:
    """One schedule."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.world = World(plan.seed)
        self._pids = itertools.count(100)
        self.keys = [key for server in range(plan.servers) for key in self.keys_of(server)]
        self.keepers = [Keeper() for _ in range(plan.servers)]
        self.acting: Process  # whose event is being handled
        self.network = Network(self)
        self.oracle = Oracle(self)
        self.launcher = Launcher(self)
        self.disk = disk.Oracle(self)
        self.directory = tempfile.mkdtemp(prefix="pslite-sim-", dir=MEMORY) if plan.save_every else ""
        self.scheduler: Node  # the last one
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
            finally:
                self._close()
        story = tuple(world.story()) if violation else ()
        return Result(
            self.plan.seed, world.events, world.now, world.digest, self.launcher.restarts, violation, story
        )

    def _begin(self) -> None:
        self.launcher.start("scheduler", 0)
        if self.plan.early:
            self.world.at(self.plan.early, self._kill_scheduler)
        for role, count in (("server", self.plan.servers), ("worker", self.plan.workers)):
            for rank in range(count):
                self.world.at(self.world.rng.uniform(0, 0.2), partial(self.launcher.start, role, rank))

    def _done(self) -> bool:
        if not self._armed and self.scheduler.core.ready:
            self._armed = True
            for fault in self.plan.faults:
                self.world.after(fault.at, partial(self._harm, fault))
        return self._armed and self.scheduler.core.job_over and not any(
            process.alive for process in self.launcher.processes.values() if process is not self.scheduler
        )

    def _kill_scheduler(self) -> None:
        if not self.scheduler.core.ready:
            self.scheduler.doom = "event", 1

    def _close(self) -> None:
        for process in self.launcher.processes.values():
            process.die()
        for keeper in self.keepers:
            keeper.close()
        if self.directory:
            shutil.rmtree(self.directory)

    def _waiting(self) -> list[str]:
        return [f"{p.name} {p.core.delivery!r}" for p in self.launcher.processes.values() if p.alive]

    def _check_end(self) -> None:
        for server, keeper in enumerate(self.keepers):
            store = Store(self.plan.workers)
            memory = Memory(keeper)
            store.keep(memory)
            for key in self.keys_of(server):
                self.oracle.on_end(key, store.unit(key, True).arrays["value"].tolist())
            memory.close()
        if self.directory:
            self.disk.check()
        if self.plan.lost < 0 and not self.scheduler.core.job_clean:
            raise Violation("the job is said to have failed")

    @contextlib.contextmanager
    def _surroundings(self) -> Iterator[None]:
        """The wall clock is not to be looked at: it jumps. With a small window, everything is large."""
        jumping = self.world.rng.random
        with contextlib.ExitStack() as stack:
            stack.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.CRITICAL)
            stack.enter_context(small())
            stack.enter_context(mock.patch.object(saving, "Directory", partial(disk.Disk, self)))
            stack.enter_context(mock.patch.object(saving.Saving, "_do", disk.do))
            actions = {name: partial(self._at_failpoint, name) for name in failpoints.POINTS}
            stack.callback(failpoints.arm, None)
            failpoints.arm(actions)
            for clock in ("time", "monotonic"):
                stack.enter_context(mock.patch.object(time, clock, lambda: 1e9 * jumping()))
            if self.plan.window:
                stack.enter_context(mock.patch.object(pslite.flow, "WINDOW", self.plan.window))
                stack.enter_context(mock.patch.object(pslite.flow, "SMALL", 1))
                stack.enter_context(mock.patch.object(pslite.delivery, "SAY_AFTER", self.plan.window // 2))
            yield

    def _at_failpoint(self, name: str) -> None:
        """The process comes to a point that the code names."""
        self.acting.point(name)

    # -- faults -------------------------------------------------------------------------------------------------------

    def _harm(self, fault: Fault) -> None:
        process = self.launcher.processes[fault.role, fault.rank]
        if not process.alive or process.leaving:
            return
        self.world.note(process.name, fault)
        if fault.kind == "crash":
            process.doom = fault.point, fault.count
        elif fault.kind == "pause":
            process.pause(fault.seconds)
        elif fault.kind == "slow":
            process.slowness, process.excused = fault.seconds, True
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

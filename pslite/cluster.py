"""A whole job in one process, on the in-process van: for tests, notebooks and LocalCluster."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Any

from .config import Config
from .postoffice import Postoffice
from .van.inproc import Fault, Hub, InprocVan

_serial = itertools.count()


class InprocCluster:
    """A scheduler, servers and workers of one job, each with a Postoffice of its own.

    ``with InprocCluster(workers=2, servers=1) as cluster:`` starts them; ``cluster.workers[0]`` is a Postoffice. At the
    end all are closed at once, without the exit barrier: ``run_all`` and ``finalize`` are there for an orderly end.
    ``fault(sender, receiver, message)`` decides how many times a message arrives (0 loses it).
    """

    def __init__(
        self, workers: int = 1, servers: int = 1, seed: int = 0, fault: Fault | None = None, **settings: Any
    ) -> None:
        self.hub = Hub(fault)
        self._config = Config(
            num_workers=workers,
            num_servers=servers,
            root=f"inproc://scheduler-{next(_serial)}",
            job=f"inproc{seed}",
            **{"timeout": 30.0, "start_timeout": 30.0, **settings},
        )
        self._seed = seed
        self._before: list[Postoffice] = []  # those that others have taken the place of
        self.scheduler = self._office("scheduler", 0)
        self.servers = [self._office("server", rank) for rank in range(servers)]
        self.workers = [self._office("worker", rank) for rank in range(workers)]

    @property
    def offices(self) -> list[Postoffice]:
        """All of them, the scheduler first."""
        return [self.scheduler, *self.servers, *self.workers]

    def _office(self, role: str, rank: int, restarts: int = 0) -> Postoffice:
        config = replace(self._config, role=role, rank=None if role == "scheduler" else rank, restarts=restarts)
        name = f"{role} {rank}" + f" again ({restarts})" * bool(restarts)
        rng = Random(f"{self._seed}/{role}/{rank}/{restarts}")
        office = Postoffice(config, van=InprocVan(self.hub, name), rng=rng)
        office.open = lambda config: self._take_over(config.rank or 0, config.restarts)
        return office

    def _take_over(self, rank: int, restarts: int) -> Postoffice:
        """Another server, of a process that is there, in place of one that died."""
        self._before.append(self.servers[rank])
        self.servers[rank] = self._office("server", rank, restarts)
        return self.servers[rank]

    def __enter__(self) -> InprocCluster:
        run_all([office.start for office in self.offices])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all processes at once."""
        for office in [*reversed(self.offices), *self._before]:
            office.close()

    def kill(self, office: Postoffice) -> None:
        """Make a process look dead, as kill -9 does."""
        self.hub.kill(self.van_of(office))

    def restart(self, office: Postoffice) -> Postoffice:
        """Another process in place of one that was killed, or is now; it has not joined yet: ``start()`` it."""
        if not self.van_of(office).dead:
            self.kill(office)
        return self.replace(office)

    def replace(self, office: Postoffice) -> Postoffice:
        """Another process in place of one that may live on, as when it was taken for dead by mistake."""
        if office.role == "scheduler":
            self._before.append(office)
            self.scheduler = self._office("scheduler", 0, office.config.restarts + 1)
            return self.scheduler
        known = self.servers if office.role == "server" else self.workers
        rank = known.index(office)
        self._before.append(office)
        known[rank] = self._office(office.role, rank, office.config.restarts + 1)
        return known[rank]

    def join(self) -> Postoffice:
        """One more worker for a running job with ``max_workers``; it has not joined yet: ``start()`` it."""
        self.workers.append(self._office("worker", len(self.workers)))
        return self.workers[-1]

    def van_of(self, office: Postoffice) -> InprocVan:
        """The van of one of the cluster's postoffices."""
        van = office.van
        assert isinstance(van, InprocVan)
        return van


def run_all(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Run each in a thread of its own; returns their results in order, or raises the first error in time."""
    results: list[Any] = [None] * len(jobs)
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except BaseException as error:  # it belongs to the caller of run_all, not to this thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,), name=f"pslite-job-{i}", daemon=True) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results

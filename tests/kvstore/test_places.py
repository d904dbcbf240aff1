"""Server ranks move between processes of a job, here threads, by the orders of the launcher's agent."""

from __future__ import annotations

import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.base import KVStore
from kvstore.p3 import open_store
from kvstore.server.hosting import Host
from kvstore.server.orders import Orders
from kvstore.server.places import Places
from launcher.moves import Done
from launcher.servers import Servers
from pslite import Config, InprocCluster, Postoffice, run_all
from pslite.van.inproc import InprocVan
from tests.harness import wait_until

LONGEST = 20  # seconds
SMALL = [f"small {i}" for i in range(4)]


class Agent:
    """What serves the orders of real agents, for processes that are threads."""

    def __init__(self, cluster: InprocCluster, ranks: int, processes: int) -> None:
        self._cluster = cluster
        self.servers = Servers(range(ranks), processes, self.start, self._done, self._notice)
        self.done: list[Done] = []
        self.notices: list[str] = []
        self.statuses: dict[int, int] = {}  # of processes that have ended
        self._wishes: list[int] = []  # how many servers there are to be
        self._stop = False
        for process in range(processes):
            self.start(process)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def start(self, process: int) -> None:
        config = Config(role="server", rank=process, root="inproc://root", job="job", agent_fd=-1)
        places = Places(config, Orders(self.servers.connect(process)), self._open)
        threading.Thread(target=lambda: self._serve(process, places), daemon=True).start()

    def _open(self, config: Config) -> Postoffice:
        """A server of the cluster, with what the agent has given it."""
        rank, name = config.rank or 0, f"server {config.rank} ({config.restarts})"
        place = {"rank": rank, "restarts": config.restarts, "keeper_fd": config.keeper_fd}
        office = Postoffice(replace(self._cluster.servers[rank].config, **place), InprocVan(self._cluster.hub, name))
        self._cluster.servers[rank] = office
        return office

    def _serve(self, process: int, places: Places) -> None:
        self.statuses[process] = places.serve()

    def _run(self) -> None:
        while not self._stop:
            poller = select.poll()
            self.servers.register(poller)
            self.servers.serve({fd for fd, _ in poller.poll(5)})
            for process in [p for p, status in self.statuses.items() if status == 0]:
                if not self.servers.moves.ranks_of(process):
                    del self.statuses[process]
                    self.servers.ended(process, "exit code 0")
            while self._wishes:
                self.servers.scale(self._wishes.pop())

    def scale(self, processes: int) -> Done:
        count = len(self.done)
        self._wishes.append(processes)
        wait_until(lambda: len(self.done) > count, LONGEST, f"{processes} servers")
        return self.done[-1]

    def _done(self, done: Done) -> None:
        self.done.append(done)

    def _notice(self, rank: int, text: str) -> None:
        self.notices.append(f"{rank}: {text}")

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self.servers.over()
        for rank in range(len(self.servers.restarts)):
            self.servers._keepers[rank].close()


@contextmanager
def job(type: str) -> Iterator[tuple[Agent, list[KVStore]]]:
    """Two workers, and three shards in one process."""
    cluster = InprocCluster(workers=2, servers=3, max_restarts=1)
    ends = threading.Thread(target=Host(cluster.scheduler).serve, daemon=True)
    ends.start()
    agent = Agent(cluster, 3, 1)

    def join(office: Any) -> KVStore:
        office.start()
        return open_store(type, office)

    try:
        stores = run_all([lambda o=o: join(o) for o in cluster.workers])
        yield agent, stores
        run_all([kv.close for kv in stores])
        ends.join(LONGEST)
        wait_until(lambda: agent.statuses and not any(agent.statuses.values()), LONGEST, "the end of the servers")
        assert not agent.notices
    finally:
        agent.close()
        cluster.close()


def work(stores: list[KVStore], steps: range) -> None:
    def one(kv: KVStore) -> None:
        for step in steps:
            kv.push("large", np.full((3000, 4), step + kv.rank + 0.5, np.float32))
            kv.push(SMALL, [np.full(3, step * kv.rank + i, np.float32) for i in range(len(SMALL))])

    run_all([lambda kv=kv: one(kv) for kv in stores])


def run(type: str, numbers: list[int]) -> list[Any]:
    """What is there after some steps, before each of which so many servers are made to serve, while workers push."""
    with job(type) as (agent, stores):
        rule = {"dist_sync": "adam", "dist_async": "test"}[type]
        run_all([lambda kv=kv: kv.set_optimizer(kvstore.optimizer.create(rule)) for kv in stores])
        run_all([lambda kv=kv: kv.init("large", np.zeros((3000, 4), np.float32)) for kv in stores])
        run_all([lambda kv=kv: kv.init(SMALL, [np.zeros(3, np.float32)] * len(SMALL)) for kv in stores])
        for index, number in enumerate(numbers):
            pushes = threading.Thread(target=work, args=(stores, range(5 * index, 5 * index + 5)))
            pushes.start()
            if number:
                done = agent.scale(number)
                assert not done.error
                assert agent.servers.moves.home == {rank: rank % number for rank in range(3)}
            pushes.join()
        def result(kv: KVStore) -> list[Any]:
            kv.pull(["large", *SMALL])  # behind all that this worker has pushed
            kv.barrier()
            return [kv.pull("large"), *kv.pull(SMALL)]
        first, second = run_all([lambda kv=kv: result(kv) for kv in stores])
        for one, other in zip(first, second, strict=True):
            np.testing.assert_array_equal(one, other)
        return first


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
def test_ranks_move_while_workers_push(type: str) -> None:
    """To three processes, to two, to three again and to one."""
    expected = run(type, [0] * 5)
    for one, other in zip(expected, run(type, [3, 2, 3, 1, 1]), strict=True):
        np.testing.assert_array_equal(one, other)

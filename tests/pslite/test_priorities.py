"""Priorities between whole processes, over both vans; and nothing that waits for room is lost when a process ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from pslite import (
    Config,
    InprocCluster,
    KVMeta,
    KVPairs,
    KVServer,
    KVServerDefaultHandle,
    KVWorker,
    Postoffice,
    SimpleApp,
    run_all,
)
from pslite.errors import PeerLost, RequestTimeout
from pslite.flow import WINDOW
from tests.harness import wait_until

CHUNK = WINDOW // 4
VALUE = np.ones(CHUNK // 4, np.float32)


class Blocked:
    """A server whose application stands still until ``go`` is set: meanwhile it takes nothing in."""

    def __init__(self, office: Postoffice) -> None:
        self.go = threading.Event()
        self.entered = threading.Event()
        self.pushed: list[int] = []
        self.pulls: list[tuple[KVMeta, KVPairs]] = []
        self.server = KVServer(0, office)
        self.server.set_handle(self._on_data)
        SimpleApp(1, 0, office, self._on_settings)

    def _on_data(self, meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        if meta.pull:
            self.pulls.append((meta, pairs))
            return
        self.pushed += pairs.keys.tolist()
        server.response(meta)
        if self.pushed == [0]:
            self.entered.set()
            self.go.wait(10)

    def _on_settings(self, data: Any, app: SimpleApp) -> None:
        self.pushed.append(data.body)
        app.response(data)


@pytest.fixture(params=["inproc", pytest.param("zmq", marks=pytest.mark.sockets)])
def offices(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Postoffice]]:
    """A scheduler, a server and a worker."""
    if request.param == "inproc":
        found = InprocCluster().offices
    else:
        root = f"ipc://{tmp_path}/scheduler.sock"
        found = [
            Postoffice(Config(role, 1, 1, root, rank=rank, job="priorities", job_dir=str(tmp_path)))
            for role, rank in (("scheduler", None), ("server", 0), ("worker", 0))
        ]
    run_all([office.start for office in found])
    yield found
    for office in reversed(found):
        office.close()


def test_bulk_leaves_and_comes_back_by_priority(offices: list[Postoffice]) -> None:
    server, kv = Blocked(offices[1]), KVWorker(0, 0, offices[2])
    kv.push([0], np.ones(1))
    assert server.entered.wait(10)
    pushes = [kv.push([key], VALUE, priority=key) for key in range(1, 11)]
    server.go.set()
    for push in pushes:
        kv.wait(push)
    assert sorted(server.pushed) == list(range(11))  # four fit at once: who is there first when the server goes on
    assert [key for key in server.pushed if key > 4] == [10, 9, 8, 7, 6, 5]

    came: list[int] = []
    pulls = [kv.pull([key], priority=key, callback=lambda key=key: came.append(key)) for key in range(1, 11)]
    wait_until(lambda: len(server.pulls) == 10)
    with offices[2]._shell.lock:  # the worker acknowledges nothing before all are answered
        for meta, pairs in sorted(server.pulls, key=lambda pull: pull[0].priority):
            server.server.response(meta, KVPairs(pairs.keys, VALUE))
    for pull in pulls:
        kv.wait(pull)
    assert came == [1, 2, 3, 4, 10, 9, 8, 7, 6, 5]


def test_settings_arrive_between_the_pushes_around_them(offices: list[Postoffice]) -> None:
    server, kv = Blocked(offices[1]), KVWorker(0, 0, offices[2])
    settings = SimpleApp(1, 0, offices[2])
    kv.push([0], np.ones(1))
    assert server.entered.wait(10)
    for key in range(1, 8):
        kv.push([key], VALUE, priority=key)
    asked = settings.request(0, 100, 8)
    last = kv.push([8], VALUE, priority=99)
    server.go.set()
    kv.wait(last)
    settings.wait(asked)
    assert sorted(server.pushed) == [*range(9), 100]
    assert [key for key in server.pushed if key > 4] == [7, 6, 5, 100, 8]


@pytest.mark.parametrize("how", ["settle", "close"])
def test_a_worker_that_ends_hands_over_what_waits(offices: list[Postoffice], how: str) -> None:
    server, kv = Blocked(offices[1]), KVWorker(0, 0, offices[2])
    kv.push([0], np.ones(1))
    assert server.entered.wait(10)
    for key in range(1, 11):
        kv.push([key], VALUE, priority=key)
    if how == "settle":
        assert not kv.customer.settle(0.01), "the server has not said that it has them"
        assert not offices[2]._core.delivery._outboxes[8].window.waiting()
    else:
        offices[2].close()
    server.go.set()
    wait_until(lambda: len(server.pushed) == 11)
    assert [key for key in server.pushed if key > 4] == [10, 9, 8, 7, 6, 5]


def test_a_request_that_waits_is_told_what_it_waits_for() -> None:
    with InprocCluster() as cluster:
        server, kv = Blocked(cluster.servers[0]), KVWorker(0, 0, cluster.workers[0])
        kv.push([0], np.ones(1))
        assert server.entered.wait(10)
        *_, last = [kv.push([key], VALUE) for key in range(1, 8)]
        with pytest.raises(RequestTimeout) as late:
            kv.wait(last, timeout=0.01)
        assert [name.split(" (")[0] for name in late.value.missing] == ["server 0"]
        server.go.set()
        cluster.kill(cluster.servers[0])
        with pytest.raises(PeerLost, match="server 0"):
            kv.wait(last)


@pytest.mark.parametrize("seed", range(2))
def test_bulk_of_all_priorities_over_a_network_that_loses_every_tenth_message(seed: int) -> None:
    keys, steps = range(12), 3
    with InprocCluster(workers=2, servers=1, seed=seed, drop_rate=0.1, resend_timeout=0.02) as cluster:
        KVServer(0, cluster.servers[0]).set_handle(KVServerDefaultHandle(np.float32))

        def train(office: Postoffice) -> list[float]:
            kv, rng = KVWorker(0, 0, office), Random(seed + office.rank)
            for step in range(steps):
                for key in rng.sample(keys, len(keys)):
                    kv.push([key], VALUE, priority=rng.randint(-2, 2), zero_copy=True)
                pulls = {key: kv.pull([key], priority=-key) for key in keys}
                own = min(kv.wait(pull).vals.min() for pull in pulls.values())
                assert own >= step + 1, "a pull comes after this worker's own pushes of the key"
            office.barrier(4)
            return [float(kv.wait(kv.pull([key])).vals.sum()) / VALUE.size for key in keys]

        results = run_all([lambda office=office: train(office) for office in cluster.workers])
        assert results == [[2.0 * steps] * len(keys)] * 2
        assert sum(office._core.delivery.resent_requests for office in cluster.workers) > 0

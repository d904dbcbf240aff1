"""A lossy network between whole processes: nothing is lost, nothing is done twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from pslite import (
    ALL,
    SERVER_GROUP,
    InprocCluster,
    KVServer,
    KVServerDefaultHandle,
    KVWorker,
    Postoffice,
    SimpleApp,
    run_all,
)
from pslite.wire import Kind, Message, Op

KEYS = np.array([3, 2**63 + 3], np.uint64)
STEPS = 8


class Once:
    """Loses (0) or doubles (2) the n-th message of one kind and operation, once on each connection."""

    def __init__(self, kind: Kind, op: Op | None, copies: int, number: int = 1) -> None:
        self._matches = lambda m: m.kind == kind and (op is None or m.op == op)
        self._copies, self._number = copies, number
        self._seen: Counter[tuple[str, str]] = Counter()
        self.hits = 0

    def __call__(self, sender: str, receiver: str, message: Message) -> int:
        if not self._matches(message):
            return 1
        self._seen[sender, receiver] += 1
        if self._seen[sender, receiver] != self._number:
            return 1
        self.hits += 1
        return self._copies


def work(cluster: InprocCluster) -> None:
    """Everything that processes do with each other; right to the last bit, or it raises."""
    for office in cluster.servers:
        KVServer(0, office).set_handle(KVServerDefaultHandle(np.float64))
    for office in cluster.offices:
        SimpleApp(1, 0, office, lambda data, app: app.response(data, [app.office.node, data.body]))

    def train(office: Postoffice) -> list[Any]:
        kv = KVWorker(0, 0, office)
        if office.rank == 0:
            office.publish({"keys": [1, 2]})
        assert office.lookup(["keys"]) == {"keys": [1, 2]}
        for step in range(STEPS):
            kv.push(KEYS, np.full(2, 10.0**office.rank * step))
        kv.wait(kv.pushpull(KEYS, np.zeros(2)))
        office.barrier(ALL - 1)
        ask = SimpleApp(1, 1, office)
        assert ask.wait(ask.request(0, "hi", SERVER_GROUP)) == [[8, "hi"], [10, "hi"]]
        return list(kv.wait(kv.pull(KEYS)).vals)

    def live(office: Postoffice) -> list[Any] | None:
        result = train(office) if office.role == "worker" else None
        if office.role == "server":
            office.barrier(ALL - 1)
        office.finalize()
        return result

    results = run_all([lambda office=office: live(office) for office in cluster.offices])
    total = 11.0 * sum(range(STEPS))
    assert results[3:] == [[total, total]] * 2


@pytest.mark.parametrize("copies", [0, 2], ids=["lost", "doubled"])
@pytest.mark.parametrize(
    ("kind", "op"),
    # Between servers with replicas: see test_every_message.py.
    [(kind, op) for kind in (Kind.REQUEST, Kind.REPLY) for op in Op if op not in (Op.EVENT, Op.LEAVE, Op.REPLICATE)]
    + [(Kind.REQUEST, Op.EVENT), (Kind.REQUEST, Op.LEAVE), (Kind.BEAT, None)],
    ids=lambda value: getattr(value, "name", None),
)
def test_one_message_of_a_kind_is_lost_or_doubled(kind: Kind, op: Op | None, copies: int) -> None:
    fault = Once(kind, op, copies)
    with InprocCluster(workers=2, servers=2, fault=fault, resend_timeout=0.05) as cluster:
        work(cluster)
    assert fault.hits, "the fault was injected"


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize("copies", [0, 2], ids=["lost", "doubled"])
@pytest.mark.parametrize("kind", [Kind.REQUEST, Kind.REPLY], ids=["request", "reply"])
def test_a_later_push_or_its_answer_is_lost_or_doubled(kind: Kind, copies: int, number: int) -> None:
    fault = Once(kind, Op.DATA, copies, number)
    with InprocCluster(workers=2, servers=2, fault=fault, resend_timeout=0.05) as cluster:
        work(cluster)
    assert fault.hits


@pytest.mark.parametrize("seed", range(3))
def test_every_tenth_message_is_dropped(seed: int) -> None:
    """PS_DROP_MSG=10 in every process."""
    with InprocCluster(workers=2, servers=2, seed=seed, drop_rate=0.1, resend_timeout=0.02) as cluster:
        for office in cluster.servers:
            KVServer(0, office).set_handle(KVServerDefaultHandle(np.float64))

        def train(office: Postoffice) -> list[float]:
            kv = KVWorker(0, 0, office)
            for _ in range(50):
                kv.push(KEYS, np.ones(2))
            kv.wait(kv.pushpull(KEYS, np.zeros(2)))
            office.barrier(4)
            return list(kv.wait(kv.pull(KEYS)).vals)

        assert run_all([lambda office=office: train(office) for office in cluster.workers]) == [[100.0, 100.0]] * 2
        assert sum(office._core.delivery.resent_requests for office in cluster.workers) > 0


def test_slow_servers_cause_no_resending() -> None:
    """Parked requests are asked for with a probe, whose header is all that travels."""
    probes: list[int] = []

    def count(sender: str, receiver: str, message: Message) -> int:
        if message.kind == Kind.PROBE:
            probes.append(message.nbytes)
        return 1

    with InprocCluster(workers=1, servers=1, fault=count, resend_timeout=0.01) as cluster:
        parked: list[Any] = []
        server = KVServer(0, cluster.servers[0])
        server.set_handle(lambda meta, pairs, server: parked.append(meta))
        kv = KVWorker(0, 0, cluster.workers[0])
        timestamps = [kv.push([1], np.ones(50_000)) for _ in range(3)]
        cluster.workers[0]._shell.wait_until(lambda: len(probes) > 4, None)
        for meta in parked:
            server.response(meta)
        for timestamp in timestamps:
            kv.wait(timestamp)
        assert len(parked) == 3
        assert cluster.workers[0]._core.delivery.resent_requests == 0
        assert max(probes) == 0

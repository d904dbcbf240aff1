"""A peer that sends nonsense in well-formed messages: it costs the peer, never the process that receives it."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from pslite import ALL, InprocCluster, KVServer, KVServerDefaultHandle, KVWorker, run_all
from pslite.errors import PSError
from pslite.wire import Kind, Message, Op

BODIES: list[Any] = [
    None, 5, "x", b"x", [], [1], {}, {"a": 1}, [[5], 5], [["a", "b"], []], [[1], []], [[1, 2**60], []], [5, []],
    ["ended", 8], ["ended", 99, None], ["over"], [1, 2, 3], ["failed"], ["worker", None, [], "h", "pid"], [None] * 5,
    ["a", 5], [["a"]], [{}], 2**63, -1,
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=2, servers=1) as cluster:
        KVServer(0, cluster.servers[0]).set_handle(KVServerDefaultHandle())
        yield cluster


def still_works(cluster: InprocCluster) -> None:
    run_all([lambda office=office: office.barrier(ALL, timeout=10) for office in cluster.offices])
    kv = KVWorker(0, 50, cluster.workers[1])
    try:
        kv.wait(kv.push([1], [1.0]), timeout=10)
    finally:
        kv.close()


@pytest.mark.parametrize("kind", [*(kind for kind in Kind if kind != Kind.REQUEST), 99])
@pytest.mark.parametrize("target", [1, 8])
def test_messages_that_are_no_requests(cluster: InprocCluster, kind: int, target: int) -> None:
    worker, rng = cluster.workers[0], Random(0)
    delivery = worker._core.delivery
    for sender in (9, 11, 1, 8, 77):
        for body in BODIES:
            message = Message(kind, delivery.job, sender, target, delivery.incarnation, body=body)
            message.seq, message.floor, message.flags = rng.randint(-2, 9), rng.randint(-2, 9), rng.randint(0, 15)
            message.acks = [rng.randint(-5, 5) for _ in range(2 * rng.randint(0, 2))]
            worker.van.send(target, message)
    still_works(cluster)


@pytest.mark.parametrize("op", [Op.BARRIER, Op.PUBLISH, Op.LOOKUP, Op.EVENT, Op.DATA, Op.SIMPLE, Op.JOIN, 99])
@pytest.mark.parametrize("target", [1, 8])
def test_requests_are_answered_with_an_error_or_parked(cluster: InprocCluster, op: Op, target: int) -> None:
    worker = cluster.workers[0]
    got: list[Message | PSError] = []
    for body in BODIES:
        if not (op == Op.BARRIER and isinstance(body, int) and body > 0):  # a group that others would meet in
            worker.request(target, Message(Kind.REQUEST, op=op, body=body), got.append)
    still_works(cluster)


def test_leaving_in_a_malformed_way_is_refused(cluster: InprocCluster) -> None:
    got: list[Message | PSError] = []
    for body in (None, 5, [], ["failed"], {}):
        cluster.workers[0].request(1, Message(Kind.REQUEST, op=Op.LEAVE, body=body), got.append)
    still_works(cluster)
    assert len(got) == 5
    assert all(isinstance(reply, Message) and reply.flags & 4 for reply in got)

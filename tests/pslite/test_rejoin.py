"""A process dies and another takes its place: what was asked of the dead one is asked of its successor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from pslite import (
    WORKER_GROUP,
    InprocCluster,
    KVServer,
    KVServerDefaultHandle,
    KVWorker,
    Postoffice,
    server_id,
    worker_id,
)
from pslite.delivery import Delivery
from pslite.errors import JoinError, PeerLost, PSError
from pslite.postoffice.actions import Deliver
from pslite.postoffice.core import Core
from pslite.van.base import Received
from pslite.van.inproc import InprocVan
from pslite.wire import Kind, Message, Op
from tests.harness import wait_until

KEYS = np.array([1, 2**63 + 1], np.uint64)


def serve(office: Postoffice) -> KVServerDefaultHandle:
    handle = KVServerDefaultHandle()
    KVServer(0, office).set_handle(handle)
    return handle


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=2, servers=2, max_restarts=9) as cluster:
        for server in cluster.servers:
            serve(server)
        yield cluster


def in_background(job: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=job, daemon=True)
    thread.start()
    return thread


def test_a_worker_comes_again_and_all_know_it(cluster: InprocCluster) -> None:
    before = KVWorker(0, 1, cluster.workers[1])
    before.wait(before.push(KEYS, np.ones(2, np.float32)))
    again = cluster.restart(cluster.workers[1])
    again.start()
    assert again.again and again.rank == 1 and again.num_workers == 2
    kv = KVWorker(0, 1, again)
    kv.wait(kv.push(KEYS, np.ones(2, np.float32)))
    out = np.zeros(2, np.float32)
    kv.wait(kv.pull(KEYS, out))
    np.testing.assert_array_equal(out, [2, 2])


def test_what_a_dead_server_did_not_answer_goes_to_its_successor(cluster: InprocCluster) -> None:
    kv = KVWorker(0, 0, cluster.workers[0])
    kv.wait(kv.push(KEYS, np.ones(2, np.float32)))
    cluster.kill(cluster.servers[1])
    waiting = kv.push(KEYS, np.full(2, 5, np.float32))
    wait_until(lambda: server_id(1) in cluster.workers[0].away())
    later = kv.push(KEYS, np.full(2, 7, np.float32))
    successor = cluster.restart(cluster.servers[1])
    successor.start()
    handle = serve(successor)
    kv.wait(waiting)
    kv.wait(later)
    out = np.zeros(2, np.float32)
    kv.wait(kv.pull(KEYS, out))
    np.testing.assert_array_equal(out, [13, 12])  # the dead one's value is lost at this layer, its requests are not
    assert handle is not None


def test_a_process_that_was_taken_for_dead_is_refused(cluster: InprocCluster) -> None:
    zombie = cluster.workers[1]
    kv = KVWorker(0, 1, zombie)
    again = cluster.replace(zombie)
    again.start()  # the launcher says that it was started again, so the other one must be dead
    with pytest.raises(PSError) as caught:
        kv.wait(kv.push(KEYS, np.ones(2, np.float32)), timeout=10)
    assert isinstance(caught.value, JoinError)


def test_a_rank_comes_again_ever_so_often(cluster: InprocCluster) -> None:
    for total in range(1, 9):
        again = cluster.restart(cluster.workers[1])
        again.start()
        kv = KVWorker(0, 1, again)
        kv.wait(kv.push(KEYS, np.ones(2, np.float32)))
        out = np.zeros(2, np.float32)
        kv.wait(kv.pull(KEYS, out))
        np.testing.assert_array_equal(out, [total, total])
    assert not cluster.workers[0].away()


def test_a_barrier_waits_for_a_successor(cluster: InprocCluster) -> None:
    first = in_background(lambda: cluster.workers[0].barrier(WORKER_GROUP))
    cluster.kill(cluster.workers[1])
    wait_until(lambda: worker_id(1) in cluster.workers[0].away())
    again = cluster.restart(cluster.workers[1])
    again.start()
    assert first.is_alive()
    again.barrier(WORKER_GROUP)
    first.join(10)
    assert not first.is_alive()


def test_barriers_that_were_passed_are_passed_at_once(cluster: InprocCluster) -> None:
    for _ in range(3):
        first = in_background(lambda: cluster.workers[0].barrier(WORKER_GROUP))
        cluster.workers[1].barrier(WORKER_GROUP)
        first.join(10)
    again = cluster.restart(cluster.workers[1])
    again.start()
    for _ in range(3):
        again.barrier(WORKER_GROUP)  # nobody else is there
    first = in_background(lambda: again.barrier(WORKER_GROUP))
    cluster.workers[0].barrier(WORKER_GROUP)
    first.join(10)
    assert not first.is_alive()


def test_a_process_that_wishes_for_a_rank_of_a_live_one_is_refused(cluster: InprocCluster) -> None:
    config = replace(cluster.workers[1].config, rank=1)
    other = Postoffice(config, InprocVan(cluster.hub, "another worker 1"))
    with pytest.raises(JoinError, match="has that rank"):
        other.start()


def test_others_go_on_without_a_worker_that_is_dropped() -> None:
    with InprocCluster(workers=3, servers=1, on_worker_lost="shrink") as cluster:
        first = in_background(lambda: cluster.workers[0].barrier(WORKER_GROUP))
        cluster.kill(cluster.workers[1])
        cluster.workers[2].barrier(WORKER_GROUP)
        first.join(10)
        assert not first.is_alive()
        assert cluster.workers[0].ended(worker_id(1)) is not None


def test_what_a_successor_hears_of_the_dead_does_not_harm_the_living() -> None:
    """Events that came before its welcome are older than the roster in that."""
    core, now = Core("server", Delivery(77, 1.0), returns=True), 0.0
    core.join(now, 0, ["address"], "host", 1, 1)

    def hears(kind: Kind, seq: int, op: Op, body: object) -> None:
        message = Message(kind, "job", 1, 0 if kind == Kind.REPLY else 8, 5, seq, 1, op=op, body=body)
        core.on_event(now, Received(1, message))

    worker, lost = [9, 33, [], "host", 3], PeerLost(node="it", reason="killed").to_wire()
    for seq, event in enumerate((["away", 9, lost], ["back", worker]), 1):
        hears(Kind.REQUEST, seq, Op.EVENT, event)
    roster = [[8, 77, ["address"], "host", 1], worker]
    welcome = {"node": 8, "job": "job", "workers": 1, "servers": 1, "roster": roster, "policy": "wait", "again": True}
    hears(Kind.REPLY, 1, Op.JOIN, welcome)
    assert core.ready
    assert not any(peer.away for peer in core.roster.values())
    push = Message(Kind.REQUEST, "job", 9, 8, 33, 1, 1, op=Op.DATA)
    assert [type(action) for action in core.on_event(now, Received(b"9", push))] == [Deliver]

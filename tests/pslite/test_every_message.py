"""Each kind of request is lost once, or its answer is, or comes twice: it has one effect, and the job goes on."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from pslite import (
    ALL,
    InprocCluster,
    KVServer,
    KVServerDefaultHandle,
    KVWorker,
    Postoffice,
    ReplicaLink,
    SimpleApp,
    SimpleData,
    run_all,
)
from pslite.wire import Kind, Message, Op
from tests.cases.seed import SEED
from tests.harness import wait_until

FATES = {"request lost": 0, "request doubled": 2, "answer lost": 0, "answer doubled": 2}
KEYS = np.array([1, 2**63 + 1], np.uint64)


class OneStrike:
    """Changes the fate of one message of its sort: the ``number``-th."""

    def __init__(self, op: Op, fate: str, number: int) -> None:
        self._kind = Kind.REQUEST if fate.startswith("request") else Kind.REPLY
        self._op, self._copies, self._number = op, FATES[fate], number
        self.seen = 0

    def __call__(self, sender: str, receiver: str, message: Message) -> int:
        if (message.kind, message.op) == (self._kind, self._op):
            self.seen += 1
            return self._copies if self.seen == self._number else 1
        return 1


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("op", Op, ids=lambda op: op.name.lower())
def test_it_has_one_effect(op: Op, fate: str) -> None:
    number = Random(f"{SEED} {op} {fate}").randint(1, 2)  # there are two of each
    strike = OneStrike(op, fate, number)
    with InprocCluster(workers=2, servers=2, fault=strike, resend_timeout=0.05, max_restarts=1, replicas=1) as cluster:
        commands: list[int] = []
        changes: list[int] = []
        links = [serve(server, commands, changes) for server in cluster.servers]
        first, second = cluster.workers
        first.publish({"a": 1})
        assert second.lookup(["a"]) == {"a": 1}
        second.publish({"b": 2})
        assert first.lookup(["b"]) == {"b": 2}
        push(first, 1.0)
        push(second, 10.0)
        app = SimpleApp(1, 0, first)
        app.wait(app.request(7, None, 2))
        again = cluster.restart(second)
        again.start()
        push(again, 100.0)
        kv = KVWorker(0, 5, again)
        out = np.zeros(2, np.float32)
        kv.wait(kv.pull(KEYS, out))
        assert out.tolist() == [111.0, 111.0]
        assert commands == [7, 7]
        for number in (1, 2):
            links[0].tell(number, [np.array([number])])
        wait_until(lambda: len(changes) == 4)
        assert [number for number in changes if number > 0] == [1, 2]
        assert {number for number in changes if number < 0} == {-1, -2}
        run_all([lambda o=o: o.barrier(ALL) for o in cluster.offices])
        run_all([office.leave for office in cluster.workers])
        for server in cluster.servers:
            server.wait_job_over()
    assert strike.seen >= number, "the job has too few such messages: give it more"


def serve(office: Postoffice, commands: list[int], changes: list[int]) -> ReplicaLink:
    KVServer(0, office).set_handle(KVServerDefaultHandle())

    def on_command(data: SimpleData, app: SimpleApp) -> None:
        commands.append(data.head)
        app.response(data)

    SimpleApp(1, 0, office, on_command)
    return ReplicaLink(
        4, office, lambda arrays: changes.append(int(arrays[0][0])), lambda number, error: changes.append(-number)
    )


def push(office: Postoffice, value: float) -> None:
    kv = KVWorker(0, 1, office)
    kv.wait(kv.push(KEYS, np.full(2, value, np.float32)))
    kv.close()

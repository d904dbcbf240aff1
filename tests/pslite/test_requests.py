"""A request of several messages that are made as they are sent: what goes wrong between them, and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pslite import InprocCluster, KVMeta, KVPairs, KVServer, KVWorker
from pslite.customer import Torn
from pslite.errors import DTypeError, PeerLost, PSError
from pslite.wire import Flag, Kind, Message, Op

SECOND = 2**63  # the second server's first key
KEYS = np.array([0, SECOND], np.uint64)


class Echo:
    """Answers what was asked, with the keys doubled; can be held up, and fails for odd commands."""

    def __init__(self, office: Any) -> None:
        self.seen: list[int] = []
        self.go = threading.Event()
        self.go.set()
        self._server = KVServer(0, office)
        self._server.set_handle(self._on_request)

    def _on_request(self, meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        assert self.go.wait(10)
        self.seen.append(meta.message.flags)
        if meta.cmd % 2:
            raise ValueError("odd")
        server.response(meta, KVPairs(pairs.keys, pairs.keys * np.uint64(2)) if meta.pull else None)


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=1, servers=2, resend_timeout=0.2) as made:
        yield made


@pytest.fixture
def servers(cluster: InprocCluster) -> list[Echo]:
    return [Echo(office) for office in cluster.servers]


@pytest.fixture
def kv(cluster: InprocCluster, servers: list[Echo]) -> KVWorker:
    return KVWorker(0, 0, cluster.workers[0])


def pairs(*keys: int) -> KVPairs:
    return KVPairs(np.array(keys, np.uint64), [])


def wait(kv: KVWorker, request: Any) -> Any:
    return kv.customer.wait_for(request, 10)


def test_parts_are_in_the_order_of_the_messages(kv: KVWorker, servers: list[Echo]) -> None:
    """Whatever order the answers come in: here the first server's comes last."""
    servers[0].go.clear()
    taken: list[int] = []

    def take(answer: KVPairs) -> int:
        key = int(answer.keys[0])
        taken.append(key)
        if key == SECOND + 1:
            servers[0].go.set()
        return key

    request = kv.send(iter([pairs(5), pairs(SECOND), pairs(7), pairs(SECOND + 1)]), Flag.PULL, finish=list, take=take)
    assert wait(kv, request) == [5, SECOND, 7, SECOND + 1]
    assert taken[:2] == [SECOND, SECOND + 1]


def test_answers_that_come_before_all_is_sent(kv: KVWorker, servers: list[Echo]) -> None:
    """They are taken in when all is sent, and the request is not done before."""
    taken: list[int] = []

    def each() -> Iterator[KVPairs]:
        for key in (1, SECOND + 1, 2):
            yield pairs(key)
            before = [len(server.seen) for server in servers]
            kv.wait(kv.pull(np.array([key], np.uint64)))  # what was sent before is answered, too
            assert [len(server.seen) for server in servers] != before
            assert taken == []

    request = kv.send(each(), Flag.PULL, finish=list, take=lambda answer: taken.append(int(answer.keys[0])))
    wait(kv, request)
    assert sorted(taken) == [1, 2, SECOND + 1]


@pytest.mark.parametrize("sent", [0, 1, 2])
def test_an_iterable_that_raises(kv: KVWorker, servers: list[Echo], sent: int) -> None:
    """The caller gets it; the request has failed, ``ended`` ran, and what comes back is nobody's."""
    ended: list[int] = []

    def each() -> Iterator[KVPairs]:
        yield from [pairs(1), pairs(SECOND)][:sent]
        raise KeyError("the next")

    failures = kv.customer.failures
    with pytest.raises(KeyError, match="the next"):
        kv.send(each(), Flag.PULL, finish=pytest.fail, take=pytest.fail, ended=lambda: ended.append(1))
    assert ended == [1]
    assert kv.customer.failures == failures + 1
    kv.wait(kv.pull(KEYS))
    assert "waiting=0" in repr(kv.customer)


def test_a_message_that_cannot_travel_in_the_midst(kv: KVWorker, servers: list[Echo]) -> None:
    bad = KVPairs(np.array([3], np.uint64), [np.zeros(3, complex)])
    with pytest.raises(DTypeError):
        kv.send(iter([pairs(1), bad, pairs(2)]), Flag.PUSH)
    assert "waiting=0" in repr(kv.customer)
    kv.wait(kv.pull([9]))
    assert len(servers[0].seen) == 2


def test_no_messages(kv: KVWorker) -> None:
    ended: list[int] = []
    request = kv.send(iter([]), Flag.PULL, finish=list, ended=lambda: ended.append(1))
    assert request.done
    assert (request.result, ended) == ([], [1])


def test_take_that_raises(kv: KVWorker, servers: list[Echo]) -> None:
    """Its error is the request's, when all answers are there."""
    ended: list[bool] = []

    def take(answer: KVPairs) -> None:
        assert not request.done
        raise ZeroDivisionError(int(answer.keys[0]))

    request = kv.send(
        iter([pairs(1), pairs(SECOND)]), Flag.PULL, finish=pytest.fail, take=take, ended=lambda: ended.append(True)
    )
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            wait(kv, request)
    assert ended == [True]
    assert len(servers[0].seen) == len(servers[1].seen) == 1


def test_finish_that_raises(kv: KVWorker) -> None:
    def finish(parts: list[Any]) -> Any:
        raise ZeroDivisionError

    ended: list[bool] = []
    with pytest.raises(ZeroDivisionError):
        wait(kv, kv.send(pairs(*KEYS.tolist()), Flag.PULL, finish=finish, ended=lambda: ended.append(True)))
    assert ended == [True]


def test_a_server_that_refuses_one_message(kv: KVWorker, servers: list[Echo]) -> None:
    """The others are answered first: then nothing of the request is under way."""
    servers[1].go.clear()
    done: list[bool] = []
    failing = kv.send(iter([pairs(1), pairs(SECOND)]), Flag.PULL, cmd=1, finish=pytest.fail,
                      ended=lambda: done.append(servers[1].go.is_set()))  # fmt: skip
    kv.wait(kv.pull([2]))
    assert not failing.done
    servers[1].go.set()
    with pytest.raises(PSError, match="odd"):
        wait(kv, failing)
    assert done == [True]


@pytest.mark.parametrize("times", [1, 2, 5])
def test_torn_again_and_again(kv: KVWorker, servers: list[Echo], times: int) -> None:
    """Each time it is asked for anew; its place among the parts stays, and the others are taken once."""
    torn, taken = [0], [0]

    def take(asked: Message, answer: Message) -> int:
        if answer.sender == 8 and torn[0] < times:
            torn[0] += 1
            raise Torn(message(asked.arrays[0]))
        taken[0] += 1
        return answer.sender

    request = kv.customer.request([(8, message([1])), (10, message([2**63]))], take, list)
    assert wait(kv, request) == [8, 10]
    assert (torn[0], taken[0]) == (times, 2)
    assert (len(servers[0].seen), len(servers[1].seen)) == (times + 1, 1)


def message(keys: Any) -> Message:
    made = Message(Kind.REQUEST, op=Op.DATA, flags=Flag.PULL)
    made.arrays, made.body = [np.asarray(keys, np.uint64)], [8, None]
    return made


def test_torn_after_another_answer_failed(kv: KVWorker, servers: list[Echo]) -> None:
    """It is not asked again: the request has failed."""

    def take(asked: Message, answer: Message) -> int:
        if answer.sender == 8:
            raise ZeroDivisionError
        raise Torn(asked)

    request = kv.customer.request([(8, message([1])), (10, message([2**63]))], take, list)
    with pytest.raises(ZeroDivisionError):
        wait(kv, request)


def test_torn_by_a_server_that_is_gone(cluster: InprocCluster, kv: KVWorker) -> None:
    killed: list[int] = []

    def take(asked: Message, answer: Message) -> int:
        if not killed:
            cluster.kill(cluster.servers[0])
            killed.append(1)
        raise Torn(message([1]))

    with pytest.raises(PeerLost, match="server 0"):
        wait(kv, kv.customer.request([(8, message([1]))], take, list))


def test_a_server_that_dies_between_messages(cluster: InprocCluster, kv: KVWorker, servers: list[Echo]) -> None:
    ended: list[int] = []
    sent: list[int] = []

    def each() -> Iterator[KVPairs]:
        for key in (1, SECOND, 2):
            sent.append(key)
            yield pairs(key)
            if len(sent) == 1:
                cluster.kill(cluster.servers[0])
                with pytest.raises(PeerLost):
                    kv.wait(kv.pull([9]))

    request = kv.send(each(), Flag.PULL, finish=pytest.fail, ended=lambda: ended.append(1))
    with pytest.raises(PeerLost, match="server 0"):
        wait(kv, request)
    assert ended == [1]
    kv.wait(kv.pull(KEYS[1:]))
    assert "waiting=0" in repr(kv.customer)


def test_what_is_sent_again_goes_by_value(cluster: InprocCluster) -> None:
    """The receiver may have been unable to read it where it is, as when it has no descriptor left."""
    lost: list[int] = []

    def lose(sender: str, receiver: str, message: Message) -> int:
        if message.kind == Kind.REQUEST and message.op == Op.DATA and not lost:
            lost.append(message.flags)
            return 0
        return 1

    with InprocCluster(workers=1, servers=1, fault=lose, resend_timeout=0.05) as other:
        echo, kv = Echo(other.servers[0]), KVWorker(0, 0, other.workers[0])
        kv.wait(kv.pull([1]))
        assert not lost[0] & Flag.BY_VALUE
        assert echo.seen[-1] & Flag.BY_VALUE

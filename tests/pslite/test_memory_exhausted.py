"""A receiver that has no memory for a message: who asked hears it, whether the message came or never could."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import kvstore
from pslite import InprocCluster, KVServer, KVServerDefaultHandle, KVWorker
from pslite.delivery import Delivery, Send
from pslite.errors import NoMemoryError
from pslite.van.allocation import has_room
from pslite.wire import Flag, Kind, Message

ROOM = 100_000  # bytes
SMALL, LARGE = np.ones(5_000), np.ones(50_000)  # 40 and 400 kB
WORKER, SERVER = 9, 8


def serve(cluster: InprocCluster) -> tuple[KVWorker, list[int]]:
    """A worker whose only server has memory for messages below ROOM, and the sizes of those that it took in."""
    [office], taken = cluster.servers, list[int]()
    handle = KVServerDefaultHandle(np.float64)
    server = KVServer(0, office)

    def note(meta: object, pairs: object, server: KVServer) -> None:
        taken.append(pairs.vals.nbytes if meta.push else 0)  # type: ignore[attr-defined]
        handle(meta, pairs, server)  # type: ignore[arg-type]

    server.set_handle(note)
    office._core.has_room = lambda link, nbytes: nbytes < ROOM
    return KVWorker(0, 0, cluster.workers[0]), taken


def lose_large_ones(sender: str, receiver: str, message: Message) -> int:
    """As ZeroMQ does without memory for a frame."""
    return int(message.kind != Kind.REQUEST or sum(array.nbytes for array in message.arrays) < ROOM)


@pytest.mark.parametrize("fault", [None, lose_large_ones])
def test_what_there_is_no_memory_for_is_refused(fault: Callable[[str, str, Message], int] | None) -> None:
    with InprocCluster(workers=1, servers=1, fault=fault, resend_timeout=0.02) as cluster:
        kv, taken = serve(cluster)
        kv.wait(kv.push([1], SMALL))
        calls = [kv.push([2], LARGE), kv.push([1], SMALL), kv.push([3], LARGE), kv.push([1], SMALL)]
        for call in calls[0::2]:
            with pytest.raises(NoMemoryError, match=r"server 0 has no memory for a request of 4000.. bytes"):
                kv.wait(call)
        for call in calls[1::2]:
            kv.wait(call)
        assert (kv.wait(kv.pull([1])).vals == 3).all(), "what came behind the one that was refused is applied once"
        assert taken == [SMALL.nbytes] * 3 + [0]


def test_with_room_it_is_sent_until_it_comes() -> None:
    lost: list[int] = []

    def lose_some(sender: str, receiver: str, message: Message) -> int:
        if lose_large_ones(sender, receiver, message) or len(lost) >= 5:
            return 1
        lost.append(message.seq)
        return 0

    with InprocCluster(workers=1, servers=1, fault=lose_some, resend_timeout=0.02) as cluster:
        kv, taken = serve(cluster)
        cluster.servers[0]._core.has_room = lambda link, nbytes: True
        kv.wait(kv.push([2], LARGE))
        assert len(lost) == 5 and taken == [LARGE.nbytes]


def asked(worker: Delivery, sends: list[Send], now: float) -> Message:
    [probe] = [send.message for send in sends or worker.probe(now, SERVER)]
    assert probe.kind == Kind.PROBE
    return probe


def test_a_probe_names_the_first_that_was_sent_in_vain() -> None:
    worker, server = Delivery(1, 1.0), Delivery(2, 1.0)
    worker.node, server.node = WORKER, SERVER
    worker.open(SERVER, SERVER)
    for array in (SMALL, LARGE, LARGE):
        message = Message(Kind.REQUEST, arrays=[array], codes=[1])
        worker.request(0.0, SERVER, message, lambda reply: None)
    probe = asked(worker, [], 1.0)
    assert probe.body is None, "nothing was sent again yet"
    server.on_request(b"w", Message(Kind.REQUEST, sender=WORKER, incarnation=1, seq=1, floor=1, arrays=[SMALL]))
    [status] = server.on_probe(b"w", probe, lambda request: [])
    status.message.sender = SERVER
    assert [send.message.seq for send in worker.on_status(1.0, SERVER, status.message)] == [2, 3]
    probe = asked(worker, [], 2.0)
    assert probe.body == [2, LARGE.nbytes]
    assert worker.on_timer(1e9)[0].message.body == probe.body

    found = server.missing(probe)
    assert found is not None
    refused, nbytes = found
    assert (refused.seq, refused.incarnation, nbytes) == (2, 1, LARGE.nbytes)
    [ready], _ = server.on_request(b"w", refused)
    [reply] = server.reply(ready, Message(Kind.REPLY, flags=Flag.ERROR, body="no"))
    assert server.missing(probe) is None, "it is answered"
    late = Message(Kind.REQUEST, sender=WORKER, incarnation=1, seq=2, floor=1, arrays=[LARGE])
    assert server.on_request(b"w", late) == ([], [reply]), "if it comes after all it is a duplicate"


@pytest.mark.parametrize("body", [[2.0, 10], [3, 10], [0, 10], ["2", 10], [True, 1]])
def test_a_probe_that_names_anything_else_refuses_nothing(body: list[object]) -> None:
    server = Delivery(2, 1.0)
    server.on_request(b"w", Message(Kind.REQUEST, sender=WORKER, incarnation=1, seq=1, floor=1))
    assert server.missing(Message(Kind.PROBE, sender=WORKER, incarnation=1, seq=5, floor=1, body=body)) is None


def test_a_memory_error_of_a_handle_is_one_at_the_caller() -> None:
    def handle(meta: object, pairs: object, server: KVServer) -> None:
        raise MemoryError("Unable to allocate 1.0 TiB")

    with InprocCluster(workers=1, servers=1) as cluster:
        KVServer(0, cluster.servers[0]).set_handle(handle)
        kv = KVWorker(0, 0, cluster.workers[0])
        with pytest.raises(MemoryError, match=r"server 0 has no memory for a request: Unable to allocate 1.0 TiB"):
            kv.wait(kv.push([1], SMALL))


def test_the_room_of_this_process() -> None:
    assert has_room(1) and has_room(2**20)
    assert not has_room(2**62) and not has_room(2**80)


def test_a_process_without_room_for_threads_says_so() -> None:
    """ZeroMQ would end it by an assertion."""
    script = (
        "import resource, pslite\n"
        "from pslite.van import allocation, zmq_van\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 30 * 2**20,) * 2)\n"
        "try:\n"
        "    zmq_van.ZmqVan('me')\n"
        "except pslite.NoMemoryError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("this process has no memory for its threads"), done.stderr
    assert issubclass(kvstore.NoMemoryError, MemoryError)

"""Messages that are wrong, from a server and a scheduler that are not what they should be, by the links to them.

Some are lies: what a peer says on its own connection counts, so they come to a worker's core only, as its van would
hand them on. A worker may fail with an error of this project; what it pulls is right, or it does not get it.

The others are nobody's word: no messages at all, or those of another process. They come to workers that train, by their
own sockets and between the honest answers, and change nothing.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import msgpack
import numpy as np
import pytest

from pslite import ALL, InprocCluster, KVServer, KVServerDefaultHandle, KVWorker, PSError, run_all
from pslite.delivery import MAX_UNSAID
from pslite.errors import ProtocolError
from pslite.van.base import Received, Rejected, VanEvent
from pslite.wire import Flag, Kind, Message, Op, decode, encode
from tests.harness import wait_until
from tests.network.hosts import Place, ThisMachine
from tests.network.jobs import LanesJob, memory

from .messages import Frames, _bytes, _fields, _frames, _noise
from .relay import BATCH, Relay

pytestmark = pytest.mark.slow

MESSAGES = int(os.environ.get("FUZZ_MESSAGES", 10_000))  # 100,000 in a soak
MOST = 50.0  # MiB that the process may grow
SEED = 1
SERVER, SCHEDULER = 8, 1


def wrong(worker: int, sender: int, job: str, incarnation: int, next_seq: int, random: Random) -> Iterator[Frames]:
    """Messages of this sender that are almost right, for requests that there are and others; endless."""
    arrays = [np.arange(4, dtype=np.uint64), np.ones((3, 5), np.float32)]
    bodies = (None, [13, None], [[1, 5], ["why"]], [[1, 2**60], []], {"scheduler": 1}, ["away", 8])
    while True:
        kind, body = random.choice(tuple(Kind)), random.choice(bodies)
        message = Message(kind, job, sender, worker, incarnation, random.randrange(-2, next_seq + 40), body=body)
        message.floor, message.flags = random.randrange(-2, next_seq + 40), random.randrange(64)
        message.op, message.timestamp = random.choice(tuple(Op)), random.randrange(8)
        message.arrays = arrays if random.random() < 0.3 else []
        header = msgpack.unpackb(bytes(encode(message)[0]), strict_map_key=False)
        if (sender == SCHEDULER and message.op in (Op.EVENT, Op.JOIN)) or random.random() < 0.5:
            yield random.choice((_fields, _bytes, _frames, _noise))(random, header)
        else:
            yield encode(message)  # type: ignore[misc]


def nobodys(last: Message, random: Random) -> Iterator[Frames]:
    """Messages beside this answer that are not its sender's word; endless."""
    for frames in wrong(last.recver, last.sender, last.job, last.incarnation, last.seq + 1, random):
        try:
            message = decode(frames)
        except ProtocolError:
            yield frames
            continue
        if message.kind != Kind.REPLY or not message.flags & Flag.REFUSED:  # which has any process behind the address
            message.incarnation = random.getrandbits(62)
            yield encode(message)  # type: ignore[misc]


def heard(link: int, frames: Frames) -> VanEvent:
    """What a van makes of it."""
    try:
        return Received(link, decode(frames))
    except ProtocolError as error:
        return Rejected(link, str(error))


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=2, servers=1) as cluster:
        KVServer(0, cluster.servers[0]).set_handle(KVServerDefaultHandle())
        yield cluster


@pytest.mark.parametrize("sender", [SERVER, SCHEDULER])
def test_a_worker_that_hears_nonsense(cluster: InprocCluster, sender: int) -> None:
    worker = cluster.workers[0]
    shell, core = worker._shell, worker._core
    kv = KVWorker(0, 1, worker)
    out = np.zeros(3, np.float32)
    kv.wait(kv.push([1, 2, 3], np.arange(3, dtype=np.float32)), timeout=10)
    outbox = core.delivery._outboxes[sender]
    peer = core.roster[sender]
    messages = wrong(core.node, sender, core.delivery.job, peer.incarnation, outbox.next_seq, Random(SEED))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(MESSAGES // 1000):
        asked = kv.pull([1, 2, 3], out)
        with shell.lock:
            for _ in range(1000):
                shell._handle(heard(sender, next(messages)))
        try:
            kv.wait(asked, timeout=10)
        except PSError:
            assert not out.any()
        assert out.tolist() in ([0, 0, 0], [0, 1, 2])
        out[:] = 0
        if core.fatal is not None:
            break
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{grown:.0f} MiB more")  # noqa: T201 - a figure to look at
    assert grown < MOST
    assert shell._thread.is_alive()
    assert len(outbox.acks) <= MAX_UNSAID
    if core.fatal is None and core.roster[SERVER].ended is None:
        run_all([lambda office=office: office.barrier(ALL, timeout=10) for office in cluster.offices])


class RelayedJob(LanesJob):
    """A job whose processes meet at a relay, which knows where the scheduler is."""

    relay: Relay

    def start_one(self, role: str, rank: int, host: Place, command: Sequence[str], env: dict[str, str]) -> None:
        super().start_one(role, rank, host, command, env)
        self.port = self.relay.port


@pytest.mark.processes
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("liar", "role"), [("server", "worker"), ("scheduler", "worker"), ("scheduler", "server")])
def test_nonsense_between_the_answers_of_a_peer(tmp_path: Path, liar: str, role: str) -> None:
    here = ThisMachine()
    with (
        Relay(nobodys, role) as server,
        Relay(nobodys, role, beside=server) as scheduler,
        RelayedJob(tmp_path, here, [here], [here, here]) as job,
    ):
        scheduler.honest, job.relay = job.port, scheduler
        job.begin("dist_sync", (1, 100), PSLITE_TRANSPORT="tcp", PSLITE_JOB_ID="fuzzed")
        job.go_on(20)
        targets = job.of(role)
        before = [memory(target.popen.pid) for target in targets]
        relay = server if liar == "server" else scheduler
        relay.say(MESSAGES // BATCH * BATCH)

        def all_is_read() -> bool:
            assert not job.ended(), job.ended()
            return relay.done

        wait_until(all_is_read, 90, "the answer to the last question")
        grown = [memory(target.popen.pid) - most for target, most in zip(targets, before, strict=True)]
        print(f"{role}s: {', '.join(f'{more:.0f}' for more in grown)} MiB more")  # noqa: T201 - a figure to look at
        assert max(grown) < MOST
        job.go_on(20)
        job.finish()
        assert not any("Traceback" in target.stderr for target in targets), targets

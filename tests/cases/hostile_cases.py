"""Cases 23 and 24: strangers without the right key, and messages that lie about sizes, while a job trains."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import msgpack
import numpy as np
import zmq

from pslite import Config, Postoffice, ids
from pslite.errors import AuthError
from pslite.van.base import LinkRefused, LinkUp, Van
from pslite.wire import Kind, Message, Op, encode
from tests.fuzz import zmtp
from tests.network.hosts import Place, ThisMachine
from tests.network.jobs import LanesJob, listening_port, memory
from tests.security.jobs import INCARNATION, NOT_ITS_OWN, Keyring, Tap, event, outsider, request

from .case import Trial, case
from .network_cases import TYPES, judged

SAID = {
    "no keys": "one of the two has keys and the other has none",
    "unknown key": "it does not know the key of this process",
    "another job's key": "it belongs to another job",
}
WITHIN = 3.0  # seconds


class KeyedJob(LanesJob):
    """A job whose processes have keys."""

    def __init__(self, directory: Path, workers: int = 2) -> None:
        here = ThisMachine()
        super().__init__(directory, here, [here], [here] * workers)
        self.ring = Keyring(directory / "keys", workers + 1)  # one that nobody has

    def start_one(self, role: str, rank: int, host: Place, command: Sequence[str], env: dict[str, str]) -> None:
        env = {name: value for name, value in env.items() if name != "PSLITE_SECURITY"}
        super().start_one(role, rank, host, command, env | {"PSLITE_KEY_FILE": str(self.ring.path(role, rank))})


@contextlib.contextmanager
def van(made: Van) -> Iterator[Van]:
    """A van, closed at the end."""
    try:
        yield made
    finally:
        made.close(0.0)


def refused(guest: Van, node: int, address: str, said: str) -> str | None:
    """Connect, and wait to be told why not; returns what is wrong with that."""
    guest.connect(node, address)
    guest.send(node, request(9, op=Op.EVENT, body=["over", True]))
    found = event(guest, which=lambda e: isinstance(e, (LinkRefused, LinkUp)))
    if not isinstance(found, LinkRefused):
        return "it was let in"
    return None if said in found.reason else f"it was told {found.reason!r}"


def joins(job: KeyedJob) -> str | None:
    """A process without keys wants to join, as users' processes do; returns what is wrong with what it is told."""
    office = Postoffice(Config(role="worker", root=f"tcp://127.0.0.1:{job.port}", start_timeout=15.0))
    try:
        office.start()
        return "it joined"
    except AuthError as error:
        return None if "no connection to scheduler" in str(error) else f"it was told {error}"
    finally:
        office.close()


def stranger(address: str, mechanism: str, key_of: bytes) -> None:
    """Send what would end the job, by ZeroMQ alone."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger = 100
        sock.setsockopt(zmq.IDENTITY, f"x/job/scheduler/{INCARNATION:016x}".encode())
        if mechanism == "PLAIN":
            sock.plain_username, sock.plain_password = b"scheduler", b"secret"
        elif mechanism == "CURVE":
            sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()
            sock.curve_serverkey = key_of
        sock.connect(address)
        sock.send_multipart(encode(request(1, op=Op.EVENT, body=["over", True])))


def replay(job: KeyedJob, node: int, address: str) -> None:
    """Record what a worker sends through a relay, and say it once more."""
    tap = Tap()
    try:
        with van(job.ring.van("worker", 2)) as guest:
            guest.connect(node, tap.to(address))
            event(guest, which=lambda e: isinstance(e, LinkUp))
            guest.send(node, request(13, op=Op.EVENT, body=["over", True]))
    finally:
        tap.close()
    zmtp.say(int(address.rpartition(":")[2]), bytes(tap.said), patience=1.0)


@case(23, "wrong keys", soak=20, limit=90)
def wrong_keys(seed: int, where: Path) -> Trial:
    """Everybody who may not come in tries to, at the scheduler or the server, while a job with keys trains."""
    random, slowest, wrong = Random(seed), 0.0, []
    with KeyedJob(where) as job:
        job.begin(random.choice(TYPES), (1, 100), PSLITE_TRANSPORT="tcp")
        role, node = random.choice([("scheduler", ids.SCHEDULER), ("server", ids.server_id(0))])
        port = job.port if role == "scheduler" else listening_port(job.of(role)[0].popen.pid)
        address = f"tcp://127.0.0.1:{port}"
        for number, (kind, said) in enumerate(SAID.items()):
            with van(outsider(kind, job.ring, Keyring(where / f"other{number}"))) as guest:
                begin = time.monotonic()
                if problem := refused(guest, node, address, said):
                    wrong.append(f"{kind}, at the {role}: {problem}")
                slowest = max(slowest, time.monotonic() - begin)
        begin = time.monotonic()
        if problem := joins(job):
            wrong.append(f"to join without keys: {problem}")
        slowest = max(slowest, time.monotonic() - begin)
        for mechanism in ("NULL", "PLAIN", "CURVE"):
            stranger(address, mechanism, job.ring.keys(role).public)
        for identity, message in NOT_ITS_OWN:
            with van(job.ring.van("worker", 2, identity)) as insider:
                insider.connect(node, address)
                event(insider, which=lambda e: isinstance(e, LinkUp))
                insider.send(node, message)
        replay(job, node, address)
        with van(job.ring.van("worker", 2)) as member:
            member.connect(node, address)
            event(member, which=lambda e: isinstance(e, LinkUp))
            job.ring.change(worker_2=None)
            member.send(node, request(13, op=Op.EVENT, body=["over", True]))
        job.go_on(10)
        trial = judged(job.end(), detection=slowest)
        tracebacks = [process for process in job.processes if "Traceback" in process.stderr]
    trial.wrong += wrong + [f"something surprised it: {process}" for process in tracebacks]
    if slowest > WITHIN:
        trial.wrong.append(f"a refusal took {slowest:.1f} s")
    return trial


def lies(random: Random, job_id: str) -> Iterator[list[bytes]]:
    """Messages that announce far more than comes, or hold far more than they should."""

    def header(**fields: object) -> list[object]:
        message = Message(Kind.REQUEST, job_id, 9, 8, random.getrandbits(62), 1, 1, op=Op.DATA, body=[13, None])
        values = msgpack.unpackb(bytes(encode(message)[0]), strict_map_key=False)
        for name, value in fields.items():
            values[{"body": 17, "table": 18, "acks": 9, "job": 3}[name]] = value
        return list(values)

    deep: object = []
    for _ in range(400):
        deep = [deep]
    yield from (
        [msgpack.packb(header(table=table)), bytes(random.randrange(100))]
        for table in (
            [[0, 2**45]],
            [[0, 2**31, 2**31]],
            [[0, 2**62, 4]],
            [[7, 2**40]],
            [[99, 10]],
            [[-1, 10]],
            [[79, 10]],
            [[0] + [2] * 60],
            [[0, 1]] * 10_000,
        )
    )
    yield [msgpack.packb(header(body=deep))]
    yield [b"\x91" * 60_000]
    yield [b"\xdd\xff\xff\xff\xff" + bytes(50)]
    yield [b"\xdf\xff\xff\xff\xff" + bytes(50)]
    yield [b"\xc6\xff\xff\xff\xff" + bytes(50)]
    yield [msgpack.packb(header(acks=list(range(30_000))))]
    yield [msgpack.packb(header(job="x" * 60_000))]
    yield [msgpack.packb(header(body={"a" * 1000: ["b"] * 3000}))]
    yield [b"\x82\xa1a\x01\xa1a\x02"]
    yield [msgpack.packb(header()), *([b""] * 5000)]
    keys = np.arange(1_000_000, dtype=np.uint64)
    yield [bytes(f) for f in encode(Message(Kind.REQUEST, job_id, 9, 8, 7, 1, 1, op=Op.DATA, arrays=[keys, keys[:5]]))]


#: Frames that announce as many bytes, and bring five.
HUGE = (2**63 - 1, 2**62, 2**45, 2**40, 2**32, (4 << 30) + 1)


@case(24, "lying sizes", soak=20)
def lying_sizes(seed: int, where: Path) -> Trial:
    """Sizes that are not so are told the scheduler and the server, before messages and in them: they take no memory."""
    random = Random(seed)
    here = ThisMachine()
    with LanesJob(where, here, [here], [here, here]) as job, zmq.Context() as context:
        job.begin(random.choice(TYPES), (1, 100), PSLITE_TRANSPORT="tcp", PSLITE_JOB_ID="lied-to")
        targets = [*job.of("scheduler"), *job.of("server")]
        before = {process: memory(process.popen.pid, "VmHWM") for process in targets}
        for process in targets:
            port = listening_port(process.popen.pid)
            for size in random.sample(HUGE, len(HUGE)):
                hello = zmtp.GREETING + zmtp.frame(zmtp.READY, 4)
                zmtp.say(port, hello + b"\x02" + size.to_bytes(8, "big") + b"short", patience=1.0)
            messages = list(lies(random, "lied-to"))
            random.shuffle(messages)
            for frames in messages:
                with context.socket(zmq.DEALER) as sock:
                    sock.linger = 1000
                    sock.connect(f"tcp://127.0.0.1:{port}")
                    sock.send_multipart(frames)
        job.go_on(10)
        grown = {process.role: memory(process.popen.pid, "VmHWM") - before[process] for process in targets}
        trial = judged(job.end())
        trial.wrong += [f"something surprised it: {process}" for process in targets if "Traceback" in process.stderr]
    trial.wrong += [f"the {role} grew by {more:.0f} MiB" for role, more in grown.items() if more > 50]
    return trial

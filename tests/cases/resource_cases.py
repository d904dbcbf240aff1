"""Cases 18 to 21, 27 and 28: slow peers, and too little memory, descriptors, time and processors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from tests.harness import wait_until
from tests.network import hosts
from tests.network.hosts import NEEDS, Network, Place, ThisMachine
from tests.network.jobs import LanesJob, NetworkJob, memory
from tests.system.jobs import LONGEST, Process, launch

from .case import Trial, case
from .network_cases import TYPES, judged

PROGRAMS = Path(hosts.__file__).parent / "programs"
MIB = 1 << 20


def failures(processes: list[Process]) -> list[str]:
    """What is wrong with processes that should have ended well."""
    return [f"{process}" for process in processes if process.status != 0]


@case(18, "slow peer", soak=10, needs=NEEDS)
def slow_peer(seed: int, where: Path) -> Trial:
    """One server's link has 1 Mbit/s: keys of the other go on, and the worker's memory does not grow."""
    with Network() as network:
        one, two, three = network.hosts(3)
        two.limit("1mbit")
        network.limit_towards(two, "1mbit")
        with NetworkJob(where, one, [one, two], [three]) as job:
            job.start_job(str(PROGRAMS / "slow_peer.py"))
            job.wait()
            trial = Trial(wrong=failures(job.processes))
            [worker] = job.of("worker")
            alone, beside, grown = (int(worker.said(name)) for name in ("alone", "beside", "grown"))
            if worker.said("waiting") == "0":
                trial.wrong.append("the slow server was not slow")
    if beside < alone / 4:  # it would be none; the machine may have other things to do
        trial.wrong.append(f"{beside} rounds beside the slow server, {alone} alone")
    if grown > 32:
        trial.wrong.append(f"the worker grew by {grown} MiB")
    return trial


@case(19, "flood", soak=20)
def flood(seed: int, where: Path) -> Trial:
    """Workers push faster than the server adds: what it has taken in is bounded by three pushes of each key of each."""
    here, times, workers, model = ThisMachine(), 25, 3, 8
    with NetworkJob(where, here, [here], [here] * workers) as job:
        job.start_job(str(PROGRAMS / "flood.py"), str(times), PSLITE_TRANSPORT="tcp")
        [server] = job.of("server")
        for worker in job.of("worker"):
            worker.said("ready")
        before = memory(server.popen.pid)
        most = [before]

        def ended() -> bool:
            most.append(memory(server.popen.pid))
            return server.status is not None

        wait_until(ended, LONGEST, "the end of the server")
        job.wait()
        trial = Trial(wrong=failures(job.processes))
    cap = workers * 3 * model + 2 * model + 32
    assert cap < workers * times * model / 2
    if max(most) - before > cap:
        trial.wrong.append(f"the server grew by {max(most) - before:.0f} MiB")
    return trial


@case(20, "memory exhaustion", soak=30)
def out_of_memory(seed: int, where: Path) -> Trial:
    """A server may not have the memory that it is asked for: who asks gets an error, and what is there stays right.

    Or it cannot begin, and says why.
    """
    random = Random(seed)
    kind, limit = random.choice(["tcp", "shm", "kept"]), random.randrange(40, 900)
    flags = ["--max-restarts", 1] if kind == "kept" else []
    transport = "tcp" if kind == "tcp" else "shm"
    hungry = [sys.executable, PROGRAMS / "hungry.py", limit]
    done = launch("-n", 1, "-s", 1, *flags, *hungry, PSLITE_TRANSPORT=transport, PSLITE_TIMEOUT="20")
    words = f"{limit} MiB, {kind}: {done.stdout}{done.stderr}"
    refused = re.search(r"refused (\d+) (NoMemoryError|KeeperError) ", words)
    unable = re.search(r"error: (NoMemoryError: this process has|KeeperError: beginning a journal)", words)
    trial = Trial()
    if refused is not None:
        if done.returncode != 0 or f"right {refused[1]}" not in words:
            trial.wrong.append(f"a value is wrong, or the job failed: {words}")
    elif done.returncode != 1 or unable is None or limit > 250:
        trial.wrong.append(f"no error came: {words}")
    return trial


class Narrow(ThisMachine):
    """Processes that may have 64 descriptors."""

    def within(self, *command: str) -> list[str]:
        return ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *command]


class BesetJob(LanesJob):
    """Before its worker 1 starts, strangers connect to the scheduler and say nothing."""

    strangers: list[socket.socket]
    beset: float  # when they were there

    def start_one(self, role: str, rank: int, host: Place, command: Sequence[str], env: dict[str, str]) -> None:
        if (role, rank) == ("worker", 1):
            wait_until(self._connects, LONGEST, "the scheduler's port")
            self.strangers = [socket.create_connection((self.root, self.port)) for _ in range(80)]
            self.beset = time.monotonic()
        super().start_one(role, rank, host, command, env)

    def _connects(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self.root, self.port)):
            return True
        return False


@case(21, "descriptors and slow strangers", soak=20)
def silent_connections(seed: int, where: Path) -> Trial:
    """80 silent connections to a scheduler that may have 64 descriptors: a worker that comes then gets in.

    Until the strangers are hung up on, after 2 s, ZeroMQ's thread asks for the next connection again and again.
    """
    here = ThisMachine()
    with BesetJob(where, Narrow(), [here], [here, here]) as job:
        job.begin(Random(seed).choice(TYPES), (1,), PSLITE_TRANSPORT="tcp")
        took = time.monotonic() - job.beset
        job.go_on(3)
        for stranger in job.strangers:
            stranger.close()
        return judged(job.end(), recovery=took)


@case(27, "clock jumps", soak=30)
def clock_jumps(seed: int, where: Path, **env: str) -> Trial:
    """The wall clock of every process jumps twenty times a second."""
    here = ThisMachine()
    with LanesJob(where, here, [here], [here, here]) as job:
        job.through = [str(PROGRAMS / "jumping.py"), str(seed)]
        job.begin(Random(seed).choice(TYPES), (1, 100), PSLITE_TRANSPORT="tcp", **env)
        begin = time.monotonic()
        while time.monotonic() - begin < 2.5:  # 50 jumps
            job.go_on(1)
        return judged(job.end())


@case(27, "death while clocks jump", soak=30)
def death_while_clocks_jump(seed: int, where: Path) -> Trial:
    """It is not missed."""
    random = Random(seed)
    here = ThisMachine()
    with LanesJob(where, here, [here], [here, here]) as job:
        job.through = [str(PROGRAMS / "jumping.py"), str(seed)]
        job.begin("dist_sync", (1, 100), PSLITE_TRANSPORT="tcp")
        begin, lost = time.monotonic(), random.choice([*job.of("worker"), *job.of("server")])
        lost.signal(random.choice([signal.SIGKILL, signal.SIGSTOP]))
        return Trial(detection=job.fail(but=[lost]) - begin)


@contextlib.contextmanager
def burning(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@case(28, "starved processes", soak=20)
def starved(seed: int, where: Path) -> Trial:
    """A worker or the server computes for longer than a dead peer is waited for, and all processors are busy."""
    random = Random(seed)
    here = ThisMachine()
    with NetworkJob(where, here, [here], [here, here]) as job, burning(2 * (os.cpu_count() or 1)):
        arguments = [random.choice(["worker", "server"]), "5", random.choice(TYPES)]
        job.start_job(str(PROGRAMS / "starving.py"), *arguments, PSLITE_TRANSPORT="tcp")
        job.wait()
        return Trial(wrong=failures(job.processes))

"""The rounds of one worker, timed: the same code for this store and for its peers, in whose interpreters it runs.

python run.py mxnet_worker JOB.json RANK     the rounds of a peer's worker
python run.py baseline                       prints the memory of an interpreter with numpy, in bytes
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

WARM_UP, AFTER = 2, 2  # rounds before and after those that count
PERIOD = 4093  # a prime: the values of an array repeat themselves, not in step with anything else


@dataclass(frozen=True)
class Job:
    """What a worker is to do. ``processes``: a file that lists the job's processes, as the launcher writes it."""

    shapes: list[list[int]]
    rows: int  # of a row-sparse table, that a worker pushes; 0 for dense keys
    calls: int  # repetitions in a round
    pushpull: bool  # by one call
    server: str  # none, sgd, mom, adam or 2bit
    type: str
    arrays: str  # plain or empty
    each: bool  # one call for each key
    rounds: int
    workers: int
    busy: bool
    directory: str  # for the results
    processes: str = ""


class Worker(Protocol):
    """What is measured. Only ``call`` is timed."""

    rank: int
    processes: str

    def setup(self) -> None: ...
    def begin(self, number: int) -> None: ...
    def barrier(self) -> None: ...
    def call(self) -> None: ...
    def check(self, number: int) -> None: ...
    def finish(self) -> None: ...


def measure(worker: Worker, job: Job) -> None:
    """Run all rounds and write the result into ``worker-RANK.json`` of the job's directory."""
    watched = _watched(worker)
    seconds, cpu = [], 0.0
    with _busy(job.busy) as clock:
        with _sampled(watched):
            worker.setup()
            for number in range(WARM_UP):
                _round(worker, number, job.calls, clock)
        worker.barrier()
        before = [cpu_seconds(process["pid"]) for process in watched]
        for number in range(WARM_UP, WARM_UP + job.rounds):
            took, used = _round(worker, number, job.calls, clock)
            seconds.append(took)
            cpu += used
        worker.barrier()
        for process, start in zip(watched, before, strict=True):
            process["cpu"] = cpu_seconds(process["pid"]) - start
        with _sampled(watched):
            for number in range(WARM_UP + job.rounds, WARM_UP + job.rounds + AFTER):
                _round(worker, number, job.calls, clock)
    watched[0]["cpu"] = cpu  # of a worker only what the rounds took: it also checks its values
    result = {"rank": worker.rank, "rounds": seconds, "processes": watched}
    Path(job.directory, f"worker-{worker.rank}.json").write_text(json.dumps(result))
    worker.barrier()
    worker.finish()


def _round(worker: Worker, number: int, calls: int, clock: _Clock) -> tuple[float, float]:
    """Seconds of a round, the median of its calls, and CPU seconds of all its calls."""
    worker.begin(number)
    worker.barrier()
    used, seconds = clock.read(), []
    for _ in range(calls):
        start = time.perf_counter()
        worker.call()
        seconds.append(time.perf_counter() - start)
    used = clock.read() - used
    worker.check(number)
    return statistics.median(seconds), used


# -- what processes use -----------------------------------------------------------------------------------------------


def _watched(worker: Worker) -> list[dict[str, Any]]:
    """This process; at rank 0 also those that are not workers."""
    found = [{"role": "worker", "rank": worker.rank, "pid": os.getpid(), "pss": 0}]
    if worker.rank == 0 and worker.processes:
        listed = json.loads(Path(worker.processes).read_text())
        found += [{k: p[k] for k in ("role", "rank", "pid")} | {"pss": 0} for p in listed if p["role"] != "worker"]
    return found


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, to the nanosecond: its clock is numbered as by clock_getcpuclockid(3)."""
    return time.clock_gettime((~pid << 3) | 2)


def pss(pid: int | str) -> int:
    """Bytes of a process's memory, pages that it shares divided by those who share them; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) * 1024


@contextmanager
def _sampled(processes: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Note the largest memory of each. Not while rounds are timed: reading it stops the process for milliseconds."""
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.005):
            for process in processes:
                process["pss"] = max(process["pss"], pss(process["pid"]))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class _Clock:
    """CPU seconds of this process without those of one thread."""

    def __init__(self, other: threading.Thread | None) -> None:
        self._other = None if other is None else time.pthread_getcpuclockid(other.ident or 0)

    def read(self) -> float:
        return time.process_time() - (0.0 if self._other is None else time.clock_gettime(self._other))


@contextmanager
def _busy(wanted: bool) -> Iterator[_Clock]:
    """A thread that computes in pure Python meanwhile, if wanted; its CPU seconds are not the store's."""
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute) if wanted else None
    if thread:
        thread.start()
    try:
        yield _Clock(thread)
    finally:
        stop.set()
        if thread:
            thread.join()


# -- what is pushed ---------------------------------------------------------------------------------------------------


def table() -> Any:
    """PERIOD values, normally distributed, in sixteenths: small sums of them are exact."""
    return (np.round(np.random.RandomState(0).standard_normal(PERIOD) * 16) / 16).astype(np.float32)


def row_ids(job: Job, rank: int) -> Any:
    """The rows that a worker pushes and pulls: ascending, each once."""
    ids = np.random.RandomState(rank).choice(job.shapes[0][0], job.rows, replace=False)
    return np.sort(ids).astype(np.int64)


def main(words: list[str]) -> None:
    """Run what the command line says."""
    if words == ["baseline"]:
        sys.stdout.write(f"{pss('self')}\n")
        return
    module, path, rank = words
    job = Job(**json.loads(Path(path).read_text()))
    measure(importlib.import_module(module).Worker(job, int(rank), sys.modules[__name__]), job)


if __name__ == "__main__":
    main(sys.argv[1:])

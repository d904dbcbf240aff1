"""A process of a tormented job: ``python -m kvstore.chaos.worker DIRECTORY``, in every role.

The directory holds ``job.json``, the ledger, and what processes leave: their pids, the violations that workers saw,
and the values at the end.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import kvstore
from kvstore import Handle, KVStore
from kvstore.handle import together
from pslite import Config

from . import lanes
from .lanes import Array
from .ledger import Ledger, Numbers

_ADD = "kvstore.chaos.add"  # the name of the updater
STACKS = signal.SIGUSR2  # has a process write the stacks of all its threads to stderr
_UNDER_WAY = 2  # steps of an asynchronous job without an answer
_PULL_EVERY = 3  # steps of an asynchronous job
_AHEAD = 4  # steps that a worker may at most be ahead of rank 0, and one


@dataclass(frozen=True)
class Job:
    """What the processes of a job must know. ``sizes``: elements of each key, multiples of ``lanes.width(workers)``.

    ``barrier_every``: steps between barriers of a synchronous job; 0 for none.
    """

    type: str
    workers: int
    sizes: tuple[int, ...]
    barrier_every: int = 0

    def write(self, directory: Path) -> Ledger:
        """Prepare a directory for the job."""
        (directory / "job.json").write_text(json.dumps(asdict(self)))
        return self.ledger(directory)

    def ledger(self, directory: Path) -> Ledger:
        """The job's ledger."""
        return Ledger(directory / "ledger", self.workers, len(self.sizes))

    @classmethod
    def read(cls, directory: Path) -> Job:
        """The job of a directory."""
        return cls(**json.loads((directory / "job.json").read_text()))


@kvstore.updater(_ADD)
def add(key: Any, received: Array, stored: Array) -> None:
    """Servers add what is pushed."""
    stored += received


class Worker:
    """Pushes its lanes until it is told to stop, and compares what it pulls with the ledger."""

    def __init__(self, kv: KVStore, job: Job, directory: Path) -> None:
        self._kv, self._job, self._directory = kv, job, directory
        self._ledger = job.ledger(directory)
        self._keys = [f"key{index}" for index in range(len(job.sizes))]
        self._outs = [np.zeros(size) for size in job.sizes]
        self._under_way: deque[tuple[int, Handle]] = deque()  # steps and their pushes
        self._seen = np.zeros((len(self._keys), job.workers), np.int64)  # the counts of the last pull

    def run(self) -> None:
        """From the first push to the comparison of the last values."""
        self._kv.set_updater(_ADD)
        self._kv.init(self._keys, self._outs)
        again = int(self._mine[0].max())  # steps that an earlier process of this rank has begun
        self._pull(None)
        in_step = self._job.type == "dist_sync"
        step = self._kv.start_step
        while not self._done(step, in_step):
            step += 1
            self._push(step)
            self._answer(0 if in_step else _UNDER_WAY)
            if in_step or step % _PULL_EVERY == 0:
                self._pull(step if in_step and step > again else None)
            if in_step and self._job.barrier_every and step % self._job.barrier_every == 0:
                self._kv.barrier()
            self._kv.step()
        self._answer(0)
        self._kv.barrier()
        self._pull(None)
        np.savez(self._directory / f"final-{self._kv.rank}.npz", *self._outs)

    @property
    def _mine(self) -> tuple[Numbers, Numbers]:
        rank = self._kv.rank
        return self._ledger.attempted(rank), self._ledger.acked(rank)

    def _done(self, step: int, in_step: bool) -> bool:
        if not in_step:
            return self._ledger.stop
        if self._kv.rank == 0 and self._ledger.stop and not self._ledger.last:
            self._ledger.last = step + _AHEAD
        return 0 < self._ledger.last <= step

    def _push(self, step: int) -> None:
        """As one list, or call by call: these take different ways."""
        values = [lanes.contribution(self._job.workers, self._kv.rank, step, size) for size in self._job.sizes]
        np.maximum(self._mine[0], step, out=self._mine[0])
        if step % 2:
            handles = [self._kv.push(self._keys, values)]
        else:
            handles = [self._kv.push(key, value) for key, value in zip(self._keys, values, strict=True)]
        self._under_way.append((step, together(handles)))

    def _answer(self, rest: int) -> None:
        """Wait until so many steps are without an answer."""
        while len(self._under_way) > rest:
            step, pushes = self._under_way.popleft()
            pushes.wait()
            np.maximum(self._mine[1], step, out=self._mine[1])

    def _pull(self, step: int | None) -> None:
        """Compare all lanes: with those in step they all are at ``step``."""
        ranks = range(self._job.workers)
        acked = np.array([self._ledger.acked(rank) for rank in ranks])
        self._kv.pull(self._keys, out=self._outs)
        attempted = np.array([self._ledger.attempted(rank) for rank in ranks])
        for index, value in enumerate(self._outs):
            if lanes.torn(value, self._job.workers):
                self._complain(f"key {index}: a mixture of two versions")
            for rank in ranks:
                least, most = (acked[rank, index], attempted[rank, index]) if step is None else (step, step)
                least = max(int(least), int(self._seen[index, rank]))
                verdict = lanes.judge(value, self._job.workers, rank, least, int(most))
                if verdict.text:
                    self._complain(f"key {index} as worker {self._kv.rank} pulled it: {verdict.text}")
                self._seen[index, rank] = lanes.count(value, rank)

    def _complain(self, text: str) -> None:
        with open(self._directory / f"violations-{self._kv.rank}", "a") as file:
            file.write(text + "\n")


def main(argv: Sequence[str]) -> int:
    """Serve, or work until told to stop."""
    faulthandler.register(STACKS, all_threads=True)
    directory = Path(argv[0])
    config = Config.from_env()
    note = directory / f"{config.role}{config.rank or 0}.pid"
    note.with_suffix(".new").write_text(str(os.getpid()))
    note.with_suffix(".new").rename(note)
    kvstore.serve()
    job = Job.read(directory)
    with kvstore.create(job.type) as kv:
        try:
            Worker(kv, job, directory).run()
        except kvstore.PSError:
            job.ledger(directory).fail(kv.rank, time.monotonic())
            raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A worker of MXNet's distributed KVStore that pushes lanes: ``PYTHON mxnet_worker.py DIRECTORY``.

It runs in MXNet's interpreter, where this project is not: of it there are only the oracle and the ledger, as files.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

AHEAD = 4  # steps that a worker may at most be ahead of rank 0, and one


class Worker:
    """Pushes its lanes until it is told to stop, and compares what it pulls with the ledger."""

    def __init__(self, mxnet: Any, kv: Any, job: dict[str, Any], directory: Path) -> None:
        sys.path.append(str(Path(__file__).resolve().parent.parent))
        self._lanes: Any = importlib.import_module("lanes")
        ledger: Any = importlib.import_module("ledger")
        self._nd, self._kv, self._directory = mxnet.nd, kv, directory
        self._rank, self._workers, self._sizes = kv.rank, job["workers"], job["sizes"]
        self._in_step = job["type"] == "dist_sync"
        self.ledger = ledger.Ledger(directory / "ledger", self._workers, len(self._sizes))
        self._attempted, self._acked = self.ledger.attempted(kv.rank), self.ledger.acked(kv.rank)
        self._outs = [self._nd.zeros((size,), dtype="float64") for size in self._sizes]

    def run(self) -> None:
        """From the first push to the comparison of the last values."""
        for key, out in enumerate(self._outs):
            self._kv.init(str(key), out)
        self._pull()
        # What an earlier process of this rank had under way is in by now, or never will be: go on behind it.
        self._attempted[:] = self._acked[:] = [self._lanes.count(out.asnumpy(), self._rank) for out in self._outs]
        while not self._done():
            self._push()
            self._compare()
        self._kv._barrier()
        self._pull()
        np.savez(self._directory / f"final-{self._rank}.npz", *(out.asnumpy() for out in self._outs))

    def _done(self) -> bool:
        if not self._in_step:
            return bool(self.ledger.stop)
        step = int(self._acked.min())
        if self._rank == 0 and self.ledger.stop and not self.ledger.last:
            self.ledger.last = step + AHEAD
        return bool(0 < self.ledger.last <= step)

    def _push(self) -> None:
        """A push has no end of its own; it is done when a pull behind it is."""
        self._attempted[:] += 1
        for key, (size, number) in enumerate(zip(self._sizes, self._attempted.tolist(), strict=True)):
            lanes = self._lanes.contribution(self._workers, self._rank, number, size)
            self._kv.push(str(key), self._nd.array(lanes, dtype="float64"), priority=-key)

    def _pull(self) -> None:
        for key, out in enumerate(self._outs):
            self._kv.pull(str(key), out, priority=-key)
        for out in self._outs:
            out.wait_to_read()

    def _compare(self) -> None:
        acked = np.array([self.ledger.acked(rank) for rank in range(self._workers)])
        self._pull()
        self._acked[:] = self._attempted
        attempted = np.array([self.ledger.attempted(rank) for rank in range(self._workers)])
        for index, out in enumerate(self._outs):
            value = out.asnumpy()
            for rank in range(self._workers):
                bounds = int(acked[rank, index]), int(attempted[rank, index])
                verdict = self._lanes.judge(value, self._workers, rank, *bounds)
                if verdict.text:
                    with open(self._directory / f"violations-{self._rank}", "a") as file:
                        file.write(f"key {index} as worker {self._rank} pulled it: {verdict.text}\n")


def main(directory: Path) -> None:
    """Work until told to stop."""
    import mxnet

    job = json.loads((directory / "job.json").read_text())
    kv: Any = mxnet.kv.create(job["type"])
    note = directory / f"worker{kv.rank}.pid"
    note.with_suffix(".new").write_text(str(os.getpid()))
    note.with_suffix(".new").rename(note)
    kv.set_optimizer(mxnet.optimizer.create("test"))  # servers add what is pushed
    worker = Worker(mxnet, kv, job, directory)
    try:
        worker.run()
    except mxnet.MXNetError:
        worker.ledger.fail(kv.rank, time.monotonic())
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))

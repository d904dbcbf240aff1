"""One process of a measured job of this store: ``python -m kvstore.bench.ours JOB.json``, under the launcher."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kvstore
from kvstore import KVStore, sparse
from pslite import Config

from .expected import ADAM_RATE, MOMENTUM, RATE, THRESHOLD, Model, WrongValue
from .peers.run import WARM_UP, Job, measure, row_ids, table


class _Store:
    """A worker's store, and the parts of ``peers.run.Worker`` that do not depend on the kind of keys."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._kv: KVStore = kvstore.create(job.type)
        self.rank = self._kv.rank
        self.processes = str(Path(Config.from_env().job_dir, "processes.json"))
        self._pushes = 0  # how often every worker has pushed
        self._in_step = job.type != "dist_async"

    def barrier(self) -> None:
        self._kv.barrier()

    def _set_rule(self) -> None:
        if self._job.server == "2bit":
            self._kv.set_gradient_compression({"type": "2bit", "threshold": THRESHOLD})
        elif self._job.server == "adam":
            self._kv.set_optimizer(kvstore.optimizer.create("adam", learning_rate=ADAM_RATE))
        elif self._job.server != "none":
            momentum = MOMENTUM if self._job.server == "mom" else 0.0
            self._kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=RATE, momentum=momentum))


class Dense(_Store):
    """Pushes and pulls all keys of a workload in a round."""

    def setup(self) -> None:
        shapes = [tuple(shape) for shape in self._job.shapes]
        self._values, self._outs = self._arrays(shapes), self._arrays(shapes)
        self._scales = [1.0 + rank if self._in_step else 1.0 for rank in range(self._job.workers)]
        filling = table() * np.float32(self._scales[self.rank])
        for value, out in zip(self._values, self._outs, strict=True):
            value.reshape(-1)[:] = np.resize(filling, value.size)
            out.fill(0)
        self._model = Model(self._job.server, self._scales, self._in_step)
        self._keys = [str(key) for key in range(len(shapes))]
        self._set_rule()
        self._kv.init(self._keys, self._outs)

    def _arrays(self, shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        kv: Any = self._kv
        make = kv.empty if self._job.arrays == "empty" else np.empty
        return [make(shape, np.float32) for shape in shapes]

    def begin(self, number: int) -> None:
        self._mark = number + 1.0 if self._in_step else 1.0
        for value in self._values:
            value.reshape(-1)[0] = self._mark * self._scales[self.rank]

    def call(self) -> None:
        if self._job.pushpull:
            self._kv.pushpull(self._keys, self._values, out=self._outs)
        elif self._job.each:
            for key, value in enumerate(self._values):
                self._kv.push(self._keys[key], value, priority=-key)
            handles = [
                self._kv.pull(self._keys[key], out=out, priority=-key, wait=False) for key, out in enumerate(self._outs)
            ]
            for handle in handles:
                handle.wait()
        else:
            self._kv.push(self._keys, self._values)
            self._kv.pull(self._keys, out=self._outs)

    def check(self, number: int) -> None:
        for _ in range(self._job.calls):
            self._model.step(self._mark)
        if self._in_step:  # else others may be a round behind
            self._model.compare(self._outs, whole=number == WARM_UP - 1)

    def finish(self) -> None:
        self._kv.pull(self._keys, out=self._outs)
        self._model.compare(self._outs, whole=True)
        self._kv.close()


class Sparse(_Store):
    """Pushes and pulls some rows of a table in a round."""

    def setup(self) -> None:
        shape = tuple(self._job.shapes[0])
        self._set_rule()
        self._kv.init("table", sparse.from_dense(np.ones(shape, np.float32)))
        self._ids = row_ids(self._job, self.rank)
        self._value = sparse.row_sparse_array((np.ones((len(self._ids), *shape[1:]), np.float32), self._ids), shape)
        self._out = sparse.zeros(shape)
        everybody = np.concatenate([row_ids(self._job, rank) for rank in range(self._job.workers)])
        self._sums = np.bincount(everybody, minlength=shape[0])[self._ids]  # by one round, in each row

    def begin(self, number: int) -> None:
        pass

    def call(self) -> None:
        self._kv.push("table", self._value)
        self._kv.row_sparse_pull("table", out=self._out, row_ids=self._ids)

    def check(self, number: int) -> None:
        self._pushes += 1
        if self._in_step:
            self._compare()

    def _compare(self) -> None:
        expected = 1 - RATE * self._pushes * self._sums
        right = np.isclose(self._out.data, expected[:, None], rtol=1e-4, atol=1e-5).all(axis=1)
        if not np.array_equal(self._out.indices, self._ids) or not right.all():
            raise WrongValue(f"{np.count_nonzero(~right)} of {len(self._ids)} rows are not what they must be")

    def finish(self) -> None:
        self._kv.row_sparse_pull("table", out=self._out, row_ids=self._ids)
        self._compare()
        self._kv.close()


def main(words: Sequence[str]) -> None:
    """Run this process's part of the job."""
    kvstore.serve()
    job = Job(**json.loads(Path(words[0]).read_text()))
    measure(Sparse(job) if job.rows else Dense(job), job)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A worker of MXNet's distributed KVStore: key by key, with the priorities that its API asks for."""

from __future__ import annotations

from typing import Any


class Worker:
    """Pushes and pulls all keys in a round; see ``run.Worker``."""

    def __init__(self, job: Any, rank: int, run: Any) -> None:
        import mxnet

        self._mx: Any = mxnet
        self._job, self._run = job, run
        self._kv = mxnet.kv.create(job.type)
        self.rank = self._kv.rank
        self.processes = job.processes

    def setup(self) -> None:
        (self._setup_rows if self._job.rows else self._setup_dense)()

    def _setup_dense(self) -> None:
        nd, np, job = self._mx.nd, self._run.np, self._job
        if job.server == "2bit":
            self._kv.set_gradient_compression({"type": "2bit", "threshold": 0.5})
        self._outs = [nd.zeros(tuple(shape)) for shape in job.shapes]
        for key, out in enumerate(self._outs):
            self._kv.init(str(key), out)
        self._set_optimizer()
        table = self._run.table() * (self.rank + 1)
        self._values = [nd.array(np.resize(table, out.shape)) for out in self._outs]

    def _setup_rows(self) -> None:
        nd, np = self._mx.nd, self._run.np
        shape = tuple(self._job.shapes[0])
        every = nd.array(np.arange(shape[0]), dtype="int64")
        self._kv.init("table", nd.sparse.row_sparse_array((nd.ones(shape), every), shape=shape))
        self._set_optimizer()
        ids = self._run.row_ids(self._job, self.rank)
        self._value = nd.sparse.row_sparse_array((nd.ones((len(ids), *shape[1:])), ids), shape=shape)
        self._ids = nd.array(ids, dtype="int64")
        self._outs = [nd.sparse.zeros("row_sparse", shape)]

    def _set_optimizer(self) -> None:
        optimizer = self._mx.optimizer
        if self._job.server in ("sgd", "mom"):
            self._kv.set_optimizer(optimizer.SGD(learning_rate=0.1, momentum=0.9 * (self._job.server == "mom")))
        elif self._job.server == "adam":
            self._kv.set_optimizer(optimizer.Adam(learning_rate=0.001))

    def begin(self, number: int) -> None:
        self._mx.nd.waitall()

    def barrier(self) -> None:
        self._kv._barrier()

    def call(self) -> None:
        if self._job.rows:
            self._kv.push("table", self._value)
            self._kv.row_sparse_pull("table", out=self._outs[0], row_ids=self._ids)
        else:
            for key, value in enumerate(self._values):
                self._kv.push(str(key), value, -key)
            for key, out in enumerate(self._outs):
                self._kv.pull(str(key), out, -key)
        for out in self._outs:
            out.wait_to_read()

    def check(self, number: int) -> None:
        pass

    def finish(self) -> None:
        pass

"""A process of MPI: Allreduce of one flat array."""

from __future__ import annotations

from typing import Any


class Worker:
    """Sums all arrays over the processes in a round; see ``run.Worker``."""

    processes = ""

    def __init__(self, job: Any, rank: int, run: Any) -> None:
        from mpi4py import MPI

        self._comm: Any = MPI.COMM_WORLD
        self.rank = self._comm.rank
        size = sum(run.np.prod(shape, dtype=int) for shape in job.shapes)
        self._value = run.np.resize(run.table(), size)
        self._out = run.np.empty_like(self._value)

    def setup(self) -> None:
        pass

    def begin(self, number: int) -> None:
        pass

    def barrier(self) -> None:
        self._comm.Barrier()

    def call(self) -> None:
        self._comm.Allreduce(self._value, self._out)

    def check(self, number: int) -> None:
        pass

    def finish(self) -> None:
        pass

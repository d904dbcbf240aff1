"""A process of PyTorch's gloo: all-reduce of one flat tensor in buckets of 25 MB, as DistributedDataParallel does."""

from __future__ import annotations

from typing import Any

BUCKET = 25 * 1024 * 256  # floats


class Worker:
    """Sums all arrays over the processes in a round; see ``run.Worker``."""

    processes = ""

    def __init__(self, job: Any, rank: int, run: Any) -> None:
        import torch
        import torch.distributed

        torch.set_num_threads(1)
        self._dist: Any = torch.distributed
        store = f"file://{job.directory}/store"  # a file: no port that somebody else might take
        self._dist.init_process_group("gloo", init_method=store, rank=rank, world_size=job.workers)
        self.rank = rank
        size = sum(run.np.prod(shape, dtype=int) for shape in job.shapes)
        self._value: Any = torch.from_numpy(run.np.resize(run.table(), size))

    def setup(self) -> None:
        self._flat = self._value.clone()

    def begin(self, number: int) -> None:
        self._flat.copy_(self._value)  # the sums of the last round are in there

    def barrier(self) -> None:
        self._dist.barrier()

    def call(self) -> None:
        for work in [self._dist.all_reduce(part, async_op=True) for part in self._flat.split(BUCKET)]:
            work.wait()

    def check(self, number: int) -> None:
        pass

    def finish(self) -> None:
        self._dist.destroy_process_group()

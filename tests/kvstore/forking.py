"""Scripts of jobs that fork after create(); run as a program: ``forking.py dataloader|fork``."""

from __future__ import annotations

import os
import sys
from typing import Any

import kvstore

if __name__ == "__main__":
    kvstore.serve()

import numpy as np


def dataloader(kv: kvstore.KVStore) -> None:
    """A torch DataLoader whose processes use the store's copy once, which must raise, and otherwise do not touch it."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Samples(Dataset[Any]):
        def __len__(self) -> int:
            return 24

        def __getitem__(self, index: int) -> Any:
            try:
                kv.pull("w")
            except kvstore.ForkError as error:
                assert "the parent only" in str(error)
                return torch.full((3,), float(index))
            raise AssertionError("the copy in a forked child was usable")

    kv.init("w", np.zeros(3, np.float32))
    for epoch in range(2):
        kv.push("w", np.ones(3, np.float32))  # in flight while the loader forks
        for batch in DataLoader(Samples(), batch_size=4, num_workers=2, multiprocessing_context="fork"):
            value = batch.sum(0)
            expected = float(value[0]) * kv.num_workers
            kv.pushpull("w", value)
            assert value.tolist() == [expected] * 3, (epoch, value)
    sys.stdout.write("fine\n")


def fork(kv: kvstore.KVStore) -> None:
    """A child that raises, closes and ends in each way; the parent and the other workers do not notice."""
    kv.init("w", np.zeros(3))
    for ending in ("raise", "close", "with", "exit"):
        handle = kv.push("w", np.ones(3))
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            child(kv, handle, ending)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == (1 if ending in ("raise", "with") else 0), (ending, status)
        out = np.zeros(3)
        kv.pushpull("w", np.ones(3), out=out)
        assert out[0] == kv.num_workers
    sys.stdout.write("fine\n")


def child(kv: kvstore.KVStore, handle: kvstore.Handle, ending: str) -> None:
    for call in (lambda: kv.push("w", np.ones(3)), lambda: kv.init("v", np.ones(3)), kv.barrier, kv.close):
        try:
            call()
        except kvstore.ForkError:
            continue
        os._exit(3)
    if ending == "raise":
        os.close(2)  # its traceback is none of the test's
        raise LookupError("the child's own")
    if ending == "with":
        os.close(2)
        with kv:
            raise LookupError("the child's own")
    sys.exit()  # runs the hooks of the end; an uncaught exception above does, too


if __name__ == "__main__":
    with kvstore.create("dist_sync") as store:
        (dataloader if sys.argv[1] == "dataloader" else fork)(store)

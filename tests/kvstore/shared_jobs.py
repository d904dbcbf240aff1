"""A job over ipc in one directory, all of it in this process: its processes share memory as real ones do."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from kvstore.base import KVStore
from kvstore.p3 import open_store
from kvstore.server.hosting import serve
from kvstore.server.service import Service
from pslite import Config, Postoffice, run_all
from pslite.van.shared import available

on_shared_memory = [
    pytest.mark.sockets,
    pytest.mark.skipif(not available(), reason="needs sealed memory: Linux since 5.1"),
]
LARGE = (512, 256)  # of float32: half a MiB
SPLIT, WHOLE = 1000, 10**9  # bounds: an array of LARGE is cut over the servers with the first


class Job:
    """``stores`` by rank; ``run(work)`` calls ``work(kv)`` in a thread for each worker. It ends with ``with``."""

    def __init__(self, directory: Path, type: str = "dist_async", workers: int = 2, servers: int = 1,
                 **settings: Any) -> None:  # fmt: skip
        root = f"ipc://{directory}/scheduler.sock"
        places = [
            ("scheduler", None),
            *(("server", r) for r in range(servers)),
            *(("worker", r) for r in range(workers)),
        ]
        options = {"timeout": 20.0, "bigarray_bound": WHOLE, **settings}
        self.offices = [
            Postoffice(Config(role, workers, servers, root, rank=rank, job="shared", job_dir=str(directory), **options))
            for role, rank in places
        ]
        self.servers, self.workers = self.offices[1 : 1 + servers], self.offices[1 + servers :]
        self._type = type
        self._serving = [
            threading.Thread(target=serve, args=(office,), daemon=True) for office in self.offices[: 1 + servers]
        ]

    def __enter__(self) -> Job:
        for thread in self._serving:
            thread.start()
        run_all([office.start for office in self.workers])
        self.stores: list[KVStore] = run_all([partial(open_store, self._type, office) for office in self.workers])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.run(lambda kv: kv.close())
            for thread in self._serving:
                thread.join(10)
        for office in reversed(self.offices):
            office.close()
        for thread in self._serving:
            thread.join(10)
        self.stores.clear()
        self.offices.clear()
        self.servers.clear()
        self.workers.clear()
        gc.collect()  # memory that cycles hold is mapped

    def run(self, *work: Callable[[Any], Any]) -> list[Any]:
        """One for all workers, or one for each."""
        each = work * len(self.stores) if len(work) == 1 else work
        return run_all([partial(fn, kv) for fn, kv in zip(each, self.stores, strict=True)])


def service(office: Postoffice) -> Service:
    """What a server of this process runs."""
    [found] = [thing for thing in gc.get_objects() if isinstance(thing, Service) and thing._office is office]
    return found


def full(number: float, dtype: Any = "float32") -> Any:
    return np.full(LARGE, number, dtype)


def same(array: Any) -> float:
    """The one number that all elements of an array are."""
    assert (array == array.flat[0]).all(), np.unique(array)
    return float(array.flat[0])

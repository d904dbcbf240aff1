"""Jobs come and go, each with sockets, shared memory and threads: nothing stays of them."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from kvstore.base import KVStore
from pslite import run_all
from tests.kvstore.shared_jobs import Job, on_shared_memory

pytestmark = on_shared_memory

CYCLES = int(os.environ.get("LIFE_CYCLES", 40))  # 200 in a soak


def held() -> dict[str, int]:
    """What this process has open by now."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "shared memory": maps.count("memfd:"),
    }


def work(kv: KVStore) -> None:
    kv.init("large", np.zeros((512, 256), np.float32))
    kv.init("small", np.zeros(4, np.float32))
    for _ in range(2):
        kv.push(["large", "small"], [np.ones((512, 256), np.float32), np.ones(4, np.float32)])
        kv.pull(["large", "small"])


@pytest.mark.timeout(240)
def test_jobs_that_have_ended_leave_nothing(tmp_path: Path) -> None:
    before: dict[str, int] = {}
    for cycle in range(CYCLES):
        directory = tmp_path / str(cycle)
        directory.mkdir(mode=0o700)
        with Job(directory, "dist_sync" if cycle % 2 else "dist_async") as job:
            run_all([lambda kv=kv: work(kv) for kv in job.stores])
            if cycle % 4 < 2:  # else they are not closed by those who use them
                run_all([kv.close for kv in job.stores])
        assert not [path for path in directory.iterdir() if path.suffix == ".sock"], "sockets are left"
        del job
        if cycle == 4:  # what is made once is there by now
            before = held()
    after = held()
    assert {name: count for name, count in after.items() if count > before[name]} == {}, (before, after)

"""Workers push faster than the server adds; each pushes every key as often as the argument says."""

import sys
import threading

import kvstore

KEYS = [f"key{index}" for index in range(8)]
SIZE = 1 << 17  # 1 MiB of float64


@kvstore.updater("slowly")
def slowly(key, received, stored):
    threading.Event().wait(0.004)
    stored += received


kvstore.serve()

import numpy as np

times = int(sys.argv[1])
with kvstore.create("dist_async") as kv:
    kv.set_updater("slowly")
    kv.init(KEYS, [np.zeros(SIZE)] * len(KEYS))
    kv.barrier()
    print("ready", kv.rank, flush=True)
    for _ in range(times):
        for key in KEYS:
            kv.push(key, np.ones(SIZE))
    kv.barrier()
    assert all((kv.pull(key) == times * kv.num_workers).all() for key in KEYS)
    print("right", kv.rank, flush=True)

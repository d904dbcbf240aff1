"""Says how it reaches the servers, pushes what it shares, and, given a file, waits for it."""

import logging
import os
import sys
import threading

import kvstore

kvstore.serve()

import numpy as np

N = 1_000_000
logging.basicConfig(level=logging.INFO)
with kvstore.create("dist_async") as kv:
    kv.init(["a", "b"], [np.zeros(N, np.float32), np.zeros(10, np.float32)])
    print("rank", kv.rank, flush=True)
    print("reached", *sorted(set(kv.stats()["transport"].values())), flush=True)
    mine = kv.zeros(N)
    mine += 1
    kv.push(["a", "b"], [mine, np.ones(10, np.float32)]).wait()
    kv.barrier()
    assert (kv.pull("a") == 1).all()
    if len(sys.argv) > 1:
        print("ready", 1, flush=True)
        pause = threading.Event()
        while not os.path.exists(sys.argv[1]):
            pause.wait(0.02)
        mine += 1  # still there, and writable
        kv.push("a", mine).wait()
        print("pulled", kv.pull("a")[-1], flush=True)

"""Workers push while one of them, or the server, computes for seconds in C and lets no other thread run."""

import sys
import time

import kvstore
import numpy as np

SIZE = 1000
STEPS = 6


def compute(seconds):
    """In one call, which holds the interpreter all the time."""
    begin = time.monotonic()
    sum(range(2_000_000))
    each = (time.monotonic() - begin) / 2_000_000
    sum(range(int(seconds / each)))


who, seconds = sys.argv[1], float(sys.argv[2])


@kvstore.updater("slowly")
def slowly(key, received, stored):
    if who == "server" and stored[0] == STEPS // 2:
        compute(seconds)
    stored += received


kvstore.serve()

with kvstore.create(sys.argv[3]) as kv:
    kv.set_updater("slowly")
    kv.init("w", np.zeros(SIZE))
    for step in range(STEPS):
        if who == "worker" and kv.rank == 1 and step == STEPS // 2:
            compute(seconds)
        kv.push("w", np.ones(SIZE))
        kv.pull("w")
    kv.barrier()
    assert (kv.pull("w") == STEPS * kv.num_workers).all()
    print("right", kv.rank, flush=True)

"""Every worker pushpulls one large key; the argument is its number of bytes."""

import sys

import kvstore

kvstore.serve()

import numpy as np

size = int(sys.argv[1]) // 4
with kvstore.create("dist_sync") as kv:
    kv.init("w", np.zeros(size, np.float32))
    mine = np.arange(size, dtype=np.float32) * (kv.rank + 1)
    out = np.empty(size, np.float32)
    kv.pushpull("w", mine, out=out)
    total = sum(range(1, kv.num_workers + 1))
    assert np.array_equal(out, np.arange(size, dtype=np.float32) * total), out
    print("pulled", out.nbytes, flush=True)

"""Workers count together, each at its own pace: an updater of your own runs on the servers and no push is lost.

python -m launcher -n 4 -s 2 python examples/async_counter.py
"""

import kvstore


@kvstore.updater("add")  # above serve(), so that the servers know it too
def add(key, received, stored):
    stored += received


kvstore.serve()  # a server or the scheduler serves here and exits; only workers go on

import numpy as np

with kvstore.create("dist_async") as kv:
    kv.set_updater(add)
    kv.init("count", np.zeros(1, np.int64))
    for _ in range(100 * (kv.rank + 1)):
        kv.push("count", np.ones(1, np.int64))
    kv.pull("count")  # returns when this worker's pushes are in
    kv.barrier()
    if kv.rank == 0:
        print(f"{kv.num_workers} workers counted to {kv.pull('count')[0]}")

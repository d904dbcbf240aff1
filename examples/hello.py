"""Every worker pushes its rank + 1; dist_sync returns the sum to all, dist_async whatever arrived last.

python -m launcher -n 4 -s 2 python examples/hello.py dist_sync
"""

import sys

import kvstore

kvstore.serve()  # a server or the scheduler serves here and exits; only workers go on

import numpy as np

with kvstore.create(sys.argv[1] if len(sys.argv) > 1 else "local") as kv:
    kv.init("total", np.zeros(3, np.float32))
    kv.push("total", np.full(3, kv.rank + 1, np.float32))
    print(f"worker {kv.rank} of {kv.num_workers} pulls {kv.pull('total')}")

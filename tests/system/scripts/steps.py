"""Each worker pushes its rank + 1 to two keys, step by step. Arguments: type, steps, then what happens where.

``RANK:STEP:SIGNAL`` sends this process a signal between its pushes of the two keys, the first time that it is there.
"""

from __future__ import annotations

import os
import signal
import sys

import kvstore
import numpy as np

kvstore.serve()
kind, steps, *events = sys.argv[1:]
kv = kvstore.create(kind)
kv.init(["a", "b"], [np.zeros(1000)] * 2)
if "async" in kind:
    kv.set_optimizer(kvstore.optimizer.create("test"))
own = np.full(1000, kv.rank + 1.0)
for step in range(kv.start_step, int(steps)):
    kv.push("a", own)
    for event in events:
        rank, when, signum = event.split(":")
        if (int(rank), int(when)) == (kv.rank, step) and "PSLITE_RESTARTS" not in os.environ:
            os.kill(os.getpid(), signal.Signals[signum])
    kv.push("b", own)
    kv.pull(["a", "b"])
    kv.step()
kv.barrier()
a, b = kv.pull(["a", "b"])
print(f"rank {kv.rank} began with {kv.start_step}, ranks {kv.live_ranks}: {a[0]:g} {b[0]:g}", flush=True)
kv.close()

"""Trains until so many workers have taken part for five steps. Usage: elastic.py WORKERS"""

import kvstore

kvstore.serve()

import sys

import numpy as np

workers = int(sys.argv[1])
kv = kvstore.create("dist_sync")
kv.set_optimizer(kvstore.optimizer.create("test"))  # adds what is pushed
kv.init("w", np.zeros(1, np.float32))
value, expected, last = kv.pull("w"), 0.0, None
for step in range(kv.start_step, sys.maxsize):
    expected = expected or float(value[0])
    if last is None and kv.num_workers == workers:
        last = step + 5
    if step == last:
        break
    kv.push("w", np.ones(1, np.float32))
    expected += kv.num_workers
    kv.pull("w", out=value)
    assert value[0] == expected, (step, value, expected)
    kv.step()
print(f"rank {kv.rank} began with {kv.start_step}, ranks {kv.live_ranks}: {value[0]:g} in {last}", flush=True)
kv.close()

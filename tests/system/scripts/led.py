"""Worker 0 is killed; those that are left make keys, set an optimizer, save and load: ``led.py DIRECTORY``."""

import os
import signal
import sys

import kvstore
import numpy as np

kvstore.serve()
kv = kvstore.create("dist_sync")
kv.init("w", np.zeros(1000, np.float32))
kv.barrier()
if kv.rank == 0:
    os.kill(os.getpid(), signal.SIGKILL)
path = os.path.join(sys.argv[1], "checkpoint")
kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=0.5))
kv.init("v", np.full((8, 500), kv.rank, np.float32))  # over both servers
for _ in range(3):
    kv.push(["w", "v"], [np.ones(1000, np.float32), np.ones((8, 500), np.float32)])
    kv.pull(["w", "v"])
    kv.step()
kv.save(path)
kv.push("w", np.ones(1000, np.float32))
kv.load(path)
w, v = kv.pull(["w", "v"])
print("live", kv.live_ranks, "w", np.unique(w), "v", np.unique(v), flush=True)
kv.close()

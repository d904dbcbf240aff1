"""Workers train while the last of them kills the scheduler: orphaned.py WHERE, with WHERE among

start (before it joins), rounds (between pushes, three times), barrier (where the others wait), init (of a key for which
the others wait), exit (where the others wait), end (when all have left).
"""

import json
import os
import signal
import sys

import kvstore

kvstore.serve()

import numpy as np

where = sys.argv[1]
last = os.environ["DMLC_WORKER_ID"] == str(int(os.environ["DMLC_NUM_WORKER"]) - 1)


def kill_scheduler(now: str) -> None:
    if last and now == where:
        with open(os.environ["PSLITE_JOB_DIR"] + "/processes.json") as file:
            pid = next(process["pid"] for process in json.load(file) if process["role"] == "scheduler")
        print("kills", flush=True)
        os.kill(pid, signal.SIGKILL)


kill_scheduler("start")
kv = kvstore.create("dist_sync")
kv.set_optimizer(kvstore.optimizer.SGD(learning_rate=0.5))
names = [f"w{i}" for i in range(4)]
shapes = [(3,), (200, 300), (5, 7), (64,)]
kv.init(names, [np.full(shape, 1, "f4") for shape in shapes])
for step in range(60):
    if step in (5, 30, 50):
        kill_scheduler("rounds")
    rng = np.random.default_rng([step, kv.rank])
    kv.push(names, [rng.standard_normal(shape).astype("f4") for shape in shapes])
    kv.pull(names)
kill_scheduler("barrier")
kv.barrier()
kill_scheduler("init")
kv.init("late", np.full(9, 7, "f4"))
kv.push("late", np.ones(9, "f4"))
weights = kv.pull([*names, "late"])
print("weights", " ".join(f"{weight.astype('f8').sum():.9f}" for weight in weights), flush=True)
kv.barrier()
kill_scheduler("exit")
kv.close()
kill_scheduler("end")

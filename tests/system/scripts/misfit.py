"""All workers train but one, of rank 1: arguments say where in its life it stops doing so, and how.

misfit.py barrier|push|training|exit wait|raise|finish|killed|stopped
"""

import os
import signal
import sys
import time

import kvstore

kvstore.serve()

import numpy as np

where, how = sys.argv[1:]
kv = kvstore.create("dist_sync")
kv.init("w", np.zeros(1 << 18))
kv.barrier()
misfit = kv.rank == 1
print("rank", kv.rank, flush=True)


def fall_out() -> None:
    print("event", time.monotonic(), flush=True)
    if how == "raise":
        raise RuntimeError("batch 7 is broken")
    if how == "finish":
        kv.close()
        sys.exit()
    if how != "wait":
        os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how])
    signal.pause()


print("ready", where, flush=True)
if where == "training":
    while True:
        kv.pushpull("w", np.ones(1 << 18), out=np.empty(1 << 18))
if misfit:
    fall_out()
if where == "barrier":
    kv.barrier()
if where == "push":
    kv.push("w", np.ones(1 << 18))
    kv.pull("w")
kv.close()

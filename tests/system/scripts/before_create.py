"""Worker 1 does not come as far as create(): the argument says why."""

import os
import signal
import sys

import kvstore

kvstore.serve()

import numpy as np

if os.environ["RANK"] == "1":
    if sys.argv[1] == "waits":
        signal.pause()
    if sys.argv[1] == "exits":
        sys.exit(0)
    if sys.argv[1] == "raises":
        raise RuntimeError("no data for this rank")
    os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[sys.argv[1]])
with kvstore.create("dist_sync") as kv:
    kv.init("w", np.zeros(3))

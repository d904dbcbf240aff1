"""Trains a step and ends in some way: ``ending.py HOW DIRECTORY``; workers note their pids when they have pushed."""

import os
import signal
import sys
from pathlib import Path

import kvstore
import numpy as np

how, directory = sys.argv[1], Path(sys.argv[2])
kvstore.serve()
with kvstore.create("dist_sync") as kv:
    kv.init("w", np.zeros(100_000, np.float32))
    kv.push("w", np.ones(100_000, np.float32))
    kv.pull("w")
    kv.barrier()
    (directory / "new").with_suffix(f".{kv.rank}").write_text(str(os.getpid()))
    (directory / "new").with_suffix(f".{kv.rank}").rename(directory / f"pid-{kv.rank}")
    if how == "exception" and kv.rank == 1:
        raise RuntimeError("out of paper")
    while how in ("SIGINT", "SIGTERM", "SIGKILL"):
        signal.pause()

"""Trains keys of all kinds; worker 0 kills a server on the way. Arguments: optimizer, rank of the server, step."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import kvstore

kvstore.serve()

import numpy as np

rule, server, when = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
SMALL = [f"small {number}" for number in range(20)]
DENSE = [f"dense {number}" for number in range(3)]


def kill() -> None:
    table = json.loads((Path(os.environ["PSLITE_JOB_DIR"]) / "processes.json").read_text())
    [process] = [p for p in table if (p["role"], p["rank"]) == ("server", server)]
    os.kill(process["pid"], signal.SIGKILL)


with kvstore.create("dist_sync") as kv:
    kv.set_optimizer(kvstore.optimizer.create(rule, learning_rate=0.01))
    kv.init(SMALL, [np.ones(7, np.float32)] * len(SMALL))
    kv.init(DENSE, [np.ones((300, 100), np.float32)] * len(DENSE))
    kv.init("table", kvstore.sparse.zeros((1000, 16)))
    rng = np.random.default_rng(kv.rank)
    for step in range(40):
        kv.push(SMALL, [rng.standard_normal(7).astype(np.float32) for _ in SMALL])
        kv.push(DENSE, [rng.standard_normal((300, 100)).astype(np.float32) for _ in DENSE])
        if kv.rank == 0 and step == when:
            kill()
        ids = np.sort(rng.choice(1000, 30, replace=False))
        rows = rng.standard_normal((30, 16)).astype(np.float32)
        kv.push("table", kvstore.sparse.row_sparse_array((rows, ids), (1000, 16)))
        if step % 4 == 0:
            kv.pull(SMALL)
    weights = [*kv.pull(SMALL), *kv.pull(DENSE), kv.row_sparse_pull("table", row_ids=np.arange(1000)).data]
    print("weights", hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest(), flush=True)

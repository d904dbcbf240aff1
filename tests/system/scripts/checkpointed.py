"""``checkpointed.py HOW FILE RESULTS``: trains, and what it does with FILE depends on HOW.

``unbroken``: nothing. ``saves``: saves after SAVED_AT steps, and goes on until it is killed; ``FILE.beyond`` is there
when it is some steps further. ``loads``: goes on from it. RESULTS gets every worker's weights after STEPS.
"""

import os
import sys
from pathlib import Path

import kvstore
import numpy as np
from kvstore import optimizer, sparse

how, file, results = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if "PIDS" in os.environ:
    role = os.environ["DMLC_ROLE"]
    note = Path(os.environ["PIDS"], f"{role}-{os.getpid()}.tmp")
    note.write_text(str(os.getpid()))
    note.rename(note.with_suffix(""))
kvstore.serve()

SHAPES = {"matrix": (40, 25), "vector": (301,), "scalar": ()}
TABLE = (60, 4)
SAVED_AT, STEPS = 4, 9

with kvstore.create("dist_sync", bigarray_bound=200) as kv:
    schedule = optimizer.FactorScheduler(step=3, factor=0.5, base_lr=0.05)
    kv.set_optimizer(optimizer.Adam(lr_scheduler=schedule, clip_gradient=50.0, lazy_update=True))
    rng = np.random.default_rng(7)
    weights = {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}
    names = list(weights)
    kv.init([*names, "table"], [*weights.values(), sparse.zeros(TABLE, "float32")])
    first = 0
    if how == "loads":
        kv.load(file)
        first = SAVED_AT
    kv.pull(names, out=list(weights.values()))
    for step in range(first, 10**9 if how == "saves" else STEPS):
        rng = np.random.default_rng([kv.rank, step])
        for name, weight in weights.items():
            scale = 10.0 ** rng.integers(-3, 4)  # every other order of summation gives other bits
            kv.push(name, np.asarray(scale * rng.standard_normal(weight.shape) + 0.1 * weight, np.float32))
        rows = np.unique(rng.integers(0, TABLE[0], 8))
        grad = rng.standard_normal((len(rows), TABLE[1])).astype(np.float32)
        kv.push("table", sparse.row_sparse_array((grad, rows), TABLE))
        kv.pull(names, out=list(weights.values()))
        if how == "saves" and step + 1 == SAVED_AT:
            kv.save(file)
        if how == "saves" and step + 1 == SAVED_AT + 3 and kv.rank == 0:
            file.with_suffix(".beyond").touch()
    table = kv.row_sparse_pull("table", row_ids=np.arange(TABLE[0])).data
    np.savez(results / f"{kv.rank}.npz", table=table, **weights)

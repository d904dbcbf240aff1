"""A worker trains until its job was scaled from 1 to 3 servers and back to 2, or for so many steps: ``[STEPS]``."""

import hashlib
import os
import sys
import threading
from pathlib import Path

import kvstore

kvstore.serve()

import numpy as np
from launcher.control import ask

AHEAD = 3  # steps that nobody can be behind when he reads which is the last

directory = Path(os.environ["PSLITE_JOB_DIR"])
last = directory / "last"
kv = kvstore.create("dist_sync")


def scale() -> None:
    for servers in (3, 2):
        ask(directory, {"servers": servers}, None)


def at_an_end(step: int) -> bool:
    """Whether this was the last step; rank 0 says which it is, once the job was scaled."""
    if len(sys.argv) > 1:
        return step == int(sys.argv[1])
    if kv.rank == 0 and not scaling.is_alive() and not last.exists():
        last.with_suffix(".new").write_text(str(step + AHEAD))
        last.with_suffix(".new").rename(last)
    return last.exists() and step == int(last.read_text())


scaling = threading.Thread(target=scale)
names = ["a", "b", "c"]
kv.set_optimizer(kvstore.optimizer.create("adam", learning_rate=0.01))
kv.init(names, [np.full((300, 7), index + 1.0, np.float32) for index in range(3)])
weights = [np.empty((300, 7), np.float32) for _ in names]
if kv.rank == 0 and len(sys.argv) == 1:
    scaling.start()
step = 0
while not at_an_end(step):
    random = np.random.default_rng([kv.rank, step])
    kv.push(names, [random.standard_normal((300, 7), np.float32) for _ in names])
    kv.pull(names, out=weights)
    step += 1
digest = hashlib.sha256(b"".join(weight.tobytes() for weight in weights)).hexdigest()
print(f"worker {kv.rank}: {step} steps {digest}")
kv.close()

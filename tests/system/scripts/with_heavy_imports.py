"""Loads something heavy below kvstore.serve(), and says which sockets the job has in its directory."""

import os

import kvstore

kvstore.serve()

import numpy as np

import heavy

with kvstore.create("dist_sync") as kv:
    kv.init("w", np.zeros(3))
    kv.push("w", np.ones(3))
    print("sockets", sorted(n for n in os.listdir(os.environ["PSLITE_JOB_DIR"]) if n.endswith(".sock")), flush=True)
    print("pulled", kv.pull("w"), "with", heavy.__name__, flush=True)

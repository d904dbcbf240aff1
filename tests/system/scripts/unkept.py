"""Workers push until it is an error, and say of which class."""

import kvstore
import numpy as np
from pslite import PSError

kvstore.serve()

kv = kvstore.create("dist_sync")
print("rank", kv.rank, flush=True)
kv.init("w", np.zeros(4))
try:
    for step in range(10**9):
        kv.pushpull("w", np.ones(4))
        if step == 2:
            print("pushed", step, flush=True)
except PSError as error:
    print("error", type(error).__name__, error, flush=True)
    raise

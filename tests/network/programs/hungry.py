"""A worker asks for more memory than the server may have, and looks what became of the keys that it has."""

import os
import resource
import sys
from pathlib import Path

import kvstore
import numpy as np
from pslite import PSError

MIB = 1 << 20
SIZE = 4 * MIB  # of float64: 32 MiB

limit = int(sys.argv[1]) * MIB
if os.environ["DMLC_ROLE"] == "server":
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + limit
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
kvstore.serve()

with kvstore.create("dist_async") as kv:
    had = 0
    try:
        for number in range(64):
            kv.init(number, np.full(SIZE, float(number)))
            kv.push(number, np.full(SIZE, number + 1.0)).wait()
            had += 1
    except PSError as error:
        print("refused", had, type(error).__name__, repr(str(error)[:300]), flush=True)
    for number in range(had):
        assert (kv.pull(number) == number + 1.0).all(), number
    print("right", had, flush=True)

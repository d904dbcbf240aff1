"""A server with many MiB dies: how long until it serves again. Arguments: MiB, times, a module that the script imports.

The one worker kills the server while it has a push under way, and prints the seconds until it was answered.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

mib, times, module, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
importlib.import_module(module)
if os.environ["DMLC_ROLE"] == "server":
    (directory / "new").write_text(str(os.getpid()))
    (directory / "new").rename(directory / "pid")

import kvstore  # noqa: E402 - as in a script whose user imports other things first

kvstore.serve()
with kvstore.create("dist_async") as kv:
    keys = [f"w{index}" for index in range(mib // 4)]
    ones = np.ones(1024 * 1024, np.float32)
    kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=-1.0, momentum=0.0))
    small = ["small 0", "small 1"]  # one on each of two servers
    kv.init([*keys, *small], [np.zeros_like(ones) for _ in keys] + [np.zeros(4, np.float32)] * 2)
    kv.push(keys, [ones] * len(keys)).wait()
    for _ in range(times):
        kv.push(small, [np.ones(4, np.float32)] * 2).wait()
        begin = time.monotonic()
        os.kill(int((directory / "pid").read_text()), signal.SIGKILL)
        kv.push(small, [np.ones(4, np.float32)] * 2).wait()
        sys.stdout.write(f"recovered {time.monotonic() - begin}\n")
    values = kv.pull([*small, *keys])
    expected = [2.0 * times] * 2 + [1.0] * len(keys)
    assert [float(value.min()) for value in values] == [float(value.max()) for value in values] == expected

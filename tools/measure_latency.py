#!/usr/bin/env python3
"""What one small request costs: a pushpull of 16 float32, beside a bare ZeroMQ round trip between two processes.

    pslite-launch -n 1 -s 1 python tools/measure_latency.py

The two are measured in turn, so that a busy moment of the machine meets both alike; the figure to look at is the ratio.
Then what many calls under way together cost: pushes, and pulls that are not waited for, each of one key.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import msgpack
import numpy as np
import zmq

import kvstore

ROUNDS, CALLS, KEYS = 20, 100, 2000
HEADER = [0x5053, 1, 1, "job", 9, 8, 2**62, 3, 3, [2, 1], 7, 0, 0, 1, 3, 0, 0, [13, None], [[0, 16]]]


def echo(address: str) -> None:
    """The other end of the bare round trip, until an empty header comes."""
    router = zmq.Context.instance().socket(zmq.ROUTER)
    router.bind(address)
    while True:
        router.poll()
        peer, header, data = router.recv_multipart()
        fields = msgpack.unpackb(header)
        if not fields:
            return
        router.send_multipart([peer, msgpack.packb(fields), data])


def seconds(call: Callable[[], object]) -> list[float]:
    """How long each of some calls takes."""
    taken = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def single(kv: kvstore.KVStore, address: str) -> None:
    other = subprocess.Popen([sys.executable, __file__, address])
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(address)
    grad, out, data = np.ones(16, np.float32), np.empty(16, np.float32), bytes(64)

    def bare() -> None:
        dealer.send_multipart([msgpack.packb(HEADER), data])
        dealer.poll()
        msgpack.unpackb(dealer.recv_multipart()[0])

    kv.init(KEYS, grad)
    calls = {"bare ZeroMQ": bare, "pushpull": lambda: kv.pushpull(KEYS, grad, out=out)}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # once to warm up
        seconds(call)
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name] += seconds(call)
    unit = statistics.median(taken["bare ZeroMQ"])
    for name, values in taken.items():
        p50, p90 = np.quantile(values, (0.5, 0.9))
        print(f"{name:12} p50 {p50 * 1e6:4.0f} us, {p50 / unit:.2f} x bare; p90 {p90 * 1e6:4.0f} us")
    dealer.send_multipart([msgpack.packb([]), data])
    other.wait()


def many(kv: kvstore.KVStore) -> None:
    keys, grad, outs = range(KEYS), np.ones(16, np.float32), np.empty((KEYS, 16), np.float32)
    kv.init(list(keys), [grad] * KEYS)
    walls, cpus = [], []
    for _ in range(5):
        wall, cpu = time.perf_counter(), time.process_time()
        for key in keys:
            kv.push(key, grad)
        for handle in [kv.pull(key, out=outs[key], wait=False) for key in keys]:
            handle.wait()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    wall, cpu = (statistics.median(values) / (2 * KEYS) * 1e6 for values in (walls, cpus))
    print(f"push, then pull: {wall:.0f} us a call, {cpu:.0f} us of the worker's CPU")


if __name__ == "__main__":
    if sys.argv[1:]:
        echo(sys.argv[1])
    else:
        with kvstore.create("dist_sync") as kv, tempfile.TemporaryDirectory() as directory:
            single(kv, f"ipc://{directory}/echo")
            many(kv)

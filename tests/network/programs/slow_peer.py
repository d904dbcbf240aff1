"""A worker counts rounds of a key of server 0: with nothing else to do, and while pushes to server 1 crawl."""

import resource
import time

import kvstore

kvstore.serve()

import numpy as np

SECONDS = 0.8
SIZE = 10_000  # 80 KB of float64: two thirds of a second at 1 Mbit/s


def rounds(kv):
    end, count, out = time.monotonic() + SECONDS, 0, np.empty(SIZE)
    while time.monotonic() < end:
        kv.pushpull("fast", np.ones(SIZE), out=out)
        count += 1
    return count


with kvstore.create("dist_async") as kv:
    kv.init(["fast", "slow"], [np.zeros(SIZE)] * 2)  # of equal size, so each has a server of its own
    alone = rounds(kv)
    pushes = [kv.push("slow", np.full(SIZE, number)) for number in (1.0, 2.0, 3.0)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    beside = rounds(kv)
    print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    print("waiting", sum(not push.done() for push in pushes))
    print("alone", alone)
    print("beside", beside)
    for push in pushes:
        push.wait()
    assert (kv.pull("slow") == 3.0).all()

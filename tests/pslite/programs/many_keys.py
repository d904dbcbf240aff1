"""ps-lite's test_kv_app_benchmark: 10 million keys with one float each, pushed and pulled; unlike there, checked."""

from __future__ import annotations

import sys
import time

import numpy as np

import pslite
from pslite import KVServer, KVServerDefaultHandle, KVWorker, Postoffice


def work(office: Postoffice, count: int) -> None:
    kv = KVWorker(0, 0, office)
    keys = np.uint64(2**64 // count) * np.arange(count, dtype=np.uint64)
    vals = np.arange(count, dtype=np.float32)
    start = time.monotonic()
    kv.wait(kv.push(keys, vals, zero_copy=True))
    pushed = time.monotonic()
    got = np.empty(count, np.float32)
    kv.wait(kv.pull(keys, got))
    print(f"push {pushed - start:.2f} s, pull {time.monotonic() - pushed:.2f} s")
    assert np.array_equal(got, vals)


def main(count: int) -> None:
    office = pslite.start()
    if office.role == "server":
        KVServer(0, office).set_handle(KVServerDefaultHandle(np.float32))
    if office.role == "worker":
        work(office, count)
    print("done", office.name)
    office.finalize()


if __name__ == "__main__":
    main(int(sys.argv[1]))

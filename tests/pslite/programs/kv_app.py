"""ps-lite's test_kv_app: 10,000 keys of each worker, 50 pushes, a pull, 50 push-pulls. Its multi-worker variant too:
``kv_app.py 2`` has two customers, each in a thread of its own, in every worker process."""

from __future__ import annotations

import sys

import numpy as np

import pslite
from pslite import KVServer, KVServerDefaultHandle, KVWorker, Postoffice, run_all

KEYS = 10_000
REPEAT = 50
OUTSTANDING = 10
LARGEST_ERROR = 1e-5  # ps-lite's own


def serve(office: Postoffice) -> None:
    KVServer(0, office).set_handle(KVServerDefaultHandle(np.float32))


def work(office: Postoffice, customer: int = 0, customers: int = 1) -> tuple[float, float]:
    """One customer's part; returns ps-lite's two errors: after the pushes, and after the push-pulls."""
    kv = KVWorker(0, customer, office)
    number = office.rank * customers + customer
    keys = np.uint64(2**64 // KEYS) * np.arange(KEYS, dtype=np.uint64) + np.uint64(number)
    vals = np.random.default_rng(number + 7).integers(0, 1000, KEYS).astype(np.float32)
    pushes: list[int] = []
    for i in range(REPEAT):
        pushes.append(kv.push(keys, vals))
        if i >= OUTSTANDING:
            kv.wait(pushes[i - OUTSTANDING])
    for timestamp in pushes:
        kv.wait(timestamp)
    got = np.empty(KEYS, np.float32)
    kv.wait(kv.pull(keys, got))
    pull_error = float(np.abs(got - REPEAT * vals).sum() / REPEAT)
    for _ in range(REPEAT):
        kv.wait(kv.pushpull(keys, vals, got))
    return pull_error, float(np.abs(got - 2 * REPEAT * vals).sum() / (2 * REPEAT))


def live(office: Postoffice, customers: int = 1) -> list[tuple[float, float]]:
    """One process's part; returns the errors of each of its customers."""
    if office.role == "server":
        serve(office)
    if office.role != "worker":
        return []
    return run_all([lambda customer=i: work(office, customer, customers) for i in range(customers)])


def main(customers: int) -> None:
    office = pslite.start()
    errors = live(office, customers)
    assert all(error < LARGEST_ERROR for pair in errors for error in pair), errors
    print("done", office.name, errors)
    office.finalize()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)

#!/usr/bin/env python3
"""What a push of 20,000 rows costs a server, by the size of the table and the rule.

    python tools/measure_sparse.py

"first" is a push of rows that the table has not seen yet, so that Linux has to give memory for them; "again" the
median of pushes of the same rows; "pull" that of pulls. Rows are 64 float32 each and lie all over the table.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.optimizer import create
from kvstore.rows import Rows
from kvstore.server.store import New, Store
from kvstore.spec import Spec

PUSHED, WIDTH, REPEATS = 20_000, 64, 9
RULES: dict[str, Any] = {"assign": None, "sgd": {"momentum": 0.9}, "adam": {}}


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(rule: str, rows: int) -> None:
    store = Store(1)
    store.settings.agree(None, 0, "type", "sync")
    if RULES[rule] is not None:
        store.settings.agree(None, 0, "rule", ["optimizer", create(rule, **RULES[rule]).to_wire()])
    gc.collect()  # the table before
    before = resident()
    none = Rows(np.empty(0, np.int64), np.empty((0, WIDTH), np.float32))
    store.init(None, 0, {0: New(Spec("t", (rows, WIDTH), 0, True), False, none)})
    ids = np.sort(np.random.default_rng(0).choice(rows, PUSHED, replace=False))
    data = np.ones((PUSHED, WIDTH), np.float32)

    def push() -> None:
        [ticket] = store.request(None, 0, [0], [(Rows(ids, data), 0)])
        assert ticket.error is None

    first = seconds(push)
    again = statistics.median(seconds(push) for _ in range(REPEATS))
    pull = statistics.median(seconds(lambda: store.request(None, 0, [0], (), [ids], True)) for _ in range(REPEATS))
    grown = (resident() - before) / 1e6
    print(
        f"{rule:7} {rows:>11,} rows  first {1e3 * first:6.1f} ms  again {1e3 * again:5.1f} ms  "
        f"pull {1e3 * pull:4.1f} ms  memory {grown:5.0f} MB"
    )


if __name__ == "__main__":
    for rule in RULES:
        for rows in (1_000_000, 10_000_000):
            measure(rule, rows)

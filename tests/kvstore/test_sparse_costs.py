"""What row-sparse keys cost: a push or pull of some rows of a huge table is work and memory for these rows."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.optimizer import create
from kvstore.pages import in_small_pages, lazy_zeros
from kvstore.rows import Rows
from kvstore.server.store import New, Store
from kvstore.sparse import row_sparse_array, zeros
from kvstore.spec import Spec

ROWS, WIDTH, PUSHED = 10_000_000, 64, 20_000
TABLE = ROWS * WIDTH * 4  # bytes: 2.56 GB, if it were all touched
PUSH = PUSHED * (WIDTH * 4 + 8)
SOME = np.arange(0, PUSHED * 16, 16)  # rows of different pages, all in one part of the table, to be quick
DATA = np.ones((PUSHED, WIDTH), np.float32)

Calls = tuple[Callable[[], Any], Callable[[], Any]]
RULES: dict[str, dict[str, Any]] = {"assign": {}, "sgd": {"momentum": 0.9}, "adam": {}, "adagrad": {}, "ftrl": {}}
SLOTS = {"assign": 0, "sgd": 1, "adam": 2, "adagrad": 1, "ftrl": 2}


def peak(work: Callable[[], Any]) -> int:
    """Bytes that were allocated at once, beyond those before; untouched pages of a table are counted too."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    work()
    return tracemalloc.get_traced_memory()[1] - before


@pytest.fixture(autouse=True)
def _traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def on_server(rule: str) -> Calls:
    """A push and a pull at the server's brain, with a table in it."""
    store = Store(1)
    store.settings.agree(None, 0, "type", "sync")
    if rule != "assign":
        store.settings.agree(None, 0, "rule", ["optimizer", create(rule, **RULES[rule]).to_wire()])
    none = Rows(np.empty(0, np.int64), np.empty((0, WIDTH), np.float32))
    assert peak(lambda: store.init(None, 0, {0: New(Spec("t", (ROWS, WIDTH), 0, True), False, none)})) < 1.01 * TABLE

    def call(*args: Any, **options: Any) -> None:
        [ticket] = store.request(None, 0, [0], *args, **options)
        assert ticket.error is None

    return lambda: call([(Rows(SOME, DATA), 0)]), lambda: call((), [SOME], True)


def on_local(rule: str) -> Calls:
    kv = kvstore.create("local")
    if rule != "assign":
        kv.set_optimizer(create(rule, **RULES[rule]))
    assert peak(lambda: kv.init("t", zeros((ROWS, WIDTH)))) < 1.01 * TABLE
    grad = row_sparse_array((DATA, SOME), (ROWS, WIDTH))
    return lambda: kv.push("t", grad), lambda: kv.row_sparse_pull("t", row_ids=SOME)


@pytest.mark.parametrize("store", [on_server, on_local])
@pytest.mark.parametrize("rule", RULES)
def test_a_push_and_a_pull_allocate_for_their_rows(rule: str, store: Callable[[str], Calls]) -> None:
    push, pull = store(rule)
    assert peak(push) < 1.01 * SLOTS[rule] * TABLE + 12 * PUSH  # the slots are created
    assert peak(push) < 12 * PUSH
    assert peak(pull) < 4 * PUSH


def test_workers_and_servers_of_a_job_allocate_for_rows() -> None:
    def work(kv: kvstore.KVStore) -> None:
        kv.init("t", zeros((ROWS, WIDTH)))
        out = zeros((ROWS, WIDTH))
        for _ in range(2):
            used = peak(lambda: kv.push("t", row_sparse_array((DATA, SOME), (ROWS, WIDTH))).wait())
            assert used < 16 * PUSH
            assert peak(lambda: kv.row_sparse_pull("t", out=out, row_ids=SOME)) < 16 * PUSH
        np.testing.assert_array_equal(out.data, DATA)

    kvstore.LocalCluster(workers=1, servers=2, timeout=30).run(work)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells which pages of a process are there")
@pytest.mark.parametrize("rule", RULES)
def test_rows_all_over_a_table_do_not_make_it_resident(rule: str) -> None:
    with kvstore.create("local") as kv:
        if rule != "assign":
            kv.set_optimizer(create(rule, **RULES[rule]))
        kv.init("t", zeros((ROWS, WIDTH)))
        every = np.arange(0, ROWS, ROWS // 500)
        before = resident()
        kv.push("t", row_sparse_array((DATA[: len(every)], every), (ROWS, WIDTH)))
        kv.row_sparse_pull("t", row_ids=every)
        pages = len(every) * 4096 * (1 + SLOTS[rule])
        assert resident() - before < pages + 64 * 2**20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_small_arrays_and_views_are_left_alone() -> None:
    small, large = np.ones(3), lazy_zeros((2**24,), np.dtype("f8"))
    assert in_small_pages(small) is small and in_small_pages(large) is large
    assert in_small_pages(large[5:])[0] == 0
    large[[0, 2**23, -1]] = 1
    assert large.sum() == 3

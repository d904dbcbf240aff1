"""Where this store differs from MXNet on purpose; docs/deviations.md says why.

What is the same, and what differs in a row of a table, is in test_table_*.py, on every store.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import factory
from pslite.errors import ConfigError, ConflictError, UnknownKeyError
from tests.kvstore.on_stores import DIST, KV, ONE_OF_EACH, Store, full, on, push, read, same, summed, update
from tests.test_docs import table


@on()
def test_a_push_or_pull_before_init_is_an_error(store: Store) -> None:
    def work(kv: KV) -> None:
        for key in (3, "w"):
            for call in (kv.push, kv.pushpull, kv.pull):
                with pytest.raises(UnknownKeyError):
                    call(key, full(1))

    store.run(work)


@on(ONE_OF_EACH)
def test_str_keys_reach_updaters_as_str(store: Store) -> None:
    seen: list[Any] = []

    @kvstore.updater("record")
    def record(key: Any, received: Any, stored: Any) -> None:
        seen.append(type(key))

    def work(kv: KV) -> None:
        kv.set_updater("record")
        kv.init("w", full(0))
        push(kv, "w", full(1))

    store.run(work)
    assert set(seen) == {str}


@on(ONE_OF_EACH)
def test_numpy_strings_and_integers_are_keys(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init(list(np.arange(2)), [full(0), full(0)])
        push(kv, 1, full(1))
        same(kv.pull(np.int16(1)), summed(kv))

    store.run(work)


@on(ONE_OF_EACH)
def test_only_optimizer_is_a_known_capability(store: Store) -> None:
    def work(kv: KV) -> None:
        assert kv.is_capable("Optimizer")
        with pytest.raises(ConfigError):
            kv.is_capable("horovod")

    store.run(work)


@on(ONE_OF_EACH)
def test_a_clip_of_zero_or_below_is_off(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init(["0", "1", "2"], [full(0)] * 3)
        for key, limit in (("0", 0), ("1", -1), ("2", None)):
            kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=1.0, clip_gradient=limit))
            update(kv, key, full(50))
            assert read(kv, key) == -50

    store.run(work)


def test_a_schedule_does_not_depend_on_where_keys_are() -> None:
    def work(kv: KV) -> list[bytes]:
        schedule = kvstore.optimizer.FactorScheduler(step=2, factor=0.5, base_lr=1.0)
        kv.set_optimizer(kvstore.optimizer.SGD(lr_scheduler=schedule))
        kv.init(["a", "b", "c"], [np.zeros((6, 2))] * 3)
        for _ in range(3):
            kv.push("a", np.ones((6, 2)))
        for _ in range(5):
            kv.push(["b", "c"], [np.ones((6, 2))] * 2)
        return [value.tobytes() for value in kv.pull(["a", "b", "c"])]

    results = [Store("dist_sync", 1, servers, bound).run(work) for servers in (1, 2, 3) for bound in (4, 10**6)]
    assert all(result == results[0] for result in results)
    assert results[0] == Store("local").run(work)


@on([store for store in DIST if store.workers == 3])
def test_an_updater_is_the_same_on_every_worker(store: Store) -> None:
    for name in ("one", "two"):

        @kvstore.updater(name)
        def updater(key: Any, received: Any, stored: Any) -> None:
            stored += received

    def work(kv: KV) -> None:
        if kv.rank == 2:
            with pytest.raises(ConflictError, match="the rule must be the same on every rank: rank 2 gave"):
                kv.set_updater("two")
        kv.set_updater("one")
        kv.init("w", full(0))
        push(kv, "w", full(1))
        assert read(kv) == 3

    store.run(work)


def test_a_sparse_matrix_of_another_library_is_no_array() -> None:
    """MXNet takes its csr in init, and fails at every later call."""

    class Csr:
        shape, data, indices, indptr = (4, 3), np.ones(1), np.zeros(1), np.zeros(5)

    for store in ONE_OF_EACH:

        def work(kv: KV) -> None:
            with pytest.raises(kvstore.DTypeError, match="Csr"):
                kv.init("w", Csr())

        store.run(work)


def test_one_dist_store_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_ROLE", "worker")
    monkeypatch.setenv("DMLC_PS_ROOT_URI", "127.0.0.1")
    monkeypatch.setenv("DMLC_PS_ROOT_PORT", "9")
    monkeypatch.setattr(factory, "_created", True)
    with pytest.raises(ConfigError, match="one dist store per launch"):
        kvstore.create("dist_sync")


# -- what MXNet gets wrong --------------------------------------------------------------------------------------------

MENDED = {  # what fails, hangs or gives wrong numbers there: the tests that show it right here
    "two un-pulled pushes of each worker in a round": [
        "kvstore.test_table_rounds:test_two_pushes_of_one_worker_are_two_rounds",
        "kvstore.test_table_rounds:test_three_pushes_of_each_worker_before_a_pull",
    ],
    "push and pushpull mixed in one round": ["kvstore.test_table_rounds:test_push_and_pushpull_meet_in_one_round"],
    "a second init of an int key": ["kvstore.test_table_calls:test_a_key_is_made_once"],
    "a push before init": ["kvstore.test_deviations:test_a_push_or_pull_before_init_is_an_error"],
    "a key above 215,000 with several servers": ["kvstore.test_table_calls:test_integers_are_keys"],
    "a tiny threshold": ["kvstore.test_table_compression:test_any_threshold_is_exact_and_may_be_text"],
    "compression set after init": [
        "kvstore.test_table_compression:test_compression_may_be_set_at_any_time",
        "kvstore.test_table_compression:test_an_array_on_three_servers",
    ],
    "pushpull under compression": ["kvstore.test_table_compression:test_the_trace_of_two_bits"],
    "the caller's arrays after push and pull": [
        "kvstore.test_table_calls:test_a_pushed_array_is_not_written_and_may_be_overwritten_at_once"
    ],
    "an error of the optimizer on a server": [
        "kvstore.test_mistakes:test_an_optimizer_that_raises",
        "kvstore.test_table_calls:test_what_an_updater_raises_is_raised_and_changes_nothing",
    ],
    "dist_async without an updater": ["kvstore.test_table_rounds:test_async_without_an_updater_assigns"],
    "keys made in another order on each worker": ["kvstore.test_table_calls:test_keys_may_be_made_in_any_order"],
    "an updater in dist types": ["kvstore.test_table_calls:test_an_updater_changes_what_is_stored"],
    "a change of the learning rate in dist types": [
        "kvstore.test_table_optimizers:test_a_change_counts_from_the_next_push_and_keeps_the_state"
    ],
    "set_optimizer by every worker": [
        "kvstore.test_table_calls:test_an_optimizer_set_again_keeps_its_state_and_another_starts_afresh"
    ],
    "multipliers by name in dist types": [
        "kvstore.test_table_optimizers:test_multipliers_are_looked_up_by_parameter_then_key_then_name"
    ],
    "several pushes before a pull in dist_async": [
        "kvstore.test_table_rounds:test_async_a_pull_has_all_of_this_workers_pushes"
    ],
    "results that depend on the number of servers": [
        "kvstore.test_table_rounds:test_three_workers_get_the_same_bits_whatever_the_servers",
        "kvstore.test_optimizer_stores:test_the_number_of_servers_does_not_change_a_bit",
    ],
    "a worker with fewer batches": ["kvstore.test_handles:test_unequal_numbers_of_batches_end_in_worker_finished"],
    "a worker that fails": ["kvstore.test_cluster:test_the_others_are_told_who_failed"],
    "a worker, server or scheduler that dies": [
        "system.test_nothing_hangs:test_a_worker_is",
        "system.test_nothing_hangs:test_another_process_is",
    ],
    "the launcher's exit status": [
        "launcher.test_jobs:test_all_fail_and_so_does_the_launcher",
        "launcher.test_supervise:test_the_first_failure_stops_the_rest_and_gives_the_status",
    ],
    "init of a row-sparse key without some or all rows": [
        "kvstore.test_sparse:init_with_missing_rows",
        "kvstore.test_sparse:init_without_rows",
    ],
    "a row-sparse push without an updater": ["kvstore.test_sparse:a_push_replaces_the_whole_value"],
    "a row-sparse gradient of a dense key": [
        "kvstore.test_sparse:rows_onto_a_dense_key",
        "kvstore.test_sparse_updates:test_devices_and_dense_keys_under_an_optimizer",
    ],
    "a row that does not exist": ["kvstore.test_sparse:row_ids_that_do_not_exist"],
}


@pytest.mark.parametrize("defect", MENDED)
def test_what_mxnet_gets_wrong_has_a_test(defect: str) -> None:
    for name in MENDED[defect]:
        module, function = name.split(":")
        assert callable(getattr(importlib.import_module(f"tests.{module}"), function))


def test_every_row_of_the_page_is_whole() -> None:
    rows = table("docs/deviations.md", "MXNet does", "we do", "why")
    assert len(rows) > 50 and all(len(row) == 3 and row[0] and row[1] for row in rows)
    assert len({row[0] for row in rows}) == len(rows)

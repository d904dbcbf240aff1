"""MXNet's exact behaviour on dense arrays, and where this store differs on purpose; docs/deviations.md says why."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import rules
from pslite.errors import (
    ConfigError,
    DTypeError,
    DuplicateKeyError,
    RemoteError,
    ShapeError,
    UnknownKeyError,
)

KV = kvstore.KVStore
STORES = ["local", "device", "dist_sync", "dist_async"]


def run(type: str, work: Callable[[Any], Any], workers: int = 1, servers: int = 2, **options: Any) -> list[Any]:
    if type in ("local", "device"):
        return [work(kvstore.create(type))]
    return kvstore.LocalCluster(workers=workers, servers=servers, type=type, **options).run(work)


def one(number: float, dtype: str = "float32") -> Any:
    return np.full(2, number, dtype)


@pytest.fixture
def calls() -> Any:
    """What the registered updater 'record' was called with; it changes nothing."""
    seen: list[tuple[Any, float]] = []

    @kvstore.updater("record")
    def record(key: Any, received: Any, stored: Any) -> None:
        seen.append((key, float(received[0])))

    yield seen
    del rules._UPDATERS["record"]


# -- as MXNet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", STORES)
class TestAsMXNet:
    def test_a_push_replaces(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init("w", one(6))
            kv.push("w", one(1))
            kv.push("w", one(2))
            assert kv.pull("w").tolist() == [2, 2]
            kv.push("w", [one(1)] * 4)
            outs = [one(0) for _ in range(4)]
            kv.pull("w", out=outs)
            assert [out.tolist() for out in outs] == [[4, 4]] * 4

        run(type, work)

    def test_an_updater_changes_what_is_stored(self, type: str) -> None:
        @kvstore.updater("double")
        def double(key: Any, received: Any, stored: Any) -> None:
            stored += received * 2

        def work(kv: KV) -> None:
            kv.set_updater(double)
            kv.init("w", one(4))
            kv.push("w", one(1))
            assert kv.pull("w").tolist() == [6, 6]

        run(type, work)
        del rules._UPDATERS["double"]

    def test_pull_casts_to_the_dtype_of_out(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init("w", one(2.5))
            for dtype, expected in (("float64", 2.5), ("int32", 2), ("float16", 2.5), ("bool", True)):
                out = one(0, dtype)
                kv.pull("w", out=out)
                assert out.tolist() == [expected] * 2

        run(type, work)

    @pytest.mark.parametrize(("dtype", "number", "total"), [("int32", 2, 6), ("float16", 2, 6), ("uint8", 100, 44)])
    def test_sums_stay_in_their_dtype(self, type: str, dtype: str, number: int, total: int) -> None:
        def work(kv: KV) -> None:
            kv.init("w", one(0, dtype))
            kv.push("w", [one(number, dtype)] * 3)
            got = kv.pull("w")
            assert got.dtype == dtype and got.tolist() == [total] * 2

        run(type, work)

    def test_pushpull_without_out_writes_into_value(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init("w", one(0))
            value = one(3)
            kv.pushpull("w", value)
            assert value.tolist() == [3, 3]
            values = [one(1), one(2)]
            kv.pushpull("w", values)
            assert [v.tolist() for v in values] == [[3, 3], [3, 3]]

        run(type, work)

    def test_the_default_optimizer(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.set_optimizer(kvstore.optimizer.SGD())
            kv.init("w", one(0))
            kv.push("w", one(1))
            assert kv.pull("w").tolist() == [np.float32(-0.01)] * 2

        run(type, work)

    def test_a_schedule(self, type: str) -> None:
        def work(kv: KV) -> list[float]:
            schedule = kvstore.optimizer.FactorScheduler(step=2, factor=0.5, base_lr=1.0)
            kv.set_optimizer(kvstore.optimizer.SGD(lr_scheduler=schedule))
            kv.init("w", one(0))
            return [kv.pushpull("w", one(1), out=(out := one(0))) or float(out[0]) for _ in range(6)]

        assert run(type, work) == [[-1, -2, -2.5, -3, -3.25, -3.5]]

    def test_init_copies_and_calls_no_updater(self, type: str, calls: Any) -> None:
        def work(kv: KV) -> None:
            kv.set_updater("record")
            value = one(5)
            kv.init("w", value)
            value[:] = 0
            assert kv.pull("w").tolist() == [5, 5]

        run(type, work)
        assert calls == []

    def test_one_array_may_be_given_many_times(self, type: str) -> None:
        def work(kv: KV) -> None:
            value, out = one(1), one(0)
            kv.init(["a", "b"], [value] * 2)
            kv.push(["a", "b"], [[value] * 3, [value] * 2])
            kv.pull(["a", "b"], out=[[out] * 2, [out]])
            assert out.tolist() == [2, 2]

        run(type, work)

    def test_a_key_may_be_given_many_times(self, type: str, calls: Any) -> None:
        """One sum and one update for each key of a call."""

        def work(kv: KV) -> None:
            kv.set_updater("record")
            kv.init(["a", "b"], [one(0), one(0)])
            kv.push(["a", "b", "a"], [one(1), one(2), one(4)])
            kv.pull("a")

        run(type, work)
        assert sorted(calls) == [("a", 5.0), ("b", 2.0)]


@pytest.mark.parametrize("type", ["local", "device"])
def test_int_keys_are_updated_in_their_order(type: str, calls: Any) -> None:
    kv = kvstore.create(type)
    kv.set_updater("record")
    kv.init([9, 5, 7], [one(0)] * 3)
    kv.push([9, 5, 7, 5], [one(1), one(2), one(3), one(4)])
    assert calls == [(5, 6), (7, 3), (9, 1)]


@pytest.mark.parametrize("type", ["local", "device", "dist_sync"])
def test_str_keys_are_updated_in_the_order_of_init(type: str, calls: Any) -> None:
    def work(kv: KV) -> None:
        kv.set_updater("record")
        kv.init(["z", "b", "a"], [one(0)] * 3)
        kv.push(["a", "b", "z", "b"], [one(1), one(2), one(3), one(4)])

    run(type, work, servers=1)
    assert calls == [("z", 3), ("b", 6), ("a", 1)]


def test_a_round_is_the_sum_over_workers_and_devices() -> None:
    def work(kv: KV) -> list[float]:
        kv.init("w", one(100))
        kv.push("w", [one(kv.rank + 1)] * 2)
        return list(kv.pull("w"))

    assert run("dist_sync", work, workers=3) == [[12, 12]] * 3


def test_a_worker_that_has_not_pushed_reads_at_once() -> None:
    pulled = threading.Event()

    def work(kv: KV) -> float:
        kv.init("w", one(7))
        if kv.rank == 0:
            kv.push("w", one(1))
            assert pulled.wait(10)
            return float(kv.pull("w")[0])
        value = float(kv.pull("w")[0])
        pulled.set()
        kv.push("w", one(1))
        return value

    assert run("dist_sync", work, workers=2) == [2, 7]


# -- on purpose otherwise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", STORES)
class TestDeviations:
    def test_another_dtype_is_an_error(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init("w", one(1))
            with pytest.raises(DTypeError):
                kv.push("w", one(2, "float64"))
            assert kv.pull("w").dtype == np.float32

        run(type, work)

    def test_another_shape_is_an_error(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init("w", np.ones((2, 3)))
            with pytest.raises(ShapeError):
                kv.push("w", np.ones((3, 2)))  # of the same number of bytes

        run(type, work)

    def test_a_push_before_init_is_an_error(self, type: str) -> None:
        def work(kv: KV) -> None:
            for key in (3, "w"):
                with pytest.raises(UnknownKeyError):
                    kv.push(key, one(1))

        run(type, work)

    def test_a_second_init_is_an_error_for_int_keys_too(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init(3, one(1))
            with pytest.raises(DuplicateKeyError):
                kv.init(3, one(2))

        run(type, work)

    def test_pull_without_out_returns_new_arrays(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init(["a", "b"], [one(1), one(2)])
            a, b = kv.pull(["a", "b"])
            a[:] = 99
            assert kv.pull("a").tolist() == [1, 1] and b.tolist() == [2, 2]

        run(type, work)

    def test_the_callers_arrays_are_the_callers(self, type: str) -> None:
        @kvstore.updater("greedy")
        def greedy(key: Any, received: Any, stored: Any) -> None:
            received *= 100
            stored += received

        def work(kv: KV) -> None:
            kv.set_updater(greedy)
            kv.init("w", one(0))
            value, out = one(1), one(0)
            kv.push("w", value)
            kv.pull("w")
            assert value.tolist() == [1, 1]
            kv.pushpull("w", value, out=out)
            assert value.tolist() == [1, 1] and out.tolist() == [200, 200]

        run(type, work)
        del rules._UPDATERS["greedy"]

    def test_what_was_pushed_may_be_overwritten_at_once(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init("w", np.zeros(100_000))
            value = np.ones(100_000)
            kv.push("w", value)
            value[:] = 99
            assert (kv.pull("w") == 1).all()

        run(type, work)

    def test_str_keys_reach_updaters_as_str(self, type: str, calls: Any) -> None:
        def work(kv: KV) -> None:
            kv.set_updater("record")
            kv.init("w", one(0))
            kv.push("w", one(1))
            kv.pull("w")

        run(type, work)
        assert [key.__class__ for key, _ in calls] == [str]

    def test_what_an_updater_raises_is_raised(self, type: str) -> None:
        @kvstore.updater("bad")
        def bad(key: Any, received: Any, stored: Any) -> None:
            stored += 1
            raise ZeroDivisionError("mine")

        def work(kv: KV) -> None:
            kv.set_updater(bad)
            kv.init("w", one(0))
            with pytest.raises((ZeroDivisionError, RemoteError), match="mine"):
                kv.push("w", one(1)).wait()
            assert kv.pull("w").tolist() == [0, 0]

        run(type, work)
        del rules._UPDATERS["bad"]

    def test_numpy_integers_are_keys(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init(list(np.arange(2)), [one(0), one(0)])
            kv.push(1, one(1))
            assert kv.pull(np.int16(1)).tolist() == [1, 1]

        run(type, work)

    def test_bools_are_summed_by_or(self, type: str) -> None:
        def work(kv: KV) -> None:
            kv.init("w", np.zeros(2, bool))
            kv.push("w", [np.array([True, False])] * 2)
            assert kv.pull("w").tolist() == [True, False]

        run(type, work)

    def test_half_precision_is_summed_in_single(self, type: str) -> None:
        """2048 + 1 + 1 is 2048 if every step rounds to float16."""

        def work(kv: KV) -> None:
            kv.init("w", one(0, "float16"))
            kv.push("w", [one(2048, "float16"), one(1, "float16"), one(1, "float16")])
            assert kv.pull("w").tolist() == [2050, 2050]

        run(type, work)

    def test_unknown_capabilities_are_errors_and_optimizers_run_everywhere(self, type: str) -> None:
        def work(kv: KV) -> None:
            assert kv.is_capable("Optimizer")
            with pytest.raises(ConfigError):
                kv.is_capable("horovod")

        run(type, work)


def test_a_clip_of_zero_or_below_is_off() -> None:
    for limit in (0, -1, None):
        kv = kvstore.create()
        kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=1.0, clip_gradient=limit))
        kv.init("w", one(0))
        kv.push("w", one(50))
        assert kv.pull("w").tolist() == [-50, -50]


def test_two_pushes_of_one_worker_are_two_rounds() -> None:
    pushed = threading.Event()

    def work(kv: KV) -> float:
        kv.init("w", one(0))
        if kv.rank == 0:
            assert pushed.wait(10)
            kv.push("w", one(100))
            first = float(kv.pull("w")[0])
            kv.push("w", one(1000))
            return first
        kv.push("w", one(1))
        kv.push("w", one(10))
        pushed.set()
        return float(kv.pull("w")[0])

    assert run("dist_sync", work, workers=2) == [101, 1010]


def test_push_and_pushpull_meet_in_one_round() -> None:
    def work(kv: KV) -> float:
        kv.init("w", one(0))
        out = one(0)
        if kv.rank == 0:
            kv.push("w", one(1))
            kv.pull("w", out=out)
        else:
            kv.pushpull("w", one(2), out=out)
        return float(out[0])

    assert run("dist_sync", work, workers=3) == [5, 5, 5]


def test_async_without_an_updater_assigns() -> None:
    def work(kv: KV) -> float:
        kv.init("w", one(0))
        kv.push("w", one(3))
        return float(kv.pull("w")[0])

    assert run("dist_async", work, workers=2) == [3, 3]


def test_async_reads_include_all_of_the_workers_own_pushes() -> None:
    def work(kv: KV) -> float:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", one(0))
        for step in range(20):
            kv.push("w", one(step))
        own = float(kv.pull("w")[0])
        assert own >= sum(range(20))
        kv.barrier()
        return float(kv.pull("w")[0])

    assert run("dist_async", work, workers=2) == [380, 380]


def test_out_of_pushpull_may_have_another_dtype_in_dist_too() -> None:
    def work(kv: KV) -> list[float]:
        kv.init("w", one(0))
        out = one(0, "float64")
        kv.pushpull("w", one(1.5), out=out)
        return list(out)

    assert run("dist_sync", work) == [[1.5, 1.5]]


def test_multipliers_by_name_work_on_servers() -> None:
    def work(kv: KV) -> list[float]:
        sgd = kvstore.optimizer.create("sgd", learning_rate=1.0)
        sgd.set_lr_mult({"slow": 0.5})
        kv.set_optimizer(sgd)
        kv.init(["fast", "slow"], [one(0), one(0)])
        kv.push(["fast", "slow"], [one(1), one(1)])
        return [float(value[0]) for value in kv.pull(["fast", "slow"])]

    assert run("dist_sync", work) == [[-1, -0.5]]


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

    results = [run("dist_sync", work, servers=servers, bigarray_bound=bound)
               for servers in (1, 2, 3) for bound in (4, 10**6)]  # fmt: skip
    assert all(result == results[0] for result in results)
    assert results[0] == run("local", work)

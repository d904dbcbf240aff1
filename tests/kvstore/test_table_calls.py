"""MXNet's calls, one by one: what arguments mean, what each call does, what it must not do. On every store.

All values of a test are small integers in float32: sums are exact in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from pslite.errors import ConfigError, DTypeError, DuplicateKeyError
from tests.kvstore.on_stores import KV, LOCAL, ONE_OF_EACH, SHAPE, STORES, Store, full, on, pulled, push, same, summed
from tests.kvstore.test_mistakes import MISTAKES, ONE

# -- keys and values in a call ----------------------------------------------------------------------------------------


@on()
def test_a_key_has_one_array_or_one_for_each_device(store: Store) -> None:
    def work(kv: KV) -> None:
        n = summed(kv)
        kv.init("w", [full(1)])  # a list of one is fine
        push(kv, "w", full(2))
        same(pulled(kv, "w"), 2 * n)
        push(kv, "w", [full(1), full(2)])
        same(pulled(kv, "w"), 3 * n)
        push(kv, "w", (full(1), full(2), full(3), full(4), full(5)))
        same(pulled(kv, "w"), 15 * n)

    store.run(work)


@on()
def test_lists_of_keys_have_arrays_or_lists_of_arrays(store: Store) -> None:
    def work(kv: KV) -> None:
        n = summed(kv)
        kv.init([5, 7], [full(0), full(0)])
        push(kv, [5, 7], [full(1), full(2)])
        assert [a[0, 0] for a in pulled(kv, [5, 7])] == [n, 2 * n]
        push(kv, (5, 7), ([full(1), full(2)], (full(3), full(4))))
        assert [a[0, 0] for a in pulled(kv, (7, 5))] == [7 * n, 3 * n]
        push(kv, [5, 7], [[full(1), full(2)], full(9)])  # mixed
        outs: Any = [full(0), [full(0), full(0)]]
        kv.pull([5, 7], out=outs)
        assert [outs[0][0, 0], outs[1][0][0, 0], outs[1][1][3, 2]] == [3 * n, 9 * n, 9 * n]
        kv.barrier()
        push(kv, [[5, 7], 5], [[full(1), full(2)], full(10)])  # lists of keys in a list of keys
        assert [a[0, 0] for a in pulled(kv, [5, 7])] == [11 * n, 2 * n]

    store.run(work)


@on()
def test_a_key_that_is_listed_twice_is_one_sum_and_fills_every_out(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init(["a", "b"], [full(0), full(0)])
        push(kv, ["a", "b", "a"], [full(1), full(2), [full(4), full(8)]])
        outs = [full(0) for _ in range(4)]
        kv.pull(["a", "b", "a"], out=[outs[0], outs[1], outs[2:]])
        assert [out[0, 0] / summed(kv) for out in outs] == [13, 2, 13, 13]

    store.run(work)


@on()
def test_one_array_may_be_given_many_times(store: Store) -> None:
    def work(kv: KV) -> None:
        value, out = full(1), full(0)
        kv.init(["a", "b"], [value] * 2)
        push(kv, ["a", "b"], [[value] * 3, [value] * 2])
        kv.pull(["a", "b"], out=[[out] * 2, [out]])
        same(out, 2 * summed(kv))

    store.run(work)


@on()
def test_no_keys_are_no_work(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init([], [])
        kv.push([], []).wait()
        kv.pushpull([], [])
        kv.broadcast([], [], out=[])
        assert kv.pull([]) == []

    store.run(work)


@on()
def test_every_mistake_in_one_job(store: Store) -> None:
    """Each of them is raised on all workers, changes nothing, and leaves the store as good as new."""

    def work(kv: KV) -> None:
        kv.init("w", ONE)
        for kind, message, call in MISTAKES.values():
            with pytest.raises(kind, match=message):
                call(kv)
            np.testing.assert_array_equal(kv.pull("w"), ONE)
        push(kv, "w", 2 * ONE)
        np.testing.assert_array_equal(kv.pull("w"), 2 * summed(kv) * ONE)

    store.run(work)


def test_lists_of_more_than_sixteen_pairs_are_summed_in_their_order() -> None:
    """MXNet's order depends on an unstable sort; the sum of these depends on the order."""
    numbers = [1e8, *[1.0] * 30, -1e8]
    kv = kvstore.create()
    kv.init(["a", "b"], [np.zeros(1, np.float32)] * 2)
    kv.push(["a", "b"] * len(numbers), [np.array([x], np.float32) for x in numbers for _ in "ab"])
    expected = np.float32(0)
    for x in numbers:
        expected += np.float32(x)
    assert kv.pull("a").tolist() == kv.pull("b").tolist() == [expected]


# -- init and broadcast -----------------------------------------------------------------------------------------------


@on()
def test_init_copies_runs_no_updater_and_counts_no_change(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        value = full(5)
        kv.init("w", value)
        value[:] = 99
        same(kv.pull("w"), 5)
        assert kv.version("w") == 0

    store.run(work)


@on()
def test_the_value_of_rank_0_counts(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init("w", full(10 + kv.rank))
        same(kv.pull("w"), 10)
        outs = [full(0), full(0)]
        kv.broadcast(["a", "b"], [full(20 + kv.rank), full(30 + kv.rank)], out=[outs, full(0)])
        same(outs[0], 20)
        same(outs[1], 20)

    store.run(work)


@on()
@pytest.mark.parametrize("keys", [(3, 4), ("3", "4")], ids=["int", "str"])
def test_a_key_is_made_once(store: Store, keys: Any) -> None:
    first, second = keys

    def work(kv: KV) -> None:
        kv.init(first, full(1))
        with pytest.raises(DuplicateKeyError):
            kv.init(first, full(2))
        with pytest.raises(DuplicateKeyError):
            kv.broadcast(first, full(2), out=full(0))
        with pytest.raises(DuplicateKeyError):
            kv.init([second, first], [full(2), full(2)])
        kv.init(second, full(3))  # the list above made nothing of it
        assert [a[0, 0] for a in kv.pull([first, second])] == [1, 3]

    store.run(work)


@on()
def test_keys_may_be_made_in_any_order(store: Store) -> None:
    def work(kv: KV) -> list[float]:
        names = [f"k{n}" for n in range(7)]
        order = names[kv.rank :] + names[: kv.rank]
        for name in order:
            kv.init(name, full(float(name[1:])))
        return [float(a[0, 0]) for a in kv.pull(names)]

    assert store.run(work) == [[0, 1, 2, 3, 4, 5, 6]] * store.workers


@on()
def test_integers_are_keys(store: Store) -> None:
    keys = [300_000, -1, 2**40, -(2**63), True]

    def work(kv: KV) -> None:
        kv.init(keys, [full(1)] * 5)
        push(kv, keys, [full(2)] * 5)
        for key in keys:
            same(kv.pull(np.int64(key)), 2 * summed(kv))

    store.run(work)


# -- push -------------------------------------------------------------------------------------------------------------


@on()
def test_pushes_take_effect_in_order(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init("w", full(6))
        for number in range(1, 8):
            kv.push("w", full(number), priority=-number)
        kv.barrier()  # does not wait for pushes, but then all are sent
        same(kv.pull("w"), 7 * summed(kv))

    store.run(work)


@on()
def test_a_pushed_array_is_not_written_and_may_be_overwritten_at_once(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init("w", full(0))
        value, out = full(1), full(0)
        kv.push("w", value)
        value[:] = 99
        kv.pull("w", out=out)
        same(out, summed(kv))
        same(value, 99)
        kv.barrier()
        value[:] = 2
        kv.pushpull("w", value, out=out)
        same(out, 2 * summed(kv))
        same(value, 2)

    store.run(work)


@on()
def test_sums_have_the_keys_dtype_and_integers_wrap_around(store: Store) -> None:
    sums = {"int32": (2, 6), "float16": (2, 6), "float64": (2, 6), "uint8": (100, 44), "int8": (50, -106)}

    def work(kv: KV) -> None:
        kv.init(list(sums), [full(0, dtype) for dtype in sums])
        alone = kv.rank == 0 or summed(kv) == 1
        push(kv, list(sums), [[full(number * alone, dtype)] * 3 for dtype, (number, _) in sums.items()])
        for dtype, (_, total) in sums.items():
            got = kv.pull(dtype)
            assert got.dtype == dtype
            same(got, total)

    store.run(work)


@on()
def test_another_shape_dtype_or_kind_of_array_is_an_error_and_changes_nothing(store: Store) -> None:
    """MXNet replaces the stored array, or fails at the next pull, or kills the server."""

    def work(kv: KV) -> None:
        kv.init("w", full(1))
        for wrong in (full(2, shape=(3, 4)), full(2, shape=(12,)), full(2, "float64"), full(2, "int32")):
            for value in (wrong, [full(2), wrong]):
                with pytest.raises((kvstore.ShapeError, DTypeError)):
                    kv.push("w", value)
        same(kv.pull("w"), 1)

    store.run(work)


# -- pull -------------------------------------------------------------------------------------------------------------


@on()
def test_pull_casts_to_the_dtype_of_out(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init(["w", "n"], [full(2.5), full(3, "int32")])
        for dtype, expected in (("float64", 2.5), ("int32", 2), ("float16", 2.5), ("bool", True)):
            out = full(0, dtype)
            kv.pull("w", out=out)
            assert out.dtype == dtype
            same(out, expected)
        out = full(0, "float32")
        kv.pull("n", out=out)
        same(out, 3)

    store.run(work)


@on()
def test_pull_fills_every_out_and_without_out_returns_new_arrays(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init(["a", "b"], [full(1), full(2)])
        outs = [full(0), full(0, "float64"), np.zeros((3, 4), np.float32).T]
        assert kv.pull("a", out=outs) is None
        for out in outs:
            same(out, 1)
        a, b = kv.pull(["a", "b"])
        a[:] = 99
        same(kv.pull("a"), 1)
        same(b, 2)

    store.run(work)


# -- pushpull ---------------------------------------------------------------------------------------------------------


@on()
def test_pushpull_gives_the_sum_or_the_updated_weight(store: Store) -> None:
    def work(kv: KV) -> None:
        n = summed(kv)
        kv.init("w", full(1))
        out = full(0)
        kv.barrier()
        kv.pushpull("w", full(3), out=out)
        same(out, 3 * n)
        kv.barrier()
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.barrier()
        kv.pushpull("w", [full(1), full(1)], out=[out, full(0)])
        kv.barrier()
        same(kv.pull("w"), 3 * n + 2 * kv.num_workers)
        if n > 1 or kv.num_workers == 1:
            same(out, 5 * n)

    store.run(work)


@on()
def test_pushpull_without_out_writes_into_every_array_of_value(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init(["a", "b"], [full(0), full(0)])
        value = full(3)
        kv.pushpull("a", value)
        same(value, 3 * summed(kv))
        kv.barrier()
        values = [[full(1), full(2)], [full(4)]]
        kv.pushpull(["a", "b"], values)
        for array, number in zip(values[0] + values[1], [3, 3, 4], strict=True):
            same(array, number * summed(kv))

    store.run(work)


@on()
def test_pushpull_of_a_list_pushes_all_before_it_pulls_any(store: Store) -> None:
    """Here the first key's result is written into the array that is pushed for the second, and the other way round."""

    def work(kv: KV) -> None:
        n = summed(kv)
        kv.init(["a", "b"], [full(0), full(0)])
        x, y = full(1), full(2)
        kv.pushpull(["a", "b"], [x, y], out=[y, x])
        same(x, 2 * n)
        same(y, n)
        kv.barrier()
        z = full(4)
        kv.pushpull(["a", "b", "a"], [z, z, z])  # one array for all
        assert sorted({*z.ravel().tolist()}) in ([4 * n], [8 * n])
        assert [a[0, 0] for a in pulled(kv, ["a", "b"])] == [8 * n, 4 * n]

    store.run(work)


@on()
def test_out_of_pushpull_is_cast_and_must_have_the_keys_and_shapes(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.init(["a", "b"], [full(0), full(0)])
        out = full(0, "float64")
        kv.pushpull("a", full(1.5), out=out)
        same(out, 1.5 * summed(kv))
        for key, value, outs in ((["a", "b"], [full(9)] * 2, [full(0)]), ("a", full(9), np.zeros((3, 4)))):
            with pytest.raises((ConfigError, kvstore.ShapeError)):
                kv.pushpull(key, value, out=outs)
        same(kv.pull("a"), 1.5 * summed(kv))  # nothing was pushed

    store.run(work)


# -- set_optimizer and set_updater ------------------------------------------------------------------------------------


@on([s for s in STORES if "async" not in s.type or s.workers == 1])
def test_an_optimizer_set_again_keeps_its_state_and_another_starts_afresh(store: Store) -> None:
    """SGD with momentum 1/2 goes 1, then 1 + 1/2; NAG's first step is 1 + 1/2."""

    def work(kv: KV) -> list[float]:
        optimizers = [
            kvstore.optimizer.create(name, learning_rate=lr, momentum=0.5, rescale_grad=1 / kv.num_workers)
            for name, lr in (("sgd", 1.0), ("sgd", 1.0), ("nag", 1.0), ("sgd", 1.0), ("sgd", 2.0))
        ]
        values = []
        kv.init("w", full(0))
        for optimizer in optimizers:
            kv.set_optimizer(optimizer)
            push(kv, "w", full(1))
            values.append(float(pulled(kv, "w")[3, 2]))
        return values

    assert store.run(work) == [[-1, -2.5, -4, -5, -7]] * store.workers


@on([s for s in STORES if not s.split])
def test_an_updater_changes_what_is_stored(store: Store) -> None:
    @kvstore.updater("double")
    def double(key: Any, received: Any, stored: Any) -> str:
        received *= 2  # it may: the caller's array is another one
        stored[:] = stored + received
        return "ignored"

    def work(kv: KV) -> None:
        kv._set_updater(double)
        kv.init("w", full(4))
        value = full(1)
        push(kv, "w", value)
        same(value, 1)
        same(pulled(kv, "w"), 4 + 2 * kv.num_workers)
        push(kv, "w", [value] * 3)
        same(kv.pull("w"), 4 + 8 * kv.num_workers)

    store.run(work)


@on()
def test_an_updater_is_called_once_for_each_key_of_a_push_with_key_and_whole_array(store: Store) -> None:
    calls: list[Any] = []

    @kvstore.updater("record")
    def record(key: Any, received: Any, stored: Any) -> None:
        calls.append((key, float(received.sum()), stored.shape))

    def work(kv: KV) -> None:
        kv.set_updater("record")
        kv.init(["a", "b"], [full(0), full(0)])
        push(kv, ["a", "b", "a"], [full(1), full(2), full(4)])

    store.run(work)
    updates = store.workers if "async" in store.type else 1
    n = store.workers // updates
    assert sorted(calls) == [("a", 60.0 * n, SHAPE)] * updates + [("b", 24.0 * n, SHAPE)] * updates


@on()
def test_what_an_updater_raises_is_raised_and_changes_nothing(store: Store) -> None:
    @kvstore.updater("bad")
    def bad(key: Any, received: Any, stored: Any) -> None:
        stored += received
        if received.sum() > 1000:
            raise ZeroDivisionError("mine")

    def work(kv: KV) -> None:
        kv.set_updater(bad)
        kv.init("w", full(0))
        with pytest.raises((ZeroDivisionError, kvstore.RemoteError), match="mine"):
            kv.push("w", full(1000)).wait()
        kv.barrier()
        push(kv, "w", full(1))
        same(kv.pull("w"), kv.num_workers)

    store.run(work)


@pytest.mark.parametrize("bound", [4, 10**6])
def test_an_updater_set_after_init_needs_whole_arrays(bound: int) -> None:
    @kvstore.updater("add")
    def add(key: Any, received: Any, stored: Any) -> None:
        stored += received

    store = Store("dist_sync", 3, 2, bound)

    def work(kv: KV) -> float:
        kv.init("w", full(0))
        if store.split:
            with pytest.raises(ConfigError, match="split over the servers: set it before init"):
                kv.set_updater(add)
        else:
            kv.set_updater(add)
        push(kv, "w", full(1))
        push(kv, "w", full(1))
        return float(pulled(kv, "w")[0, 0])

    assert store.run(work) == [3 if store.split else 6] * 3


# -- the rest of the calls --------------------------------------------------------------------------------------------


@on()
def test_attributes_barriers_and_commands(store: Store) -> None:
    def work(kv: KV) -> int:
        assert (kv.type, kv.num_workers) == (store.type, store.workers)
        assert kv.is_capable("Optimizer")
        kv.barrier()
        kv._barrier()
        kv._send_command_to_servers(77, "unknown ones are acknowledged")
        return kv.rank

    assert store.run(work) == list(range(store.workers))


@on(ONE_OF_EACH)
def test_states_of_no_optimizer_are_not_saved(store: Store, tmp_path: Any) -> None:
    @kvstore.updater("add")
    def add(key: Any, received: Any, stored: Any) -> None:
        stored += received

    def work(kv: KV) -> None:
        with pytest.raises(ConfigError, match="call set_optimizer first"):
            kv.save_optimizer_states(tmp_path / "states")
        kv.set_updater(add)
        with pytest.raises(ConfigError, match=r"the updater 'add'.*call set_optimizer first"):
            kv.save_optimizer_states(tmp_path / "states")

    store.run(work)


@on(LOCAL)
def test_keys_of_one_push_are_updated_in_order(store: Store) -> None:
    """Ints by number; strings by their first init, neither by the alphabet nor in the order of the call."""
    calls: list[Any] = []

    def record(key: Any, received: Any, stored: Any) -> None:
        calls.append((key, float(received[0, 0])))

    for made, pushed, expected in (
        ([9, 5, 7], [9, 5, 7, 5], [(5, 6), (7, 3), (9, 1)]),
        (["z", "b", "a"], ["a", "b", "z", "b"], [("z", 3), ("b", 6), ("a", 1)]),
    ):
        kv = kvstore.create(store.type)
        kv._set_updater(record)
        kv.init(made, [full(0)] * 3)
        kv.push(pushed, [full(1), full(2), full(3), full(4)])
        assert calls == expected
        calls.clear()


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
def test_on_a_server_keys_are_updated_in_the_order_of_their_init(type: str) -> None:
    calls: list[Any] = []

    @kvstore.updater("record")
    def record(key: Any, received: Any, stored: Any) -> None:
        calls.append((key, float(received[0, 0])))

    def work(kv: KV) -> None:
        kv.set_updater(record)
        kv.init(["z", "b", "a"], [full(0)] * 3)
        push(kv, ["a", "b", "z", "b"], [full(1), full(2), full(3), full(4)])

    Store(type).run(work)
    assert calls == [("z", 3), ("b", 6), ("a", 1)]

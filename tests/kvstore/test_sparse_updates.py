"""Updaters and optimizers on row-sparse keys: lazy updates, standard ones, and precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.optimizer import Optimizer, create, register
from kvstore.optimizer.base import _REGISTRY
from kvstore.rules import _UPDATERS
from kvstore.sparse import RowSparseArray, row_sparse_array, zeros
from pslite.errors import ConfigError, RemoteError

from .sparse_jobs import FEW, KV, Setup, column, plain, rsp

SHAPE = (6, 3)
ALL = dict.fromkeys(range(6), 1.0)
each_setup = pytest.mark.parametrize("setup", FEW, ids=str)


def push(kv: KV, key: str, grad: Any) -> None:
    """One update by ``grad``: rank 0 pushes it and the others no rows, which count in the round."""
    kv.push(key, grad if kv.rank == 0 else zeros(grad.shape, grad.dtype))


# -- optimizers -------------------------------------------------------------------------------------------------------


@each_setup
@pytest.mark.parametrize(("lazy", "others"), [(True, 1), (False, 0.8575)])
def test_sgd_lazy_and_standard_as_mxnet(setup: Setup, lazy: bool, others: float) -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(create("sgd", learning_rate=0.1, momentum=0.9, wd=0.5, lazy_update=lazy))
        kv.init("t", rsp(ALL, SHAPE))
        for _ in range(2):
            push(kv, "t", rsp({1: 1}, SHAPE))
        expected = [0.5725 if row == 1 else others for row in range(6)]
        found = kv.pull("t")
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)
        assert not lazy or (np.delete(found, 1, axis=0) == 1).all()  # exactly: they were not touched

    setup.run(work)


def sgd(w: Any, g: Any, s: dict[str, Any], t: int) -> None:
    s["mom"] = 0.9 * s.get("mom", 0) - 0.1 * (g + 0.01 * w)
    w += s["mom"]


def adam(w: Any, g: Any, s: dict[str, Any], t: int) -> None:
    d = g + 0.01 * w
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * d
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * d * d
    w -= 0.1 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * s["m"] / (np.sqrt(s["v"]) + 1e-8)


def adagrad(w: Any, g: Any, s: dict[str, Any], t: int) -> None:
    s["h"] = s.get("h", 0) + g * g
    w -= 0.1 * (g / np.sqrt(s["h"] + 1e-7) + 0.01 * w)


def ftrl(w: Any, g: Any, s: dict[str, Any], t: int) -> None:
    n = s.get("n", 0)
    s["z"] = s.get("z", 0) + g - (np.sqrt(n + g * g) - np.sqrt(n)) * w / 0.1
    s["n"] = n + g * g
    new = (np.sign(s["z"]) * 0.01 - s["z"]) / ((1 + np.sqrt(s["n"])) / 0.1 + 0.01)
    w[...] = np.where(np.abs(s["z"]) > 0.01, new, 0)


Formula = Callable[[Any, Any, dict[str, Any], int], None]
FORMULAS: dict[str, tuple[Formula, dict[str, Any]]] = {
    "sgd": (sgd, {"momentum": 0.9}),
    "adam": (adam, {}),
    "adagrad": (adagrad, {}),
    "ftrl": (ftrl, {}),
}


def gradients() -> list[RowSparseArray]:
    """Some with rows of one half of the table only, and one without."""
    rng = np.random.default_rng(5)
    sets = [[0, 1], [1, 5], [], [4], [0, 1, 2, 3, 4, 5], [1]]
    return [row_sparse_array((rng.standard_normal((len(s), 3)).astype(np.float32), s), SHAPE) for s in sets]


@each_setup
@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", FORMULAS)
def test_lazy_updates_change_the_rows_of_the_gradient_only(setup: Setup, name: str, dense: bool) -> None:
    """The value, its row's slots, and nothing else; a push counts as an update of all rows."""
    formula, arguments = FORMULAS[name]
    weight = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    expected, states = weight.astype(np.float64), [dict[str, Any]() for _ in range(6)]
    for t, grad in enumerate(gradients(), 1):
        for row, g in zip(grad.indices.tolist(), grad.data.astype(np.float64), strict=True):
            formula(expected[row], g, states[row], t)

    def work(kv: KV) -> None:
        kv.set_optimizer(create(name, learning_rate=0.1, wd=0.01, **arguments))
        kv.init("t", weight if dense else row_sparse_array((weight, np.arange(6)), SHAPE))
        for grad in gradients():
            push(kv, "t", grad)
        np.testing.assert_allclose(kv.pull("t"), expected, rtol=2e-4, atol=1e-6)

    setup.run(work)


@pytest.mark.parametrize(
    ("name", "standard"),
    [*((name, {}) for name in FORMULAS), ("sgd", {"lazy_update": False}), ("adam", {"lazy_update": False})],
)
def test_a_split_table_gets_the_bits_of_a_whole_one(name: str, standard: dict[str, bool]) -> None:
    """A server without any row of a push counts it as an update nevertheless."""

    def work(kv: KV) -> Any:
        kv.set_optimizer(create(name, learning_rate=0.1, **FORMULAS[name][1], **standard))
        kv.init("t", rsp(ALL, SHAPE))
        for grad in gradients():
            push(kv, "t", grad)
        return kv.pull("t").tobytes()

    assert len({bits for setup in FEW for bits in setup.run(work)}) == 1


@each_setup
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("lazy", [True, False])
def test_a_float32_master_keeps_small_steps(setup: Setup, lazy: bool, dtype: str) -> None:
    """Alone each step of 2^-12 is rounded off: it is half of the last place of float16 below 1, less of bfloat16."""
    steps = 8 if dtype == "float16" else 32

    def work(kv: KV) -> None:
        kv.set_optimizer(create("sgd", learning_rate=2**-12, multi_precision=True, lazy_update=lazy))
        kv.init("t", rsp({1: 1, 4: 1}, SHAPE, dtype))
        for _ in range(steps):
            push(kv, "t", rsp({4: 1}, SHAPE, dtype))
        assert column(kv.row_sparse_pull("t", row_ids=np.arange(6))) == [0, 1, 0, 0, 1 - steps * 2**-12, 0]

    setup.run(work)


@each_setup
def test_the_learning_rate_may_change_and_slots_go_on(setup: Setup) -> None:
    def work(kv: KV) -> None:
        optimizer = create("sgd", learning_rate=1.0, momentum=0.5)
        kv.set_optimizer(optimizer)
        kv.init("t", zeros(SHAPE))
        push(kv, "t", rsp({1: 1}, SHAPE))
        optimizer.set_learning_rate(2.0)
        push(kv, "t", rsp({1: 1, 2: 1}, SHAPE))
        assert column(kv.pull("t")) == [0, -1 - 2.5, -2, 0, 0, 0]

    setup.run(work)


@each_setup
def test_devices_and_dense_keys_under_an_optimizer(setup: Setup) -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(create("sgd", learning_rate=1.0, lazy_update=True))
        kv.init(["t", "w"], [zeros(SHAPE), np.zeros(SHAPE, np.float32)])
        n = kv.num_workers
        for key in ("t", "w"):
            kv.push(key, [rsp({1: 1}, SHAPE), rsp({1: 1, 3: 2}, SHAPE), zeros(SHAPE)])
            assert column(kv.pull(key)) == [0, -2 * n, 0, -2 * n, 0, 0]
            kv.pushpull(key, rsp({0: 1}, SHAPE), out=(out := np.empty(SHAPE, np.float32)))
            assert column(out) == [-n, -2 * n, 0, -2 * n, 0, 0]

    setup.run(work)


@each_setup
def test_an_optimizer_of_the_users_may_be_lazy(setup: Setup) -> None:
    """With slots of its own; what it raises leaves value and slots as they were."""

    class Counting(Optimizer):
        lazy_update = True

        def create_state(self, key: Any, weight: Any) -> dict[str, Any]:
            return {"each": np.zeros(weight.shape), "row": np.zeros(len(weight))}

        def update(self, key: Any, weight: Any, grad: Any, state: dict[str, Any], count: int) -> None:
            state["each"] += 1
            state["row"] += 1
            weight += state["each"] + 10 * state["row"][:, None]
            if (grad >= 13).any():
                raise ValueError("unlucky")

    register(Counting)
    try:

        def work(kv: KV) -> None:
            kv.set_optimizer(Counting())
            kv.init("t", zeros(SHAPE))
            push(kv, "t", rsp({1: 1, 4: 1}, SHAPE))
            with pytest.raises((RemoteError, ValueError), match="unlucky"):
                kv.push("t", rsp({1: 13}, SHAPE)).wait()
            kv.barrier()
            push(kv, "t", rsp({4: 1}, SHAPE))
            assert column(kv.pull("t")) == [0, 11, 0, 0, 33, 0]

        setup.run(work)
    finally:
        del _REGISTRY["counting"]


# -- updaters ---------------------------------------------------------------------------------------------------------


def double(key: Any, received: Any, stored: Any) -> None:
    stored += received * 2


def replace(key: Any, received: Any, stored: Any) -> None:
    stored[:] = received


def other_rows(key: Any, received: Any, stored: Any) -> None:
    stored += rsp({0: 1}, SHAPE)


def broken(key: Any, received: Any, stored: Any) -> None:
    stored += received
    raise ValueError("no")


@pytest.fixture(autouse=True)
def _updaters() -> Any:
    for fn in (double, replace, other_rows, broken):
        kvstore.updater(fn.__name__)(fn)
    yield
    for fn in (double, replace, other_rows, broken):
        del _UPDATERS[fn.__name__]


@each_setup
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_updater_gets_the_rows_and_changes_them(setup: Setup, dtype: str) -> None:
    def work(kv: KV) -> None:
        kv.set_updater(double)
        kv.init(["t", "w"], [rsp(ALL, SHAPE, dtype), rsp(ALL, SHAPE, dtype).todense()])
        for key in ("t", "w"):
            grad = rsp({1: 4, 2: 1}, SHAPE, dtype)
            push(kv, key, grad)
            assert column(kv.pull(key)) == [1, 9, 3, 1, 1, 1]
            assert column(grad) == [0, 4, 1, 0, 0, 0]

    setup.run(work)


@each_setup
def test_an_updater_may_replace_the_rows(setup: Setup) -> None:
    def work(kv: KV) -> None:
        kv.set_updater("replace")
        kv.init("t", rsp(ALL, SHAPE))
        push(kv, "t", rsp({1: 4}, SHAPE))
        assert column(kv.pull("t")) == [1, 4, 1, 1, 1, 1]

    setup.run(work)


@each_setup
def test_an_updater_that_fails_leaves_the_value(setup: Setup) -> None:
    def work(kv: KV) -> None:
        kv.init("t", rsp(ALL, SHAPE))
        kv.set_updater(broken)
        with pytest.raises((RemoteError, ValueError), match="no"):
            kv.push("t", rsp({1: 4}, SHAPE)).wait()
        assert plain(kv.pull("t")).sum() == 18

    Setup(setup.type, setup.workers, setup.servers).run(work)


@each_setup
def test_an_updater_that_changes_other_rows_is_refused(setup: Setup) -> None:
    def work(kv: KV) -> None:
        kv.set_updater(other_rows)
        kv.init("t", rsp(ALL, SHAPE))
        with pytest.raises((RemoteError, ConfigError), match="rows that were received only"):
            kv.push("t", rsp({1: 4}, SHAPE)).wait()
        assert column(kv.pull("t")) == [1] * 6

    setup.run(work)


def test_a_local_updater_may_pull_rows_of_another_key() -> None:
    with kvstore.create("local") as kv:
        kv.init(["a", "b"], [rsp(ALL, SHAPE), rsp({2: 5}, SHAPE)])

        def fn(key: Any, received: Any, stored: Any) -> None:
            stored += kv.row_sparse_pull("b", row_ids=received.indices)

        kv.set_updater(fn)
        kv.push("a", rsp({2: 1}, SHAPE))
        assert column(kv.pull("a")) == [1, 1, 6, 1, 1, 1]


# -- checkpoints ------------------------------------------------------------------------------------------------------


@each_setup
def test_training_goes_on_from_a_checkpoint_with_the_same_bits(setup: Setup, tmp_path: Path) -> None:
    """Tables, slots and counts; also of a table without rows, and on the other setups."""

    def begin(kv: KV) -> None:
        kv.set_optimizer(create("adam", learning_rate=0.1))
        kv.init(["t", "none"], [rsp({0: 1, 4: 2}, SHAPE), zeros((0, 3))])

    def stop(kv: KV) -> bytes:
        begin(kv)
        for grad in gradients()[:3]:
            push(kv, "t", grad)
        push(kv, "none", zeros((0, 3)))
        kv.barrier()
        kv.save(tmp_path / "saved")
        for grad in gradients()[3:]:
            push(kv, "t", grad)
        return bytes(kv.pull("t").tobytes())

    def go_on(kv: KV) -> bytes:
        begin(kv)
        kv.load(tmp_path / "saved")
        for grad in gradients()[3:]:
            push(kv, "t", grad)
        return bytes(kv.pull("t").tobytes())

    [expected] = set(setup.run(stop))
    for other in (setup, FEW[0], *(s for s in FEW if s.workers == setup.workers and s.type == setup.type)):
        assert set(other.run(go_on)) == {expected}

"""A job that is saved, ended and started again with another shape goes on with the same bits as an unbroken one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import optimizer, sparse
from kvstore.bfloat16 import from_float32

STEPS, SAVED_AT = 6, 3
KEYS = {"matrix": (40, 25), "row": (1, 7), "vector": (301,), "scalar": (), "empty": (0, 3), "never": (5,)}
TABLE = (50, 4)


def start(dtype: str, keys: dict[Any, tuple[int, ...]]) -> dict[Any, Any]:
    rng = np.random.default_rng(7)
    values = {key: np.asarray(rng.standard_normal(shape), np.float32) for key, shape in keys.items()}
    if dtype == "bfloat16":
        return {key: kvstore.bfloat16(from_float32(value)) for key, value in values.items()}
    return {key: value.astype(dtype) for key, value in values.items()}


def gradient(key: Any, shape: tuple[int, ...], rank: int, step: int, dtype: str) -> Any:
    grad = np.asarray(np.random.default_rng([len(str(key)), rank, step]).standard_normal(shape), np.float32)
    return kvstore.bfloat16(from_float32(grad)) if dtype == "bfloat16" else grad.astype(dtype)


def rows(rank: int, step: int) -> Any:
    rng = np.random.default_rng([rank, step])
    ids = np.unique(rng.integers(0, TABLE[0], 5))
    return sparse.row_sparse_array((rng.standard_normal((len(ids), TABLE[1])).astype(np.float32), ids), TABLE)


def train(kv: Any, first: int, end: int, keys: Any, dtype: str, table: bool) -> None:
    for step in range(first, end):
        for key, shape in keys.items():
            if key != "never":
                kv.push(key, gradient(key, shape, kv.rank, step, dtype))
        if table:
            kv.push("table", rows(kv.rank, step))
        kv.pull(list(keys))


def bits(kv: Any, keys: Any, table: bool) -> dict[Any, bytes]:
    found = {key: np.asarray(getattr(kv.pull(key), "bits", kv.pull(key))).tobytes() for key in keys}
    if table:
        found["table"] = kv.row_sparse_pull("table", row_ids=np.arange(TABLE[0])).data.tobytes()
    return found


def run(type: str, work: Callable[[Any], Any], workers: int = 1, servers: int = 1) -> list[Any]:
    if type in ("local", "device"):
        return [work(kvstore.create(type))]
    return kvstore.LocalCluster(workers=workers, servers=servers, type=type, bigarray_bound=200).run(work)


def goes_on(path: Path, optimizer_of: Callable[[], Any], before: Any, after: Any, dtype: str = "float32",
            table: bool = False, compression: Any = None, keys: Any = KEYS,
            change: Callable[[Any], None] | None = None, workers: int = 1) -> None:  # fmt: skip
    """Train on after the file is written, and from it in another kind of job, ``(type, servers)``; compare the bits.

    ``change`` is done to the optimizer one step before the file is written.
    """

    def setup(kv: Any) -> Any:
        rule = optimizer_of()
        if rule is not None:
            kv.set_optimizer(rule)
        if compression:
            kv.set_gradient_compression(compression)
        values = start(dtype, keys)
        kv.init(list(values), list(values.values()))
        if table:
            kv.init("table", sparse.zeros(TABLE, "float32"))
        return rule

    def first(kv: Any) -> Any:
        rule = setup(kv)
        train(kv, 0, SAVED_AT - 1, keys, dtype, table)
        if change:
            change(rule)
        train(kv, SAVED_AT - 1, SAVED_AT, keys, dtype, table)
        kv.save(path)
        train(kv, SAVED_AT, STEPS, keys, dtype, table)
        return bits(kv, keys, table)

    def second(kv: Any) -> Any:
        setup(kv)
        kv.load(path)
        train(kv, SAVED_AT, STEPS, keys, dtype, table)
        return bits(kv, keys, table)

    expected = run(before[0], first, workers, before[1])
    assert run(after[0], second, workers, after[1]) == expected


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optimizer.SGD(learning_rate=0.1, momentum=0.9, wd=1e-3),
    "adam": lambda: optimizer.Adam(learning_rate=0.02),
    "lamb": lambda: optimizer.LAMB(learning_rate=0.02),
    "nadam": lambda: optimizer.Nadam(learning_rate=0.02),
    "sgld": lambda: optimizer.SGLD(learning_rate=0.02),
    "groupadagrad": lambda: optimizer.GroupAdaGrad(learning_rate=0.02),
    "dcasgd": lambda: optimizer.DCASGD(learning_rate=0.02, momentum=0.9),
    "lars": lambda: optimizer.LARS(learning_rate=0.02, momentum=0.9, momentum_correction=True),
    "assign": lambda: None,
}


@pytest.mark.parametrize("before, after", [(1, 3), (3, 2), (2, 1)])
@pytest.mark.parametrize("name", ["sgd", "lamb"])
def test_on_another_number_of_servers(name: str, before: int, after: int, tmp_path: Path) -> None:
    goes_on(tmp_path / "c", OPTIMIZERS[name], ("dist_sync", before), ("dist_sync", after), table=True, workers=2)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_under_every_kind_of_optimizer(name: str, tmp_path: Path) -> None:
    goes_on(tmp_path / "c", OPTIMIZERS[name], ("dist_sync", 2), ("dist_sync", 3), table=True)


@pytest.mark.parametrize("name", ["dcasgd", "adam"])
def test_asynchronously_with_one_worker(name: str, tmp_path: Path) -> None:
    goes_on(tmp_path / "c", OPTIMIZERS[name], ("dist_async", 2), ("dist_async", 1), table=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("wide", [False, True])
def test_other_dtypes(dtype: str, wide: bool, tmp_path: Path) -> None:
    goes_on(
        tmp_path / "c",
        lambda: optimizer.SGD(learning_rate=0.1, momentum=0.9, multi_precision=wide),
        ("dist_sync", 1), ("dist_sync", 2), dtype, workers=2,
    )  # fmt: skip


@pytest.mark.parametrize("lazy", ["sgd", "adam"])
def test_lazy_updates_of_rows(lazy: str, tmp_path: Path) -> None:
    goes_on(
        tmp_path / "c",
        lambda: optimizer.create(lazy, learning_rate=0.1, lazy_update=True),
        ("dist_sync", 2), ("dist_sync", 3), table=True, workers=2,
    )  # fmt: skip


@pytest.mark.parametrize("codec", [
    {"type": "2bit", "threshold": 0.5},
    {"type": "qsgd"},
    {"type": "int8", "direction": "both"},
    {"type": "randomk"},
])  # fmt: skip
@pytest.mark.parametrize("name", ["sgd", "assign"])
def test_compression(codec: Any, name: str, tmp_path: Path) -> None:
    """The file has what every worker holds back, and counts from which random numbers follow."""
    before = 2 if codec["type"] == "int8" else 1  # the pieces of an array have blocks of their own
    goes_on(tmp_path / "c", OPTIMIZERS[name], ("dist_sync", before), ("dist_sync", 2), compression=codec, workers=2)


def test_compression_of_whole_arrays_in_blocks(tmp_path: Path) -> None:
    codec = {"type": "int8", "direction": "both"}
    keys = {"a": (3, 5), "b": (150,)}
    goes_on(
        tmp_path / "c", OPTIMIZERS["adam"], ("dist_sync", 1), ("dist_sync", 3), compression=codec, keys=keys, workers=2
    )


@pytest.mark.parametrize("before, after", [
    (("local", 1), ("dist_sync", 2)),
    (("dist_sync", 2), ("local", 1)),
    (("device", 1), ("device", 1)),
    (("dist_async", 2), ("dist_sync", 1)),
])  # fmt: skip
def test_on_another_type_of_store(before: Any, after: Any, tmp_path: Path) -> None:
    goes_on(tmp_path / "c", OPTIMIZERS["adam"], before, after, table=True)


@pytest.mark.parametrize("before, after", [("device", "device"), ("device", "dist_sync"), ("dist_sync", "device")])
@pytest.mark.parametrize("codec", ["2bit", "qsgd"])
def test_compression_on_device_stores(before: str, after: str, codec: str, tmp_path: Path) -> None:
    goes_on(tmp_path / "c", OPTIMIZERS["sgd"], (before, 1), (after, 1), compression={"type": codec})


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_int_keys(type: str, tmp_path: Path) -> None:
    keys = {2**63 - 1: (40, 25), -(2**63): (3,), 0: (2, 2)}
    goes_on(tmp_path / "c", OPTIMIZERS["adam"], (type, 2), (type, 1), keys=keys)


def test_a_scheduler_goes_on(tmp_path: Path) -> None:
    def scheduled() -> Any:
        return optimizer.SGD(lr_scheduler=optimizer.FactorScheduler(step=2, factor=0.5, base_lr=0.1), momentum=0.9)

    goes_on(tmp_path / "c", scheduled, ("dist_sync", 1), ("dist_sync", 2), workers=2)


@pytest.mark.parametrize("type", ["local", "dist_sync", "dist_async"])
def test_changes_of_the_optimizer_are_kept(type: str, tmp_path: Path) -> None:
    def change(rule: Any) -> None:
        rule.lr = 0.005
        rule.set_lr_mult({"matrix": 3.0})

    goes_on(tmp_path / "c", OPTIMIZERS["sgd"], (type, 1), (type, 2), change=change)


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_a_job_that_has_nothing_yet_gets_keys_and_optimizer_from_the_file(type: str, tmp_path: Path) -> None:
    def first(kv: Any) -> Any:
        kv.set_optimizer(OPTIMIZERS["adam"]())
        values = start("float32", KEYS)
        kv.init(list(values), list(values.values()))
        kv.init("table", sparse.zeros(TABLE, "float32"))
        train(kv, 0, 3, KEYS, "float32", True)
        kv.save(tmp_path / "c")
        train(kv, 3, 5, KEYS, "float32", True)
        return bits(kv, KEYS, True)

    def second(kv: Any) -> Any:
        kv.load(tmp_path / "c")
        train(kv, 3, 5, KEYS, "float32", True)
        return bits(kv, KEYS, True)

    assert run(type, first, 2, 2) == run(type, second, 2, 3)


@pytest.mark.parametrize("type", ["local", "dist_sync", "dist_async"])
def test_a_running_job_goes_back_to_the_file(type: str, tmp_path: Path) -> None:
    """Keys that had no update then have none afterwards; versions count on from the file's."""

    def work(kv: Any) -> None:
        kv.set_optimizer(OPTIMIZERS["adam"]())
        values = start("float32", KEYS)
        kv.init(list(values), list(values.values()))
        train(kv, 0, 2, {"matrix": KEYS["matrix"]}, "float32", False)
        kv.save(tmp_path / "c")
        train(kv, 2, 5, KEYS, "float32", False)
        expected = bits(kv, KEYS, False)
        kv.load(tmp_path / "c")
        kv.pull(["matrix", "vector"])
        assert (kv.version("matrix"), kv.version("vector")) == (2, 0)
        train(kv, 2, 5, KEYS, "float32", False)
        assert bits(kv, KEYS, False) == expected

    run(type, work, 1, 2)


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_minus_zero_in_a_table_is_kept(type: str, tmp_path: Path) -> None:
    def work(kv: Any) -> None:
        kv.init("table", sparse.row_sparse_array((np.full((1, 4), -0.0, np.float32), [3]), TABLE))
        kv.save(tmp_path / "c")
        kv.load(tmp_path / "c")
        assert np.signbit(kv.row_sparse_pull("table", row_ids=[3, 4]).data).tolist() == [[True] * 4, [False] * 4]

    run(type, work, 1, 2)


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_a_table_without_rows_and_one_of_many_dimensions(type: str, tmp_path: Path) -> None:
    def work(kv: Any) -> None:
        kv.init("none", sparse.zeros((0, 4), "float32"))
        kv.init("thin", sparse.zeros((5, 0), "float32"))
        kv.save(tmp_path / "c")
        kv.load(tmp_path / "c")
        assert kv.row_sparse_pull("thin", row_ids=[1]).data.shape == (1, 0)

    run(type, work)


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_a_new_optimizer_before_the_next_push(type: str, tmp_path: Path) -> None:
    """The file has the slots of the optimizer that is in force, not of the one before."""

    def work(kv: Any) -> None:
        rule = optimizer.SGD(learning_rate=0.1)
        kv.set_optimizer(OPTIMIZERS["adam"]())
        kv.init("w", np.ones(3, np.float32))
        kv.push("w", np.ones(3, np.float32))
        kv.set_optimizer(rule)
        kv.save(tmp_path / "c")
        kv.load(tmp_path / "c")
        kv.push("w", np.ones(3, np.float32))
        rule.momentum = 0.9
        kv.save(tmp_path / "c")
        kv.load(tmp_path / "c")
        kv.push("w", np.ones(3, np.float32))
        assert kv.pull("w") is not None

    run(type, work)


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
@pytest.mark.parametrize("before, after", [(3, 2), (2, 3)])
def test_on_another_number_of_workers(type: str, before: int, after: int, tmp_path: Path) -> None:
    """Each worker has its own residual again, new ones have none."""

    def hold(kv: Any) -> Any:
        kv.set_gradient_compression({"type": "2bit", "threshold": 10.0})
        kv.init("w", np.zeros(3, np.float32))

    def first(kv: Any) -> None:
        hold(kv)
        kv.push("w", np.full(3, kv.rank + 6, np.float32))
        kv.save(tmp_path / "c")

    def second(kv: Any) -> Any:
        hold(kv)
        kv.load(tmp_path / "c")
        if type == "dist_async" and kv.rank:
            kv.barrier()
            return None
        kv.push("w", np.full(3, 3.5 if kv.rank else 4, np.float32))
        pulled = kv.pull("w")
        if type == "dist_async":
            kv.barrier()
        return pulled

    run(type, first, before)
    assert run(type, second, after)[0].tolist() == [20 if type == "dist_sync" else 10] * 3

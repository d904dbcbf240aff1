"""Users' mistakes: each is a typed error at the caller that says what to do, and the store works afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import rules
from kvstore.dist import DistStore
from kvstore.optimizer.base import _REGISTRY
from kvstore.server.hosting import serve
from pslite import InprocCluster, run_all
from pslite.errors import (
    ConfigError,
    ConflictError,
    DTypeError,
    DuplicateKeyError,
    KeyTypeError,
    RemoteError,
    ShapeError,
    UnknownKeyError,
    WorkerFailed,
)

KV = kvstore.KVStore
ONE = np.ones((2, 3), np.float32)
TYPES = ("local", "device", "dist_sync", "dist_async")


def on_each(type: str, work: Callable[[Any], Any], workers: int = 1) -> None:
    """Run ``work(kv)`` and then see that the store still pushes and pulls."""

    def checked(kv: KV) -> None:
        kv.init("w", ONE)
        work(kv)
        kv.barrier()
        kv.push("w", 2 * ONE)
        expected = 2 * kv.num_workers if kv.type == "dist_sync" else 2
        np.testing.assert_array_equal(kv.pull("w"), expected * ONE)

    if type in ("local", "device"):
        checked(kvstore.create(type))
    else:
        kvstore.LocalCluster(workers=workers, servers=2, type=type, timeout=10).run(checked)


FROZEN = np.ones((2, 3), np.float32)
FROZEN.flags.writeable = False

MISTAKES: dict[str, tuple[type[Exception], str, Callable[[Any], Any]]] = {
    "push of an unknown key": (UnknownKeyError, r"'x'.*kv\.init", lambda kv: kv.push("x", ONE)),
    "pull of an unknown key": (UnknownKeyError, r"'x'.*kv\.init", lambda kv: kv.pull("x")),
    "pull into out of an unknown key": (UnknownKeyError, "'x'", lambda kv: kv.pull("x", out=ONE.copy())),
    "pushpull of an unknown key": (UnknownKeyError, "'x'", lambda kv: kv.pushpull("x", ONE.copy())),
    "version of an unknown key": (UnknownKeyError, "'x'", lambda kv: kv.version("x")),
    "one unknown key of two": (UnknownKeyError, "'x'", lambda kv: kv.push(["w", "x"], [ONE, ONE])),
    "push of another shape": (ShapeError, r"'w'.*\(3, 2\), expected \(2, 3\)", lambda kv: kv.push("w", ONE.T)),
    "push of fewer dimensions": (ShapeError, r"\(6,\)", lambda kv: kv.push("w", ONE.reshape(-1))),
    "push of a scalar": (ShapeError, r"\(\)", lambda kv: kv.push("w", np.float32(1))),
    "devices of different shapes": (ShapeError, r"\(3, 2\)", lambda kv: kv.push("w", [ONE, ONE.T])),
    "pull into another shape": (ShapeError, r"\(6,\)", lambda kv: kv.pull("w", out=np.zeros(6))),
    "pushpull into another shape": (ShapeError, r"\(6,\)", lambda kv: kv.pushpull("w", ONE, out=np.zeros(6))),
    "push of another dtype": (DTypeError, "float64, expected float32", lambda kv: kv.push("w", ONE.astype("f8"))),
    "devices of different dtypes": (DTypeError, "int32", lambda kv: kv.push("w", [ONE, ONE.astype("i4")])),
    "push of complex numbers": (DTypeError, "complex64", lambda kv: kv.push("w", ONE.astype("c8"))),
    "push of text": (DTypeError, "'w'.*str", lambda kv: kv.push("w", "text")),
    "push of None": (DTypeError, "NoneType", lambda kv: kv.push("w", None)),
    "push of a number": (DTypeError, "float", lambda kv: kv.push("w", 1.5)),
    "push of a list of numbers": (DTypeError, "float", lambda kv: kv.push("w", [1.0, 2.0])),
    "push of a dict": (DTypeError, "dict", lambda kv: kv.push("w", {"w": ONE})),
    "push of a generator": (DTypeError, "generator", lambda kv: kv.push("w", (a for a in [ONE]))),
    "push of an object array": (DTypeError, "object", lambda kv: kv.push("w", ONE.astype(object))),
    "init with a list of numbers": (DTypeError, "'y'.*float", lambda kv: kv.init("y", [1.0, 2.0])),
    "init with None": (DTypeError, "NoneType", lambda kv: kv.init("y", None)),
    "pull into a list of numbers": (DTypeError, "float", lambda kv: kv.pull("w", out=[1.0])),
    "pull into bytes": (ShapeError, r"\(24,\)", lambda kv: kv.pull("w", out=bytes(24))),
    "pull into a read-only array": (ConfigError, "writable", lambda kv: kv.pull("w", out=FROZEN)),
    "pushpull into a read-only array": (ConfigError, "writable", lambda kv: kv.pushpull("w", FROZEN)),
    "mixed key types": (KeyTypeError, "cannot be mixed", lambda kv: kv.push(["w", 3], [ONE, ONE])),
    "another key type": (KeyTypeError, "str.*cannot be mixed", lambda kv: kv.push(3, ONE)),
    "init with another key type": (KeyTypeError, "cannot be mixed", lambda kv: kv.init(3, ONE)),
    "bytes keys": (KeyTypeError, "int or str, not bytes", lambda kv: kv.push(b"w", ONE)),
    "float keys": (KeyTypeError, "not float", lambda kv: kv.init(3.0, ONE)),
    "no key": (KeyTypeError, "not NoneType", lambda kv: kv.pull(None)),
    "range as keys": (KeyTypeError, "not range", lambda kv: kv.push(range(2), [ONE, ONE])),
    "array as key": (KeyTypeError, "not ndarray", lambda kv: kv.push(np.arange(2), [ONE, ONE])),
    "duplicate init": (DuplicateKeyError, "'w'.*once", lambda kv: kv.init("w", ONE)),
    "duplicate init in one call": (DuplicateKeyError, "'y'", lambda kv: kv.init(["y", "y"], [ONE, ONE])),
    "init with two devices": (DuplicateKeyError, "'y'", lambda kv: kv.init("y", [ONE, ONE])),
    "broadcast again": (DuplicateKeyError, "'w'", lambda kv: kv.broadcast("w", ONE, out=ONE.copy())),
    "fewer values than keys": (ConfigError, "2 keys", lambda kv: kv.push(["w", "w"], [ONE])),
    "more values than keys": (ConfigError, "1 keys", lambda kv: kv.push(["w"], [ONE, ONE])),
    "one array for two keys": (ConfigError, "ndarray.*2 keys", lambda kv: kv.push(["w", "w"], ONE)),
    "fewer outs than keys": (ConfigError, "out=.*2 keys", lambda kv: kv.pull(["w", "w"], out=[ONE.copy()])),
    "no optimizer": (ConfigError, r"optimizer\.create", lambda kv: kv.set_optimizer("sgd")),
    "an optimizer's class": (ConfigError, r"optimizer\.create", lambda kv: kv.set_optimizer(kvstore.optimizer.SGD)),
    "an unknown updater": (ConfigError, r"@kvstore\.updater", lambda kv: kv.set_updater("nobody")),
    "no updater": (ConfigError, r"@kvstore\.updater", lambda kv: kv.set_updater(3)),
    "push with a priority of no number": (ConfigError, "priority=", lambda kv: kv.push("w", ONE, priority="high")),
    "pull with a priority of no integer": (ConfigError, "priority=", lambda kv: kv.pull("w", priority=1.5)),
    "pushpull with a huge priority": (ConfigError, "64 bits", lambda kv: kv.pushpull("w", ONE.copy(), priority=2**63)),
    "version of two keys": (KeyTypeError, "not list", lambda kv: kv.version(["w", "w"])),
    "an unknown capability": (ConfigError, "optimizer", lambda kv: kv.is_capable("sparse")),
}


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_a_typed_error_and_the_store_works_on(mistake: str, type: str) -> None:
    kind, message, call = MISTAKES[mistake]

    def work(kv: KV) -> None:
        with pytest.raises(kind, match=message) as caught:
            call(kv)
        assert caught.type is kind
        np.testing.assert_array_equal(kv.pull("w"), ONE)  # nothing of the call had an effect

    on_each(type, work)


@pytest.mark.parametrize("kind", [kvstore.PSError, ValueError])
def test_errors_are_also_what_python_calls_them(kind: type[Exception]) -> None:
    with pytest.raises(kind):
        kvstore.create("foo")
    with pytest.raises(KeyError):
        kvstore.create().pull("x")


def test_int_keys_are_shown_as_ints() -> None:
    kv = kvstore.create()
    with pytest.raises(UnknownKeyError, match=r"key 3 does not exist; call kv\.init\(3, value\)"):
        kv.pull(3)
    kv.init(3, ONE)
    with pytest.raises(ShapeError, match="key 3: "):
        kv.push(3, ONE.T)


# -- keys that are fine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["local", "dist_sync"])
@pytest.mark.parametrize(
    ("key", "same"),
    [
        (-5, -5), (2**62, 2**62), (-(2**63), -(2**63)), (300_000, 300_000), (0, 0),
        (np.int64(7), 7), (np.uint8(7), 7), (7, np.int32(7)), (True, 1),
        ("", ""), ("ü ñ\n\0", "ü ñ\n\0"), ("k" * 10_000, "k" * 10_000), (np.str_("name"), "name"),
    ],
    ids=lambda k: repr(k)[:20],
)  # fmt: skip
def test_keys(key: Any, same: Any, type: str) -> None:
    def work(kv: KV) -> None:
        kv.init(key, ONE)
        kv.push(same, 4 * ONE)
        np.testing.assert_array_equal(kv.pull(key), 4 * kv.num_workers * ONE)

    work(kvstore.create()) if type == "local" else kvstore.LocalCluster(workers=2, servers=3).run(work)


@pytest.mark.parametrize("type", ["local", "dist_sync"])
@pytest.mark.parametrize("key", [2**63, -(2**63) - 1, 2**80, np.uint64(2**63)], ids=str)
def test_integers_that_do_not_fit(key: Any, type: str) -> None:
    def work(kv: KV) -> None:
        with pytest.raises(KeyTypeError, match="64 bits"):
            kv.init(key, ONE)
        kv.init(1, ONE)

    work(kvstore.create()) if type == "local" else kvstore.LocalCluster().run(work)


@pytest.mark.parametrize("type", TYPES)
def test_lists_of_lists_of_different_lengths_are_fine(type: str) -> None:
    def work(kv: KV) -> None:
        kv.init(["a", "b"], [ONE, ONE])
        outs = [[np.zeros((2, 3))], [np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3))]]
        kv.push(["a", "b"], [[ONE, ONE, ONE], [ONE]])
        kv.pull(["a", "b"], out=outs)
        assert [[out[0, 0] for out in group] for group in outs] == [[3], [1, 1, 1]]

    on_each(type, work)


@pytest.mark.parametrize("type", TYPES)
def test_no_keys_are_no_work_and_no_array_for_a_key_is_a_mistake(type: str) -> None:
    def work(kv: KV) -> None:
        kv.init([], [])
        kv.push([], []).wait()
        assert kv.pull([]) == []
        for call in (lambda: kv.push("w", []), lambda: kv.pushpull("w", []), lambda: kv.pull("w", out=[])):
            with pytest.raises(ConfigError, match="an array for key 'w'"):
                call()

    on_each(type, work)


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_a_pushpull_whose_result_has_no_place_pushes_nothing(type: str) -> None:
    def work(kv: KV) -> None:
        kv.init("v", np.zeros(2))
        frozen = np.ones(2)
        frozen.flags.writeable = False
        with pytest.raises(ConfigError, match="writable"):
            kv.pushpull("v", frozen)
        assert kv.pull("v").tolist() == [0, 0]

    on_each(type, work)


def test_more_servers_than_keys() -> None:
    def work(kv: KV) -> float:
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("only", ONE)
        kv.push("only", ONE)
        return float(kv.pull("only")[0, 0])

    assert kvstore.LocalCluster(workers=2, servers=7).run(work) == [3, 3]
    assert kvstore.LocalCluster(workers=2, servers=3).run(lambda kv: None) == [None, None]  # no key at all


@pytest.mark.parametrize("type", ["local", "dist_sync"])
@pytest.mark.parametrize("optimizer", [None, "sgd"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (3, 0), (1, 1, 1, 1), (5, 1)], ids=str)
def test_shapes(shape: tuple[int, ...], optimizer: str | None, type: str) -> None:
    """With a bound of one element every array that has two rows is split."""

    def work(kv: KV) -> None:
        if optimizer:
            kv.set_optimizer(kvstore.optimizer.create(optimizer, learning_rate=1.0))
        kv.init("w", np.full(shape, 9.0))
        assert kv.pull("w").shape == shape
        kv.push("w", [np.ones(shape), np.ones(shape)])
        out = np.zeros(shape)
        kv.pull("w", out=out)
        expected = 9 - 2 * kv.num_workers if optimizer else 2 * kv.num_workers
        np.testing.assert_array_equal(out, np.full(shape, expected))
        value = np.ones(shape)
        kv.pushpull("w", value)
        np.testing.assert_array_equal(value, kv.pull("w"))
        kv.barrier()

    if type == "local":
        work(kvstore.create())
    else:
        kvstore.LocalCluster(workers=2, servers=3, bigarray_bound=1).run(work)


# -- workers that disagree --------------------------------------------------------------------------------------------


def test_two_ranks_with_different_optimizers() -> None:
    def work(kv: KV) -> float:
        sgd = kvstore.optimizer.create("sgd", learning_rate=1.0)
        if kv.rank == 1:
            adam = kvstore.optimizer.create("adam")
            with pytest.raises(ConflictError, match=r"rule must be the same on every rank: rank 1 gave .*adam.*sgd"):
                kv.set_optimizer(adam)
        kv.set_optimizer(sgd)
        kv.init("w", ONE)
        kv.push("w", ONE)
        return float(kv.pull("w")[0, 0])

    assert kvstore.LocalCluster(workers=2, servers=3).run(work) == [-1, -1]


def test_the_same_sequence_of_optimizers_on_every_rank() -> None:
    def work(kv: KV) -> float:
        kv.init("w", 0 * ONE)
        for step in range(10):
            kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=2.0**-step))
            kv.pushpull("w", ONE, out=np.zeros((2, 3)))
        return float(kv.pull("w")[0, 0])

    assert kvstore.LocalCluster(workers=3, servers=2).run(work) == [-3 * sum(2.0**-k for k in range(10))] * 3


def test_two_ranks_with_different_values_at_init() -> None:
    """The value of rank 0 counts; another shape or dtype is an error where it was given."""

    def work(kv: KV) -> float:
        if kv.rank == 0:
            kv.init("w", 7 * ONE)
        else:
            with pytest.raises(ShapeError, match=r"\(3, 2\), expected \(2, 3\)"):
                kv.init("w", ONE.T)
            with pytest.raises(DTypeError, match="float64, expected float32"):
                kv.init("w", ONE.astype(np.float64))
            with pytest.raises(UnknownKeyError):
                kv.pull("w")
            kv.init("w", ONE)
        return float(kv.pull("w")[0, 0])

    assert kvstore.LocalCluster(workers=2).run(work) == [7, 7]


def test_keys_may_be_made_in_another_order_on_each_worker() -> None:
    def work(kv: KV) -> list[float]:
        kv.init(["a", "b", "c"], [ONE, 2 * ONE, 3 * ONE])
        names = [f"k{n}" for n in range(6)]
        values = {name: n * ONE for n, name in enumerate(names)}
        order = names if kv.rank == 0 else names[::-1]
        kv.init(order, [values[name] for name in order])
        return [float(array[0, 0]) for array in kv.pull(names)]

    assert kvstore.LocalCluster(workers=2, servers=3).run(work) == [list(range(6))] * 2


def test_two_ranks_with_different_types_of_store() -> None:
    """The worker that disagrees gets the error and the others hear of it; nobody waits for ever."""
    cluster = InprocCluster(workers=2, servers=2, timeout=10)

    def work(rank: int, type: str) -> type[Exception]:
        office = cluster.workers[rank]
        office.start()
        with pytest.raises((ConflictError, WorkerFailed)) as caught, DistStore(type, office) as kv:
            kv.init("w", ONE)
            kv.pushpull("w", ONE.copy())
            kv.barrier()
        return caught.type

    jobs: list[Callable[[], Any]] = [lambda: work(0, "dist_sync"), lambda: work(1, "dist_async")]
    jobs += [lambda o=o: serve(o) for o in (cluster.scheduler, *cluster.servers)]  # type: ignore[misc]
    try:
        assert run_all(jobs)[:2] == [WorkerFailed, ConflictError]
    finally:
        cluster.close()


# -- code on the servers that raises ----------------------------------------------------------------------------------


@pytest.fixture
def _registries() -> Iterator[None]:
    optimizers, updaters = dict(_REGISTRY), dict(rules._UPDATERS)
    yield
    for registry, before in ((_REGISTRY, optimizers), (rules._UPDATERS, updaters)):
        registry.clear()
        registry.update(before)


@pytest.mark.usefixtures("_registries")
@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
def test_an_updater_that_raises(type: str) -> None:
    @kvstore.updater("picky")
    def picky(key: Any, received: Any, stored: Any) -> None:
        stored += received
        if received.sum() > 100:
            raise ZeroDivisionError(f"too much for {key}")

    def work(kv: KV) -> float:
        kv.set_updater(picky)
        kv.init(["w", "v"], [ONE, ONE])
        with pytest.raises(RemoteError) as caught:
            kv.pushpull("w", 100 * ONE, out=np.zeros((2, 3)))
        error = caught.value
        assert error.what == "the updater 'picky'" and error.error == "ZeroDivisionError: too much for w"
        assert error.node.startswith("server")
        assert "in picky" in error.trace and "raise ZeroDivisionError" in error.trace
        kv.barrier()
        kv.push("w", ONE)
        kv.barrier()
        return float(kv.pull("w")[0, 0])

    assert kvstore.LocalCluster(workers=3, servers=2, type=type).run(work) == [4, 4, 4]


@pytest.mark.usefixtures("_registries")
def test_an_optimizer_that_raises() -> None:
    @kvstore.optimizer.register
    class Fragile(kvstore.optimizer.Optimizer):
        def update(self, key: Any, weight: Any, grad: Any, state: Any, count: int) -> None:
            weight += grad
            if count == 1 and grad[0, 0] < 0:
                raise RuntimeError("fragile")

    def work(kv: KV) -> float:
        kv.set_optimizer(Fragile())
        kv.init("w", ONE)
        handle = kv.push("w", -ONE)
        assert isinstance(error := handle.exception(), RemoteError)
        assert error.what == "the optimizer Fragile" and "fragile" in str(error)
        kv.push("w", ONE)
        return float(kv.pull("w")[0, 0])

    assert kvstore.LocalCluster(workers=2, servers=2).run(work) == [3, 3]


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_an_optimizer_on_integers(type: str) -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(kvstore.optimizer.create("sgd"))
        kv.init("n", np.ones(2, np.int64))
        with pytest.raises(DTypeError, match=r"'n'.*int64"):
            kv.push("n", np.ones(2, np.int64)).wait()
        assert kv.pull("n").tolist() == [1, 1]

    work(kvstore.create()) if type == "local" else kvstore.LocalCluster(workers=2).run(work)


@pytest.mark.parametrize("type", ["local", "device"])
def test_a_local_updater_that_raises_leaves_the_value(type: str) -> None:
    def bad(key: Any, received: Any, stored: Any) -> None:
        stored[...] = 99
        raise ZeroDivisionError("mine")

    kv = kvstore.create(type)
    kv.init("w", ONE)
    kv.set_updater(bad)
    with pytest.raises(ZeroDivisionError, match="mine"):
        kv.push("w", ONE)
    np.testing.assert_array_equal(kv.pull("w"), ONE)


@pytest.mark.usefixtures("_registries")
def test_a_rule_for_whole_arrays_after_a_split_init() -> None:
    @kvstore.updater("add")
    def add(key: Any, received: Any, stored: Any) -> None:
        stored += received

    def work(kv: KV) -> float:
        kv.init(["big", "small"], [np.zeros((2, 50), np.float32), np.zeros(1, np.float32)])
        with pytest.raises(ConfigError, match=r"updater 'add'.*'big' is split over the servers: set it before init"):
            kv.set_updater("add")
        kv.push(["big", "small"], [np.ones((2, 50), np.float32), np.ones(1, np.float32)])
        assert kv.pull("big")[1, 49] == 2
        return float(kv.pull("small")[0])

    assert kvstore.LocalCluster(workers=2, servers=3, bigarray_bound=10).run(work) == [2, 2]


@pytest.mark.usefixtures("_registries")
def test_a_rule_for_whole_arrays_before_init_keeps_them_whole() -> None:
    shapes = []

    @kvstore.updater("shape")
    def shape(key: Any, received: Any, stored: Any) -> None:
        shapes.append(stored.shape)
        stored += received

    def work(kv: KV) -> float:
        kv.set_updater("shape")
        kv.init("big", np.zeros((4, 50), np.float32))
        kv.push("big", np.ones((4, 50), np.float32))
        return float(kv.pull("big").sum())

    assert kvstore.LocalCluster(workers=2, servers=3, bigarray_bound=10).run(work) == [400, 400]
    assert shapes == [(4, 50)]

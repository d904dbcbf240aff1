"""Hostile networks, careless users and numbers at the edge, in combinations that a training script may meet."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import rules
from kvstore.compression import Codec, base
from kvstore.optimizer import base as optimizers
from kvstore.p3 import open_store
from kvstore.server.hosting import serve
from kvstore.sparse import row_sparse_array, zeros
from pslite import InprocCluster, run_all
from pslite.errors import ConfigError, KeyTypeError
from pslite.van.inproc import Fault
from pslite.wire import Message

KV = kvstore.KVStore
SHAPE = (20, 3)
STEPS = 6


class Lossy:
    """Loses every tenth message and doubles every tenth."""

    def __init__(self) -> None:
        self._random = random.Random(1)
        self._lock = threading.Lock()
        self.hits = 0

    def __call__(self, sender: str, receiver: str, message: Message) -> int:
        with self._lock:
            drawn = self._random.random()
            self.hits += drawn < 0.2
        return 0 if drawn < 0.1 else 2 if drawn < 0.2 else 1


def run(work: Callable[[KV], Any], fault: Fault | None = None, **options: Any) -> list[Any]:
    """``work(kv)`` on two workers of a job with two servers."""
    cluster = InprocCluster(workers=2, servers=2, fault=fault, resend_timeout=0.02, **options)

    def job(office: Any) -> Any:
        office.start()
        with open_store("dist_sync", office) as kv:
            return work(kv)

    servers = [partial(serve, office) for office in (cluster.scheduler, *cluster.servers)]
    try:
        return run_all([*(partial(job, office) for office in cluster.workers), *servers])[:2]
    finally:
        cluster.close()


def gradient(kv: KV, step: int) -> Any:
    return np.random.default_rng([kv.rank, step]).standard_normal(SHAPE).astype(np.float32)


def rows(kv: KV, step: int) -> Any:
    ids = np.random.default_rng([kv.rank, step]).choice(SHAPE[0], 4, replace=False)
    return row_sparse_array((gradient(kv, step)[ids], ids), SHAPE)


# -- a network that loses and doubles ---------------------------------------------------------------------------------


def pull_rows(kv: KV) -> Any:
    kv.set_optimizer(kvstore.optimizer.create("adam"))
    kv.init("t", zeros(SHAPE))
    found = []
    for step in range(STEPS):
        kv.push("t", rows(kv, step))
        found.append(kv.row_sparse_pull("t", row_ids=np.arange(SHAPE[0])).data.tobytes())
    return found


def pushpull_rows(kv: KV) -> Any:
    kv.init(["t", "w"], [zeros(SHAPE), np.zeros(SHAPE, np.float32)])
    found, out = [], np.empty(SHAPE, np.float32)
    for step in range(STEPS):
        for key in ("t", "w"):
            kv.pushpull(key, rows(kv, step), out=out)
            found.append(out.tobytes())
    return found


def compressed(kv: KV, params: dict[str, Any]) -> Any:
    kv.set_gradient_compression(params)
    kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=0.1, momentum=0.9))
    kv.init(["a", "b"], [np.zeros(SHAPE, np.float32)] * 2)
    found, outs = [], [np.empty(SHAPE, np.float32), np.empty(SHAPE, np.float32)]
    for step in range(STEPS):
        kv.push(["a", "b"], [gradient(kv, step)] * 2)
        kv.pull(["a", "b"], out=outs)
        found.append(outs[0].tobytes())
        kv.pushpull(["a", "b"], [gradient(kv, STEPS + step)] * 2, out=outs)
        found.append(outs[1].tobytes())
    return found


def in_slices(kv: KV) -> Any:
    keys = list(range(5))
    kv.init(keys, [np.zeros(SHAPE, np.float32)] * 5)
    found, outs = [], [np.empty(SHAPE, np.float32) for _ in keys]
    for step in range(STEPS):
        for key in random.Random(kv.rank + step).sample(keys, 5):  # each worker in an order of its own
            kv.push(key, gradient(kv, step) * key, priority=-key)
        for handle in [kv.pull(key, out=outs[key], priority=-key, wait=False) for key in keys]:
            handle.wait()
        found += [out.tobytes() for out in outs]
    return found


@pytest.mark.parametrize(
    ("work", "options"),
    [
        (pull_rows, {}),
        (pull_rows, {"bigarray_bound": 8}),
        (pushpull_rows, {"bigarray_bound": 8}),
        (partial(compressed, params={"type": "2bit"}), {"bigarray_bound": 8}),
        (partial(compressed, params={"type": "qsgd"}), {}),
        (partial(compressed, params={"type": "randomk", "ratio": 0.2}), {}),
        (partial(compressed, params={"type": "int8", "direction": "both"}), {}),
        (partial(compressed, params={"type": "fp16", "direction": "both"}), {"bigarray_bound": 8}),
        (in_slices, {"p3": True, "slice_threshold": 8}),
    ],
    ids=["rows", "rows-split", "pushpull", "2bit-split", "qsgd", "randomk", "int8-both", "fp16-both-split", "p3"],
)
def test_a_lossy_network_changes_no_bit(work: Callable[[KV], Any], options: dict[str, Any]) -> None:
    fault = Lossy()
    assert run(work, fault, **options) == run(work, **options)
    assert fault.hits > 10


# -- codecs of careless users -----------------------------------------------------------------------------------------


class AsItIs(Codec):
    """Returns what it was given, not new arrays."""

    pulls = True

    def encode(self, values: Any, salt: int) -> Any:
        return [values[::2], values[1::2]]

    def decode(self, code: Any, size: int, salt: int) -> Any:
        return np.stack(code, axis=1).reshape(-1)


class InFloat64(Codec):
    """A division makes float64 of what it sends."""

    pulls = True

    def encode(self, values: Any, salt: int) -> Any:
        return [np.rint(values * 4).astype(np.int8)]

    def decode(self, code: Any, size: int, salt: int) -> Any:
        return code[0] / 4


class TooShort(Codec):
    """Decodes to another number of values than there were."""

    def encode(self, values: Any, salt: int) -> Any:
        return [values[:1]]

    def decode(self, code: Any, size: int, salt: int) -> Any:
        return code[0]


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    for codec in (AsItIs, InFloat64, TooShort):
        base.register(codec.__name__)(codec)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["AsItIs", "InFloat64"])
def test_codecs_that_share_memory_or_compute_in_float64(name: str) -> None:
    def train(kv: KV) -> None:
        kv.set_gradient_compression({"type": name, "direction": "push" if kv.type == "device" else "both"})
        kv.init("w", np.zeros(4, np.float32))
        for total in (0.25, 0.5):
            kv.push("w", np.full(4, total, np.float32))
            found = kv.pull("w")
            assert found.dtype == np.float32 and found.tolist() == [total * kv.num_workers] * 4
            kv.barrier()

    with kvstore.create("device") as kv:
        train(kv)
    run(train)


@pytest.mark.usefixtures("registered")
def test_a_codec_that_decodes_to_another_shape() -> None:
    def work(kv: KV) -> None:
        kv.init("w", np.zeros(4, np.float32))
        kv.set_gradient_compression({"type": "TooShort"})
        with pytest.raises(ConfigError, match=r"TooShort.*shape \[1\].*shape \[4\]"):
            kv.push("w", np.ones(4, np.float32))
        kv.set_gradient_compression({"type": "none"})
        kv.push("w", np.ones(4, np.float32))
        assert kv.pull("w").tolist() == [kv.num_workers] * 4  # nothing was held back

    with kvstore.create("device") as kv:
        work(kv)
    run(work)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_float16_rows_whose_sum_overflows_become_infinity_without_a_warning() -> None:
    def work(kv: KV) -> None:
        kv.init("t", zeros((4, 1), "float16"))
        data, ids = np.full((2, 1), 60_000, np.float16), [kv.rank, 3]
        kv.push("t", row_sparse_array((data, ids), (4, 1)))
        assert kv.pull("t").reshape(-1).tolist() == [60_000, 60_000, 0, np.inf]

    run(work)


# -- who may write where ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_a_key_that_a_pull_names_twice_gives_two_arrays(type: str) -> None:
    def work(kv: KV) -> None:
        kv.init("w", np.ones(3))
        first, second = kv.pull(["w", "w"])
        first += 1
        assert second.tolist() == [1] * 3

    if type == "local":
        work(kvstore.create())
    else:
        run(work)


class Halving(kvstore.optimizer.Optimizer):
    """Computes in the gradient that it is given."""

    def update(self, key: Any, weight: Any, grad: Any, state: Any, count: int) -> None:
        grad *= 0.5
        weight -= grad


@pytest.mark.parametrize("type", ["local", "dist_sync", "dist_async"])
def test_an_optimizer_of_the_user_that_computes_in_the_gradient(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_REGISTRY", dict(optimizers._REGISTRY))
    kvstore.optimizer.register(Halving)

    def work(kv: KV) -> None:
        kv.set_optimizer(Halving())
        kv.init("w", np.zeros(3))
        gradient = np.ones(3)
        kv.push("w", gradient)
        assert kv.pull("w").tolist() == [-0.5] * 3 and gradient.tolist() == [1] * 3

    if type == "local":
        work(kvstore.create())
    else:
        kvstore.LocalCluster(1, 1, type).run(work)


@pytest.mark.parametrize("type", ["local", "dist_sync"])
def test_an_updater_that_writes_other_numbers_of_rows_is_refused(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_UPDATERS", dict(rules._UPDATERS))

    @kvstore.updater("moves-rows")
    def move(key: Any, received: Any, stored: Any) -> None:
        stored.indices[:] = 0
        stored.data[:] = 7

    def work(kv: KV) -> None:
        kv.init("t", zeros((4, 1)))
        kv.set_updater("moves-rows")
        with pytest.raises(ConfigError, match="other rows"):
            kv.push("t", row_sparse_array((np.ones((1, 1), np.float32), [2]), (4, 1))).wait()
        assert not kv.pull("t").any()

    if type == "local":
        work(kvstore.create())
    else:
        run(work)


# -- keys -------------------------------------------------------------------------------------------------------------


def test_keys_at_the_edge() -> None:
    def ints(kv: KV) -> None:
        keys = [2**63 - 1, -(2**63), 0]
        kv.init(keys, [np.full(2, float(i)) for i in range(3)])
        kv.push(keys[0], np.ones(2))
        assert [one[0] for one in kv.pull(keys)] == [kv.num_workers, 1, 2]

    def texts(kv: KV) -> None:
        keys = ["", " ", "a\0b", "\u65e5\u672c\U0001f600", "x" * 5000]
        kv.init(keys, [np.full(2, float(i)) for i in range(5)])
        kv.push(keys[3], np.ones(2))
        assert [one[0] for one in kv.pull(keys)] == [0, 1, 2, kv.num_workers, 4]
        with pytest.raises(KeyTypeError, match="surrogate"):  # on every rank: none waits for the others
            kv.init("\udcff.txt", np.ones(2))

    for work in (ints, texts):
        work(kvstore.create())
        run(work)


def test_compression_holds_nothing_back_of_a_push_that_is_refused() -> None:
    def work(kv: KV) -> None:
        kv.init("w", np.zeros(3, np.float32))
        kv.set_gradient_compression({"type": "2bit", "threshold": 0.5})
        for _ in range(2):
            with pytest.raises(ConfigError, match="priority"):
                kv.push("w", np.full(3, 0.4, np.float32), priority=1.5)  # type: ignore[arg-type]
        kv.push("w", np.full(3, 0.4, np.float32))
        assert kv.pull("w").tolist() == [0, 0, 0]

    run(work)

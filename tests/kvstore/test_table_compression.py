"""Gradient compression on 'device' and dist stores: what is compressed where, residuals, changes, bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from pslite.errors import ConfigError, ConflictError, DTypeError, StorageError
from tests.kvstore.on_stores import (
    DIST,
    KV,
    LOCAL,
    SHAPE,
    SPLIT,
    SYNC,
    WHOLE,
    Store,
    full,
    on,
    push,
    read,
    same,
    summed,
    update,
)

DEVICE = [store for store in LOCAL if store.type == "device"]
COMPRESSING = DEVICE + DIST
TWO_BITS = {"type": "2bit", "threshold": 0.5}
CODECS = ["1bit", "2bit", "bf16", "fp16", "int4", "int8", "qsgd", "randomk", "sign", "terngrad", "topk"]
ELEMENTWISE = ["1bit", "2bit", "bf16", "fp16"]
BOTH_WAYS = ["bf16", "fp16", "int4", "int8"]

TRACE = [(0.4, 0), (0.2, 0.5), (-0.1, 0), (-0.6, -0.5), (-1.5, -0.5), (0, -0.5)]
TRACE += [(3.0, 0.5), (0, 0.5), (0, 0.5), (0, 0.5), (0, 0)]


# -- 2bit and 1bit ----------------------------------------------------------------------------------------------------


@on(COMPRESSING)
@pytest.mark.parametrize("call", ["push", "pushpull"])
def test_the_trace_of_two_bits(store: Store, call: str) -> None:
    """In MXNet pushpull under compression is an error in dist types."""

    def work(kv: KV) -> list[float]:
        kv.set_gradient_compression(TWO_BITS)
        kv.init("w", full(100))
        values = []
        for gradient, _ in TRACE:
            if call == "push":
                update(kv, "w", full(gradient))
                values.append(read(kv))
            else:
                out = full(gradient if kv.rank == 0 else 0)
                if kv.rank == 0 or "async" not in kv.type:
                    kv.pushpull("w", out)
                kv.barrier()
                values.append(float(out[3, 2]))
        return values

    assert store.run(work)[0] == [emitted for _, emitted in TRACE]


@on(COMPRESSING)
def test_the_trace_of_one_bit(store: Store) -> None:
    """A bit is set if the residual is greater than the threshold, and counts 1 or -1 whatever that is."""

    def work(kv: KV) -> list[float]:
        kv.set_gradient_compression({"type": "1bit", "threshold": 0.25})
        kv.init("w", full(0))
        values = []
        for gradient in (0.25, 0, 0, 2.5, 0):  # residuals before each: 0.25, 1.25, 0.25, 3.75, 2.75
            update(kv, "w", full(gradient))
            values.append(read(kv))
        return values

    others = [2 * step for step in (-1, 1, -1, 1, -1)]  # of two more workers who push zeros: 0, 1, 0, 1, 0
    if "async" in store.type or store.workers == 1:
        others = [0] * 5
    assert store.run(work)[0] == [own + more for own, more in zip((-1, 1, -1, 1, 1), others, strict=True)]


@on(COMPRESSING)
def test_any_threshold_is_exact_and_may_be_text(store: Store) -> None:
    """In MXNet it reaches servers with six decimals: 1e-7 is 0 there."""

    def work(kv: KV) -> None:
        kv.set_gradient_compression({"type": "2bit", "threshold": "1e-7"})
        kv.init("w", full(0))
        update(kv, "w", full(1e-7))
        assert read(kv) == np.float32(1e-7)
        kv.set_gradient_compression({"type": "2bit"})  # 0.5 without a threshold
        update(kv, "w", full(0.5))
        assert read(kv) == 0.5

    store.run(work)


# -- what is compressed -----------------------------------------------------------------------------------------------


def test_device_compresses_each_device_before_the_sum() -> None:
    kv = kvstore.create("device")
    kv.set_gradient_compression(TWO_BITS)
    kv.init("w", full(9))
    for gradients, total in (((0.3, 0.6, -0.7), 0), ((0.3, 0.4, -0.3), 0.5)):
        kv.push("w", [full(gradient) for gradient in gradients])
        assert read(kv) == total
    kv.push("w", [full(0.5)])  # fewer devices: the first one's residual is 0.1
    assert read(kv) == 0.5
    kv.push("w", [full(0.5)] * 5)  # more
    assert read(kv) == 2.5


@on(DIST)
def test_a_worker_compresses_the_sum_of_its_devices(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_gradient_compression(TWO_BITS)
        kv.init("w", full(0))
        update(kv, "w", [full(0.25), full(0.25)])
        assert read(kv) == 0.5
        push(kv, "w", full(0.75))
        assert read(kv) == 0.5 * summed(kv)

    store.run(work)


@on(DIST)
def test_a_gradient_of_any_layout_is_read_and_not_changed(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_gradient_compression(TWO_BITS)
        kv.init("w", full(0))
        plain = np.full(SHAPE, 0.75, np.float32)
        plain[0] = -0.75
        plain[-1, 0] = 0.25
        layouts = (plain, np.asfortranarray(plain), np.repeat(plain, 2, axis=0)[::2], plain.astype(">f4"))
        expected = np.sign(np.trunc(plain * 2)) / 2
        for gradient in layouts:
            kv.set_gradient_compression({"type": "none"})
            push(kv, "w", full(0))  # sends what was held back
            kv.set_gradient_compression(TWO_BITS)
            before = gradient.copy()
            update(kv, "w", gradient)
            assert np.array_equal(gradient, before)
            gradient[...] = 100  # the call has returned
            assert np.array_equal(kv.pull("w"), expected)

    store.run(work)


@on(COMPRESSING)
def test_init_broadcast_and_pull_are_not_compressed(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_gradient_compression(TWO_BITS)
        out = full(0)
        kv.broadcast("w", full(0.123), out=out)
        same(out, 0.123)
        kv.set_optimizer(kvstore.optimizer.create("test"))
        push(kv, "w", full(0.5))
        value = np.float32(0.123)
        for _ in range(kv.num_workers if "async" in kv.type else 1):
            value += np.float32(0.5 * summed(kv))
        same(kv.pull("w"), value)

    store.run(work)


@on(COMPRESSING)
def test_keys_are_float32_and_dense_under_compression(store: Store) -> None:
    def work(kv: KV) -> None:
        rows = kvstore.sparse.row_sparse_array((np.ones((1, 3), np.float32), np.array([2])), SHAPE)
        kv.set_gradient_compression(TWO_BITS)
        kv.init(["w", "half", "double", "rows"], [full(0), full(1, "float16"), full(1, "float64"), rows])
        for key, dtype in (("half", "float16"), ("double", "float64")):
            with pytest.raises(DTypeError, match=rf"'{key}'.*{dtype}, expected float32, under gradient compression"):
                kv.push(["w", key], [full(5), full(5, dtype)])
        for key in ("rows", "w"):
            with pytest.raises(StorageError, match=rf"'{key}'.*row-sparse.*dense ones, under compression"):
                kv.push(key, rows)
        kv.barrier()
        assert [float(kv.pull(key).max()) for key in ("w", "half", "double", "rows")] == [0, 1, 1, 1]
        kv.barrier()
        update(kv, "w", full(0.25))
        update(kv, "w", full(0.25))
        assert read(kv) == 0.5  # and none of the pushes above had left a residual
        kv.set_gradient_compression({"type": "none"})
        push(kv, "half", full(2, "float16"))
        assert read(kv, "half") == 2 * summed(kv)

    store.run(work)


@on(COMPRESSING)
def test_a_call_that_is_refused_leaves_no_residual(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_gradient_compression(TWO_BITS)
        kv.init("w", full(0))
        with pytest.raises(ConfigError, match="priority"):
            kv.push("w", full(0.25), priority=0.5)
        with pytest.raises(kvstore.ShapeError):
            kv.pushpull("w", full(0.25), out=np.zeros(3))
        update(kv, "w", full(0.25))
        assert read(kv) == 0

    store.run(work)


def test_a_local_store_refuses_compression() -> None:
    with pytest.raises(ConfigError, match="use type 'device' or a dist type"):
        kvstore.create("local").set_gradient_compression(TWO_BITS)


@on(COMPRESSING)
def test_mistakes_change_nothing(store: Store) -> None:
    def work(kv: KV) -> None:
        for wrong in (None, "2bit", {}, {"type": "3bit"}, {"type": "2bit", "threshold": 0}, {"type": "2bit", "x": 1}):
            with pytest.raises(ConfigError):
                kv.set_gradient_compression(wrong)
        kv.init("w", full(0))
        push(kv, "w", full(0.1))
        same(kv.pull("w"), sum([np.float32(0.1)] * summed(kv), np.float32(0)))

    store.run(work)


# -- set, set again, switched off -------------------------------------------------------------------------------------


@on(COMPRESSING)
@pytest.mark.parametrize("when", ["before init", "after init", "after a push"])
def test_compression_may_be_set_at_any_time(store: Store, when: str) -> None:
    def work(kv: KV) -> None:
        for step in ("before init", "after init", "after a push"):
            if step == when:
                kv.set_gradient_compression(TWO_BITS)
            if step == "before init":
                kv.init("w", full(0))
            elif step == "after init":
                update(kv, "w", full(3))
        update(kv, "w", full(0))
        update(kv, "w", full(0))
        update(kv, "w", full(0.5))
        assert read(kv) == 0.5

    store.run(work)


@on(COMPRESSING)
def test_the_residual_outlives_a_change_and_comes_with_the_first_push_without_compression(store: Store) -> None:
    def work(kv: KV) -> None:
        kv.set_gradient_compression(TWO_BITS)
        kv.init("w", full(0))
        update(kv, "w", full(2))  # leaves 1.5
        assert read(kv) == 0.5
        kv.set_gradient_compression({"type": "2bit", "threshold": 0.25})
        update(kv, "w", full(0))  # leaves 1.25
        assert read(kv) == 0.25
        kv.set_gradient_compression({"type": "fp16"})
        update(kv, "w", full(2.0**-20))  # leaves 2 ** -20
        assert read(kv) == 1.25
        kv.set_gradient_compression({"type": "1bit"})
        update(kv, "w", full(0.75))
        kv.set_gradient_compression({"type": "NONE"})
        update(kv, "w", full(3))
        spare = 2.0**-20 + 0.75 - 1 + 3
        more = 0 if "async" in kv.type else kv.num_workers - 1  # whose zeros were sent as -1
        assert read(kv) == spare + more
        update(kv, "w", full(3))
        assert read(kv) == 3

    store.run(work)


@on([store for store in DIST if store.workers == 3])
def test_to_say_it_again_changes_nothing_and_another_setting_is_a_conflict(store: Store) -> None:
    def work(kv: KV) -> None:
        for _ in range(2):
            kv.set_gradient_compression(TWO_BITS)
        kv.init("w", full(0))
        if kv.rank == 2:
            for other in ({"type": "2bit", "threshold": 0.25}, {"type": "1bit"}, {"type": "fp16", "direction": "both"}):
                with pytest.raises(ConflictError, match="the compression must be the same on every rank: rank 2 gave"):
                    kv.set_gradient_compression(other)
        kv.set_gradient_compression({"type": "fp16"})
        push(kv, "w", full(1))
        same(kv.pull("w"), summed(kv))

    store.run(work)


# -- large arrays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [True, False], ids=["before-init", "after-init"])
@pytest.mark.parametrize("shape", [(169,), (13, 13)], ids=str)
def test_an_array_on_three_servers(early: bool, shape: tuple[int, ...]) -> None:
    """MXNet's servers abort if it is set after init: they cut 56, 57 and 56 elements, or 64, 48 and 57."""
    store = Store("dist_sync", 2, 3, 100)

    def work(kv: KV) -> None:
        gradient = np.random.default_rng(0).standard_normal(shape, np.float32)
        value = np.zeros(shape, np.float32)
        if early:
            kv.set_gradient_compression(TWO_BITS)
        kv.init("w", value)
        kv.set_gradient_compression(TWO_BITS)
        residual = np.zeros(shape, np.float32)
        for _ in range(4):
            residual += gradient
            emitted = np.float32(0.5) * (residual >= 0.5) - np.float32(0.5) * (residual <= -0.5)
            residual -= emitted
            kv.push("w", gradient)
            np.testing.assert_array_equal(kv.pull("w"), 2 * emitted)

    store.run(work)


@on([store for store in SYNC if store.split])
@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec not in ELEMENTWISE])
def test_a_codec_for_whole_arrays_is_refused_once_a_key_is_split(store: Store, codec: str) -> None:
    def work(kv: KV) -> None:
        kv.init("w", full(0))
        with pytest.raises(ConfigError, match=f"{codec}.*key 'w' is split over the servers: set it before init"):
            kv.set_gradient_compression({"type": codec})
        push(kv, "w", full(0.1))
        same(kv.pull("w"), sum([np.float32(0.1)] * kv.num_workers, np.float32(0)))

    store.run(work)


@on([store for store in SYNC if store.split])
def test_under_a_codec_for_whole_arrays_keys_are_not_split(store: Store) -> None:
    @kvstore.updater("whole")
    def whole(key: Any, received: Any, stored: Any) -> None:
        stored += stored.shape == SHAPE

    def work(kv: KV) -> None:
        kv.set_gradient_compression({"type": "int8"})
        kv.init("w", full(0))
        kv.set_updater(whole)  # which is refused after a split, too
        push(kv, "w", full(1))
        assert read(kv) == 1

    store.run(work)


# -- every codec ------------------------------------------------------------------------------------------------------


def descend(kv: KV, params: dict[str, Any], steps: int) -> Any:
    """Squared distance to a target, which each worker sees half of, with the optimizer on the servers."""
    target = np.random.default_rng(1).uniform(-1, 1, (20, 2)).astype(np.float32)
    kv.set_gradient_compression(params)
    kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=0.1))
    weight = np.zeros_like(target)
    kv.init("w", weight)
    share = np.float32(1 / kv.num_workers)
    for _ in range(steps):
        kv.push("w", share * (weight - target))
        kv.pull("w", out=weight)
    kv.barrier()
    kv.pull("w", out=weight)
    return weight, float(np.square(weight - target).mean() / np.square(target).mean())


@pytest.mark.parametrize("type", ["dist_sync", "device"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_trains_a_key(codec: str, type: str) -> None:
    params = {"type": codec} | ({"ratio": 0.2} if codec in ("topk", "randomk") else {})
    results = Store(type, *((2, 2, SPLIT) if type == "dist_sync" else ())).run(lambda kv: descend(kv, params, steps=30))
    assert all(np.array_equal(weight, results[0][0]) for weight, _ in results)
    assert results[0][1] < 0.05


@pytest.mark.parametrize(
    ("codec", "direction"), [*((codec, "push") for codec in CODECS), *((codec, "both") for codec in BOTH_WAYS)]
)
def test_the_number_of_servers_does_not_change_a_bit(codec: str, direction: str) -> None:
    params = {"type": codec, "direction": direction}
    bits = {
        weight.tobytes()
        for servers, bound in ((1, WHOLE), (2, WHOLE), (2, SPLIT), (3, SPLIT))
        for weight, _ in Store("dist_sync", 2, servers, bound).run(lambda kv: descend(kv, params, steps=5))
    }
    assert len(bits) == 1


@on(DIST)
def test_what_a_compressed_pull_leaves_out_comes_with_the_next_value(store: Store) -> None:
    """2049 is not a float16: it arrives as 2048, then as 2050."""

    def work(kv: KV) -> list[float]:
        kv.set_gradient_compression({"type": "fp16", "direction": "both"})
        kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init("w", full(2048))
        values = []
        for step in (1, 0, 0, 0):
            update(kv, "w", full(step))
            values += [read(kv), read(kv)]
        return values

    assert store.run(work) == [[2048, 2048, 2050, 2050, 2048, 2048, 2050, 2050]] * store.workers


def test_device_compresses_pushes_only() -> None:
    with pytest.raises(ConfigError, match="a 'device' store compresses pushes only"):
        kvstore.create("device").set_gradient_compression({"type": "fp16", "direction": "both"})


# -- bytes ------------------------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {  # bytes of the codes of 40 elements, and of 20; a scale is 4 bytes for 256 elements
    "1bit": (8, 4),  # words of 32 bits
    "2bit": (12, 8),  # words of 16 pairs of bits
    "bf16": (80, 40),
    "fp16": (80, 40),
    "int8": (44, None),
    "int4": (24, None),
    "qsgd": (24, None),  # 7 levels: 4 bits each
    "terngrad": (14, None),
    "sign": (9, None),  # a scale, a bit each
    "topk": (32, None),  # a tenth: indices of 32 bits and values
    "randomk": (16, None),  # values only
}


COUNTED = [(codec, store, SIZES[codec][0]) for codec in CODECS for store in (*DEVICE, Store("dist_sync", 3, 2))]
COUNTED += [(codec, Store("dist_async", 1, 2, SPLIT), 2 * SIZES[codec][1]) for codec in ELEMENTWISE]


@pytest.mark.parametrize(("codec", "store", "size"), COUNTED, ids=str)
def test_bytes_are_counted_exactly(codec: str, store: Store, size: int) -> None:
    params = {"type": codec} | ({"ratio": 0.1} if codec in ("topk", "randomk") else {})

    def work(kv: KV) -> Any:
        kv.init("raw", np.zeros(40, np.float32))
        kv.push("raw", np.ones(40, np.float32))
        kv.set_gradient_compression(params)
        kv.init("w", np.zeros(40, np.float32))
        for _ in range(3):
            kv.push("w", [np.ones(40, np.float32)] * 2)
        kv.pushpull("w", np.ones(40, np.float32), out=np.zeros(40))
        kv.pull("w", out=[np.zeros(40), np.zeros(40)])
        return kv.stats()["keys"]

    codes = 7 if store.type == "device" else 4  # there one for each device
    for stats in store.run(work):
        assert stats["raw"] == {"push_bytes": 160, "push_bytes_raw": 160, "pull_bytes": 0, "pull_bytes_raw": 0}
        assert stats["w"] == {
            "push_bytes": codes * size,
            "push_bytes_raw": codes * 160,
            "pull_bytes": 2 * 160,
            "pull_bytes_raw": 2 * 160,
        }


@pytest.mark.parametrize("codec", BOTH_WAYS)
def test_bytes_of_compressed_pulls(codec: str) -> None:
    def work(kv: KV) -> Any:
        kv.set_gradient_compression({"type": codec, "direction": "both"})
        kv.init("w", np.zeros(40, np.float32))
        kv.pushpull("w", np.ones(40, np.float32))
        kv.pull("w")
        return kv.stats()["keys"]["w"]

    for stats in Store("dist_sync", 2, 2).run(work):
        assert (stats["push_bytes"], stats["pull_bytes"], stats["pull_bytes_raw"]) == (
            SIZES[codec][0],
            2 * SIZES[codec][0],
            320,
        )


@pytest.mark.parametrize("split", [False, True])
def test_a_codec_that_raises_loses_no_gradient(split: bool) -> None:
    """The whole push is refused, and what was held back of its keys is as before."""

    @kvstore.compression.register("rounds")
    class Rounds(kvstore.compression.Codec):
        elementwise = True

        def encode(self, values: Any, salt: int) -> list[Any]:
            if (values > 5).any():
                raise ValueError("too large")
            return [np.round(values).astype(np.int8)]

        def decode(self, code: Any, size: int, salt: int) -> Any:
            return code[0].astype(np.float32)

    def work(kv: KV) -> None:
        kv.set_gradient_compression({"type": "rounds"})
        kv.init(["a", "b"], [np.zeros((2, 2), np.float32)] * 2)
        some = np.full((2, 2), 0.4, np.float32)
        kv.push(["a", "b"], [some, some])
        with pytest.raises(ValueError, match="too large"):
            kv.push(["a", "b"], [some, some * 100])
        kv.push(["a", "b"], [some, some])
        assert [array.tolist() for array in kv.pull(["a", "b"])] == [[[1, 1], [1, 1]]] * 2

    kvstore.LocalCluster(1, 2, bigarray_bound=2 if split else 100).run(work)

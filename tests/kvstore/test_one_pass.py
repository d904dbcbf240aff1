"""Sum and update, a block at a time, have the bits of the formulas on whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.arrays import BLOCK, Array, typed
from kvstore.bfloat16 import from_float32, to_float32
from kvstore.optimizer.base import State
from kvstore.optimizer.elementwise import Elementwise
from kvstore.rules import OptimizerRule
from kvstore.spec import Spec
from kvstore.value import Value
from pslite.dtypes import BFLOAT16, CODES, storage
from pslite.errors import ProtocolError

SIZES = [0, 1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3]
ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-45, 3e38, 65504.0])
ALL = [name for name in kvstore.optimizer.registered() if isinstance(kvstore.optimizer.create(name), Elementwise)]


def numbers(size: int, name: str, seed: int) -> Array:
    """Random bits of every size that the dtype has, and what is special of it at the ends of blocks."""
    rng = np.random.default_rng(seed)
    if name == "bool":
        return rng.random(size) < 0.5
    if name not in ("float16", "bfloat16", "float32", "float64"):
        return rng.integers(0, 100, size).astype(storage(CODES[name]))
    values = rng.standard_normal(size) * 10.0 ** rng.integers(-6, 4, size)
    for at in (0, BLOCK - 4, BLOCK, size - 4):
        part = values[max(at, 0) : max(at, 0) + 4]
        part[...] = np.roll(ODD, seed)[: part.size]
    with np.errstate(all="ignore"):
        if name == "bfloat16":
            return from_float32(values.astype(np.float32))
        return values.astype(name)


def bits(array: Array, name: str) -> bytes:
    """With one NaN for all: the sign of a sum's NaN depends on how numpy's loops fall on the array."""
    if name == "bfloat16" and array.dtype == np.uint16:
        return np.where((array & 0x7FFF) > 0x7F80, np.uint16(0x7FC0), array).tobytes()
    return (
        array.tobytes()
        if array.dtype.kind != "f"
        else np.where(np.isnan(array), array.dtype.type(np.nan), array).tobytes()
    )


def total(terms: list[Array], name: str, wide: bool = False) -> Array:
    """From left to right, on whole arrays."""
    with np.errstate(all="ignore"):
        if name == "bool":
            return np.logical_or.reduce(terms)
        if name not in ("float16", "bfloat16"):
            first = terms[0].copy()
            for term in terms[1:]:
                first = first + term
            return first
        floats = [to_float32(t) if name == "bfloat16" else t.astype(np.float32) for t in terms]
        result = floats[0].copy()
        for term in floats[1:]:
            result = result + term
        return result if wide else from_float32(result) if name == "bfloat16" else result.astype(np.float16)


def stepped(rule: OptimizerRule | None, name: str, size: int, workers: int) -> list[tuple[Array, State]]:
    """Value and slots after each of two rounds."""
    value = Value.create(Spec("w", (size,), CODES[name]), numbers(size, name, 99))
    seen = []
    for turn in range(2):
        value.apply([numbers(size, name, 10 * turn + rank) for rank in range(workers)], rule)
        seen.append((value.data.copy(), {slot: array.copy() for slot, array in value.state.items()}))
    return seen


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16", "int8", "uint64", "bool"])
def test_an_assigned_sum(name: str, size: int, workers: int) -> None:
    for turn, (data, _) in enumerate(stepped(None, name, size, workers)):
        expected = total([numbers(size, name, 10 * turn + rank) for rank in range(workers)], name)
        assert data.dtype == expected.dtype and bits(data, name) == bits(expected, name)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rescale, clip, wd", [(1.0, None, 0.0), (0.5, 2.0, 0.01)])
def test_momentum_by_its_formula(size: int, workers: int, rescale: float, clip: float | None, wd: float) -> None:
    sgd = kvstore.optimizer.create(
        "sgd", learning_rate=0.1, momentum=0.9, rescale_grad=rescale, clip_gradient=clip, wd=wd
    )
    w, mom = numbers(size, "float32", 99), np.zeros(size, np.float32)
    for turn, (data, state) in enumerate(stepped(OptimizerRule(sgd), "float32", size, workers)):
        with np.errstate(all="ignore"):
            g = total([numbers(size, "float32", 10 * turn + rank) for rank in range(workers)], "float32")
            g = g * np.float32(rescale)
            g = g if clip is None else np.clip(g, np.float32(-clip), np.float32(clip))
            g = g if wd == 0 else g + w * np.float32(wd)
            mom = mom * np.float32(0.9) - g * np.float32(0.1)
            w = w + mom
        assert bits(data, "float32") == bits(w, "float32") and bits(state["mom"], "float32") == bits(mom, "float32")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("multi_precision", [False, True])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("which", ALL)
def test_every_optimizer_of_elements(which: str, name: str, multi_precision: bool, workers: int) -> None:
    """As its update of the whole sum."""
    size, code = BLOCK + 3, CODES[name]
    arguments: dict[str, Any] = {"wd": 0.01, "rescale_grad": 0.5, "multi_precision": multi_precision}
    optimizer = kvstore.optimizer.create(which, **arguments)
    w = numbers(size, name, 99)
    state = optimizer.create_state_multi_precision("w", typed(w, code))
    for turn, (data, slots) in enumerate(stepped(OptimizerRule(optimizer), name, size, workers)):
        terms = [numbers(size, name, 10 * turn + rank) for rank in range(workers)]
        g = total(terms, name, wide=multi_precision)
        grad: Any = g if g.dtype == np.float32 and code != BFLOAT16 else typed(g, code) if g.dtype == w.dtype else g
        optimizer.update_multi_precision("w", typed(w, code), grad, state, turn + 1)
        assert bits(data, name) == bits(w, name)
        for slot, array in state.items():
            found = slots.get(f"{slot}@0", slots.get(slot))  # of the worker, if each has its own
            assert found is not None and bits(found, slot) == bits(array, slot)


@pytest.mark.parametrize("size", [1, BLOCK + 1, 2 * BLOCK + 3])
@pytest.mark.parametrize(
    "params",
    [{"type": "2bit"}, {"type": "1bit"}, {"type": "fp16"}, {"type": "bf16"}, {"type": "int8"}, {"type": "terngrad"},
     {"type": "int4", "block": 100}, {"type": "sign"}],
    ids=lambda p: p["type"],
)  # fmt: skip
@pytest.mark.parametrize("order", ["c", "cc", "ac", "ca", "cac", "acc"])
def test_what_is_decoded_where_it_is_added(params: dict[str, Any], size: int, order: str) -> None:
    """Compressed pushes (c), beside arrays (a), are summed as if they were decoded whole."""
    codec, _ = kvstore.compression.create(params)
    assert codec is not None
    rng = np.random.default_rng(3)
    arrays, terms = [], []
    for salt, kind in enumerate(order):
        array = rng.standard_normal(size).astype(np.float32)
        code = codec.encode(array, salt)
        arrays.append(array if kind == "a" else codec.decode(code, size, salt))
        terms.append(array if kind == "a" else codec.deferred(code, (size,), salt))
    for rule in (None, OptimizerRule(kvstore.optimizer.create("adam"))):
        mine, theirs = (Value.create(Spec("w", (size,), CODES["float32"]), np.ones(size, np.float32)) for _ in "ab")
        for _ in range(2):
            mine.apply(terms, rule)
            theirs.apply(arrays, rule)
            assert mine.data.tobytes() == theirs.data.tobytes()


@pytest.mark.parametrize("name", ["2bit", "fp16", "int8", "sign"])
def test_a_malformed_code_is_refused_when_it_comes(name: str) -> None:
    codec, _ = kvstore.compression.create({"type": name})
    assert codec is not None
    with pytest.raises(ProtocolError, match="malformed"):
        codec.deferred(codec.encode(np.ones(64, np.float32), 0), (2, 64), 0)

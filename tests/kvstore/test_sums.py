"""Exact sums: three workers, two servers, twenty rounds on forty keys from 4 bytes to 16 MiB in every dtype."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.arrays import accumulate
from kvstore.bfloat16 import bfloat16, from_float32
from pslite.dtypes import CODES, NAMES, storage

WORKERS, SERVERS, ROUNDS = 3, 2, 20
ELEMENTS = [1, 3, 17, 1000, 4099, 65_537]
LARGE = {"f32 16 MiB": ("float32", 1 << 22), "i8 16 MiB": ("int8", 1 << 24)}
KV = kvstore.KVStore


def shape_of(size: int) -> tuple[int, ...]:
    return (size // 16, 16) if size % 16 == 0 else (size,)


def keys() -> dict[str, tuple[str, int]]:
    """40 keys: name -> (dtype, elements); every dtype has three sizes at least. 4 bytes are one float32."""
    found = {}
    for n in range(40 - len(LARGE)):
        dtype, size = NAMES[n % len(NAMES)], ELEMENTS[(n + n // len(NAMES)) % len(ELEMENTS)]
        found[f"{n} {dtype} {size}"] = (dtype, size)
    return found | LARGE


KEYS = keys()


def pattern(name: str, rank: int, turn: int) -> Any:
    """What a rank pushes in a round, in the storage dtype: all of it is different for each key, rank and round."""
    dtype, size = KEYS[name]
    seed = int.from_bytes(hashlib.sha256(f"{name}/{rank}/{turn}".encode()).digest()[:4], "big")
    small = (np.arange(min(size, 4096), dtype=np.int64) * 7 + seed) % 251  # sums of three are exact in every float
    if dtype == "bool":
        small = small % 3 == 0
    elif dtype == "bfloat16":
        small = from_float32((small % 64).astype(np.float32))
    flat = np.resize(small.astype(storage(CODES[dtype])), size)
    return flat.reshape(shape_of(size))


def array(data: Any, name: str) -> Any:
    return bfloat16(data) if KEYS[name][0] == "bfloat16" else data


def bits(value: Any) -> Any:
    return value.bits if isinstance(value, bfloat16) else value


@pytest.fixture(scope="module")
def expected() -> dict[int, dict[str, Any]]:
    """By round and key, without ``accumulate``: integers wrap around, bools are or-ed."""
    sums: dict[int, dict[str, Any]] = {}
    for turn in range(ROUNDS):
        sums[turn] = {}
        for name in KEYS:
            dtype, terms = KEYS[name][0], [pattern(name, rank, turn) for rank in range(WORKERS)]
            if dtype == "bool":
                total = terms[0] | terms[1] | terms[2]
            elif dtype == "bfloat16":
                wide = [(t.astype(np.uint32) << 16).view(np.float32) for t in terms]
                total = from_float32(wide[0] + wide[1] + wide[2])
            else:
                total = terms[0] + terms[1] + terms[2]
            sums[turn][name] = total
    return sums


def test_the_keys_are_what_the_contract_asks_for() -> None:
    sizes = {size * storage(CODES[dtype]).itemsize for dtype, size in KEYS.values()}
    assert len(KEYS) == 40 and 4 in sizes and max(sizes) == 16 << 20
    assert {dtype for dtype, _ in KEYS.values()} == set(NAMES)


@pytest.mark.parametrize("in_flight", [1, 3])
def test_sums(in_flight: int, expected: dict[int, dict[str, Any]]) -> None:
    """``in_flight`` pushes of each key before the pull; arrays are overwritten as soon as push returns."""

    def work(kv: KV) -> None:
        kv.init(list(KEYS), [array(np.zeros_like(pattern(name, 0, 0)), name) for name in KEYS])
        outs = {name: np.empty_like(pattern(name, 0, 0)) for name in KEYS}
        checks: list[tuple[str, Any]] = []
        for turn in range(ROUNDS):
            names = list(KEYS)
            pushed = {name: pattern(name, kv.rank, turn) for name in names}
            kv.push(names, [array(pushed[name], name) for name in names])
            for name in names:
                assert np.array_equal(pushed[name], pattern(name, kv.rank, turn))  # not written to
                pushed[name][...] = 1
            checks += [(name, expected[turn][name]) for name in names]
            if turn % in_flight == in_flight - 1 or turn == ROUNDS - 1:
                last = dict(checks)
                kv.pull(list(last), out=[array(outs[name], name) for name in last])
                for name, total in last.items():
                    assert np.array_equal(outs[name], total), f"{name} in round {turn}"
                checks = []

    kvstore.LocalCluster(workers=WORKERS, servers=SERVERS, timeout=60).run(work)


def test_sums_by_pushpull_in_flight(expected: dict[int, dict[str, Any]]) -> None:
    """Up to three rounds of one pushpull per key are in flight; each round's answer is that round's sum."""
    small = [name for name in KEYS if name not in LARGE]

    def work(kv: KV) -> None:
        kv.init(small, [array(np.zeros_like(pattern(name, 0, 0)), name) for name in small])
        for first in range(0, ROUNDS, 3):
            calls = []
            for turn in range(first, min(first + 3, ROUNDS)):
                for name in small:
                    value, out = pattern(name, kv.rank, turn), np.empty_like(pattern(name, 0, 0))
                    handle = kv.pushpull(name, array(value, name), out=array(out, name), wait=False)
                    calls.append((handle, name, turn, value, out))
            for handle, name, turn, value, out in calls:
                handle.wait()
                assert np.array_equal(out, expected[turn][name]), f"{name} in round {turn}"
                assert np.array_equal(value, pattern(name, kv.rank, turn))

    kvstore.LocalCluster(workers=WORKERS, servers=SERVERS, timeout=60).run(work)


def test_split_arrays_have_the_same_sums() -> None:
    """Every array of two rows or more is cut into pieces on all servers."""
    names = [name for name in KEYS if name not in LARGE]

    def work(kv: KV) -> list[bytes]:
        kv.init(names, [array(np.zeros_like(pattern(name, 0, 0)), name) for name in names])
        for turn in range(3):
            kv.push(names, [array(pattern(name, kv.rank, turn), name) for name in names])
        return [bits(value).tobytes() for value in kv.pull(names)]

    split = kvstore.LocalCluster(workers=WORKERS, servers=3, bigarray_bound=2).run(work)
    whole = [accumulate([pattern(n, r, 2) for r in range(WORKERS)], CODES[KEYS[n][0]]).tobytes() for n in names]
    assert split == [whole] * WORKERS


def test_bfloat16_comes_back_as_bfloat16() -> None:
    def work(kv: KV) -> None:
        kv.init("w", bfloat16(np.array([0x3F80, 0x4000], np.uint16)))
        value = kv.pull("w")
        assert isinstance(value, bfloat16) and value.bits.tolist() == [0x3F80, 0x4000]
        out = np.zeros(2, np.float32)
        kv.pull("w", out=out)
        assert out.tolist() == [1, 2]

    work(kvstore.create())
    kvstore.LocalCluster().run(work)

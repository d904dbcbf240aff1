"""Rows are merged and updated a block at a time, with the bits of one merge and one update of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import rows as module
from kvstore.arrays import Array, typed
from kvstore.bfloat16 import from_float32
from kvstore.optimizer.elementwise import Elementwise
from kvstore.rows import Ids, Rows, RowSum, gather, merge, scatter, union
from kvstore.rules import OptimizerRule
from kvstore.spec import Spec
from kvstore.value import Value
from pslite.dtypes import CODES, storage

TABLE, WIDTH = 400, (3, 2)
CREATED = {name: kvstore.optimizer.create(name) for name in kvstore.optimizer.registered()}
LAZY = [name for name, o in CREATED.items() if o.lazy_update and isinstance(o, Elementwise) and not o.worker_slots]


@pytest.fixture(autouse=True)
def _blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven rows."""
    monkeypatch.setattr(module, "_BLOCK", 7 * 6)


def some(name: str, seed: int, count: int, low: int = 0, high: int = TABLE) -> Rows:
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(np.arange(low, high), count, replace=False))
    numbers = rng.standard_normal((count, *WIDTH)).astype(np.float32)
    if name in ("float16", "float32", "float64"):
        return Rows(ids, numbers.astype(name))
    if name == "bfloat16":
        return Rows(ids, from_float32(numbers))
    return Rows(ids, (numbers * 50).astype(storage(CODES[name])))


PUSHES: dict[str, list[tuple[int, int, int]]] = {
    "one": [(100, 0, TABLE)],
    "two": [(100, 0, TABLE), (50, 0, TABLE)],
    "three, apart": [(60, 0, 100), (60, 300, TABLE), (1, 399, TABLE)],
    "one without rows": [(0, 0, TABLE), (33, 0, TABLE)],
    "none": [(0, 0, TABLE), (0, 0, TABLE)],
    "all": [(TABLE, 0, TABLE), (TABLE, 0, TABLE)],
    "four, some rows in all": [(200, 0, TABLE), (150, 100, TABLE), (300, 0, TABLE), (TABLE, 0, TABLE)],
}


def pushed(which: str, name: str, turn: int = 0) -> list[Rows]:
    return [some(name, 10 * turn + n, *limits) for n, limits in enumerate(PUSHES[which])]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("which", PUSHES)
@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "int32", "bool"])
def test_blocks_are_the_merged_rows(name: str, which: str, wide: bool) -> None:
    parts, code = pushed(which, name), CODES[name]
    whole, blocks = merge(parts, code, wide), list(RowSum(parts, code, wide).blocks())
    ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in blocks)])
    data = np.concatenate([whole.data[:0], *(total.whole() for _, total in blocks)])
    order = np.argsort(ids)
    assert ids[order].tolist() == whole.ids.tolist()
    assert data.dtype == whole.data.dtype and data[order].tobytes() == whole.data.tobytes()
    assert all(0 < len(ids) <= 7 and (np.diff(ids) > 0).all() for ids, _ in blocks)


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("which", PUSHES)
@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("optimizer", LAZY)
def test_an_update_of_rows(optimizer: str, name: str, which: str, sparse: bool) -> None:
    """Beside one of copies of these rows."""
    code = CODES[name]
    arguments: dict[str, Any] = {"wd": 0.01, "multi_precision": True}
    if optimizer in ("sgd", "ccsgd"):
        arguments["momentum"] = 0.9
    made = kvstore.optimizer.create(optimizer, **arguments)
    made.lazy_update = True
    rule = OptimizerRule(made)
    start = some(name, 99, TABLE)
    value = Value.create(Spec("t", start.data.shape, code, sparse), start if sparse else start.data)
    table = start.data.copy()
    state = made.create_state_multi_precision("t", typed(table, code))
    for turn in range(2):
        parts = pushed(which, name, turn)
        value.apply(parts, rule)
        rows = merge(parts, code, rule.widens(code))
        part, slots = table[rows.ids], {slot: array[rows.ids] for slot, array in state.items()}
        grad: Any = rows.data if rule.widens(code) else typed(rows.data, code)
        made.update_multi_precision("t", typed(part, code), grad, slots, turn + 1)
        table[rows.ids] = part
        for slot, array in slots.items():
            state[slot][rows.ids] = array
        assert value.data.tobytes() == table.tobytes() and value.count == turn + 1
        assert {slot: array.tobytes() for slot, array in value.state.items()} == {
            slot: array.tobytes() for slot, array in state.items()
        }


def test_a_schedule_is_asked_once() -> None:
    """However many blocks there are: it may count its calls."""
    asked: list[int] = []

    class Counting(kvstore.optimizer.LRScheduler):
        def __call__(self, num_update: int) -> float:
            asked.append(num_update)
            return 0.5

    rule = OptimizerRule(kvstore.optimizer.create("sgd", lr_scheduler=Counting()))
    value = Value.create(Spec("t", (TABLE, *WIDTH), CODES["float32"], True), some("float32", 1, 10))
    value.apply(pushed("all", "float32"), rule)
    assert asked == [1]


@pytest.mark.parametrize("row", [(), (1,), (3, 2), (0,)])
@pytest.mark.parametrize("name", ["float32", "bool", "uint16", "float64"])
def test_gather_and_scatter_are_indexing(name: str, row: tuple[int, ...]) -> None:
    table = (np.arange(20 * int(np.prod(row))) % 7).astype(name).reshape(20, *row)
    for ids in (np.array([], np.int64), np.array([3]), np.array([0, 7, 19])):
        assert gather(table, ids).tobytes() == table[ids].tobytes()
        mine, theirs = table.copy(), table.copy()
        data = np.flip(table)[: len(ids)].copy()
        scatter(Rows(ids, data), mine)
        theirs[ids] = data
        assert mine.tobytes() == theirs.tobytes()


def test_rows_of_another_dtype_or_layout_are_converted() -> None:
    """As the slots of an optimizer of users may be."""
    for out in (np.zeros((4, 2)), np.zeros((2, 4), np.float32).T, np.zeros((4, 2), np.int32)):
        scatter(Rows(np.array([1, 3]), np.array([[1, 2], [3, 4]], np.float32)), out)
        assert out.tolist() == [[0, 0], [1, 2], [0, 0], [3, 4]]


@pytest.mark.parametrize("parts", [[[]], [[1, 2]], [[3, 1, 3]], [[1, 5], [], [0, 5, 9]]])
def test_a_union_is_ascending(parts: list[list[int]]) -> None:
    ids: list[Ids] = [np.array(part, np.int64) for part in parts]
    assert union(ids).tolist() == sorted({one for part in parts for one in part})


def test_rows_of_a_table_in_one_call_share_nothing_with_what_was_pushed() -> None:
    pushes = pushed("one", "float32")
    value = Value.create(Spec("t", (TABLE, *WIDTH), CODES["float32"], True), some("float32", 1, 10))
    value.apply(pushes, None)
    arrays: list[Array] = [pushes[0].data, pushes[0].ids]
    assert value.filled is not None
    assert not any(np.shares_memory(mine, theirs) for mine in (value.data, value.filled) for theirs in arrays)

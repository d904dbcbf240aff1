"""The arrays of a value: two, of its memory, whatever is pushed; and nothing of a message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.arrays import Array
from kvstore.checkpoint.unit import VALUE, Unit
from kvstore.rows import Content, Rows
from kvstore.rules import OptimizerRule, Rule, UpdaterRule
from kvstore.sparse import row_sparse_array
from kvstore.spec import Spec
from kvstore.value import Value
from pslite.dtypes import CODES, NAMES, storage
from pslite.memory import PLAIN

Where = list[tuple[str, int]]


class Arena:
    """Arrays in buffers, as shared memory gives them; notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: Where = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        buffer = bytearray(b"\x7f" * max(1, int(np.prod(shape)) * dtype.itemsize))
        array: Array = np.ndarray(shape, dtype, buffer)
        self.calls.append(("empty", array.ctypes.data))
        return array

    def renew(self, array: Array) -> None:
        self.calls.append(("renew", array.ctypes.data))

    @property
    def arrays(self) -> int:
        return sum(name == "empty" for name, _ in self.calls)


def of(name: str, values: Any) -> Array:
    """Read-only, as what came in a message."""
    array = np.asarray(values).astype(storage(CODES[name]))
    array.flags.writeable = False
    return array


def value(memory: Arena, content: Array, name: str = "float32") -> Value:
    return Value.create(Spec("w", content.shape, CODES[name]), content, memory)


def sgd() -> Rule:
    return OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=1.0))


def updater() -> Rule:
    return UpdaterRule(lambda key, received, stored: stored.__isub__(received), "subtract")


RULES = {"assign": lambda: None, "sgd": sgd, "updater": updater}


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("size", [3, 100_000])
@pytest.mark.parametrize("name", RULES)
def test_a_value_has_two_arrays_of_its_memory_and_nothing_of_a_message(name: str, size: int, workers: int) -> None:
    memory, rule = Arena(), RULES[name]()
    first = of("float32", np.zeros(size))
    v = value(memory, first)
    assert not np.shares_memory(v.data, first)
    places = []
    for step in range(1, 5):
        pushed = [of("float32", np.full(size, step + 10 * rank)) for rank in range(workers)]
        v.apply(pushed, rule)
        assert not any(np.shares_memory(v.data, array) for array in pushed)
        assert v.data.flags.writeable and v.data.flags.c_contiguous
        places.append(v.data.ctypes.data)
    assert len(set(places)) == memory.arrays == 2 and places[0] == places[2] and places[1] == places[3]
    assert memory.calls[2:] == [("renew", place) for place in places[1:]]


@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_is_copied(name: str) -> None:
    memory, pushed = Arena(), of(name, [[1, 0], [2, 3]])
    v = value(memory, of(name, [[0, 1], [1, 1]]), name)
    v.apply([pushed], None)
    assert v.data.tobytes() == pushed.tobytes() and v.data.dtype == pushed.dtype and v.data.shape == (2, 2)


def test_the_array_that_somebody_reads_is_not_written() -> None:
    memory = Arena()
    v = value(memory, of("float32", [0.0]))
    held: list[tuple[Any, float]] = []
    for step in range(1, 6):
        v.apply([of("float32", [step])], None)
        held.append((memoryview(v.read()) if step % 2 else v.read()[:], float(v.data[0])))
    assert [np.asarray(array)[0] for array, _ in held] == [seen for _, seen in held] == [1, 2, 3, 4, 5]
    held.clear()
    made = memory.arrays
    for step in range(6, 12):
        v.apply([of("float32", [step])], None)
    assert memory.arrays == made and v.data[0] == 11


def test_an_update_that_fails_leaves_the_value_and_its_two_arrays() -> None:
    def fail(key: Any, received: Any, stored: Any) -> None:
        stored[...] = 7
        raise ValueError("no")

    memory, rule = Arena(), UpdaterRule(fail, "fail")
    v = value(memory, of("float32", [1.0]))
    for _ in range(4):
        with pytest.raises(ValueError, match="no"):
            v.apply([of("float32", [2.0])], rule)
        assert v.data[0] == 1 and v.version == 0
    assert memory.arrays == 2


def test_rows_pushed_to_a_dense_key_replace_it_in_its_memory() -> None:
    memory = Arena()
    v = value(memory, of("float32", np.ones((3, 2))))
    rows: list[Content] = [row_sparse_array((np.full((1, 2), 5.0, np.float32), [i]), (3, 2))._rows for i in (0, 2)]
    for _ in range(3):
        v.apply(rows, None)
        assert v.data.tolist() == [[5, 5], [0, 0], [5, 5]]
    v.apply([rows[0], of("float32", np.ones((3, 2)))], None)
    assert v.data.tolist() == [[6, 6], [1, 1], [1, 1]]
    assert memory.arrays == 2


def test_a_table_is_not_in_the_memory() -> None:
    memory = Arena()
    content = Rows(np.array([1]), np.ones((1, 2), np.float32))
    v = Value.create(Spec("t", (3, 2), CODES["float32"], sparse=True), content, memory)
    v.apply([content], updater())
    v.apply([content], None)
    assert memory.arrays == 0 and v.data.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_what_is_restored_is_in_the_memory_too() -> None:
    memory, saved = Arena(), of("float32", [3.0, 4.0])
    v = value(memory, of("float32", [0.0, 0.0]))
    reader = v.read()
    for version in (5, 6, 7):
        v.restore(Unit({VALUE: saved}, version=version, count=0), None)
        assert v.data.tolist() == [3, 4] and v.version == version and not np.shares_memory(v.data, saved)
        v.apply([of("float32", [1.0, 1.0])], None)
    assert reader.tolist() == [0, 0] and memory.arrays == 3


def test_the_plain_memory_gives_arrays_that_can_be_written() -> None:
    array = PLAIN.empty((2, 3), np.dtype(np.float64))
    PLAIN.renew(array)
    assert array.shape == (2, 3) and array.dtype == np.float64 and array.flags.writeable and array.flags.c_contiguous

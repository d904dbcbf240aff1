"""RowSparseArray: how it is made, what is refused, and the arithmetic that updaters need."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.sparse import RowSparseArray, from_dense, row_sparse_array, zeros
from pslite.errors import ConfigError, DTypeError, RowIndexError, ShapeError

from .sparse_jobs import column, plain, rsp

ONES = np.ones((2, 3), np.float32)


def test_an_array_has_its_rows_in_ascending_order_and_is_zero_elsewhere() -> None:
    array = row_sparse_array((np.array([[3.0, 4.0], [1.0, 2.0]], np.float32), [2, 0]), (4, 2))
    assert (array.shape, array.dtype, array.indices.dtype) == ((4, 2), np.float32, np.int64)
    assert array.indices.tolist() == [0, 2]
    np.testing.assert_array_equal(array.data, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(array.todense(), [[1, 2], [0, 0], [3, 4], [0, 0]])
    assert repr(array) == "<RowSparseArray (4, 2) float32, 2 rows>"


def test_data_and_indices_are_copied_and_data_may_be_written() -> None:
    data, ids = ONES.copy(), np.array([0, 3])
    array = row_sparse_array((data, ids), (4, 3))
    data[...], ids[...] = 7, 1
    assert column(array) == [1, 0, 0, 1]
    other = array.copy()
    array.data[0] = 5
    assert column(array) == [5, 0, 0, 1] and column(other) == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "indices", [[1, 0], (1, 0), np.array([[1, 0]], np.int32), np.array([1, 0], np.uint64)], ids=str
)
def test_indices_may_be_any_integers(indices: Any) -> None:
    assert row_sparse_array((ONES, indices), [4, 3]).indices.tolist() == [0, 1]


def test_lists_are_data_too() -> None:
    assert row_sparse_array(([[1.5, 2]], [3]), (4, 2)).dtype == np.float64
    assert row_sparse_array(([[1.5, 2]], [3]), (4, 2), dtype="float32").dtype == np.float32
    assert row_sparse_array((np.empty((0, 2), np.float16), []), (4, 2)).indices.size == 0


@pytest.mark.parametrize("dtype", ["float32", np.float16, np.dtype("int8"), "bfloat16", kvstore.bfloat16, bool])
def test_dtypes(dtype: Any) -> None:
    expected = kvstore.bfloat16 if dtype in ("bfloat16", kvstore.bfloat16) else np.dtype(dtype)
    for array in (zeros((4, 3), dtype), row_sparse_array((ONES, [1, 2]), (4, 3), dtype=dtype)):
        assert array.dtype == expected
        assert plain(array).shape == (4, 3)
    assert column(row_sparse_array((ONES, [1, 2]), (4, 3), dtype=dtype)) == [0, 1, 1, 0]


def test_bfloat16_in_and_out(torch: ModuleType) -> None:
    bits = np.array([[0x3FC0], [0x4000]], np.uint16)  # 1.5 and 2
    for data in (kvstore.bfloat16(bits), torch.tensor([[1.5], [2.0]], dtype=torch.bfloat16)):
        array = row_sparse_array((data, [2, 0]), (3, 1))
        assert array.dtype is kvstore.bfloat16 and "bfloat16" in repr(array)
        np.testing.assert_array_equal(array.data.bits, bits[::-1])
        assert column(array) == [2, 0, 1.5]
        assert column(row_sparse_array((data, [2, 0]), (3, 1), dtype="float32")) == [2, 0, 1.5]


REFUSED: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "not a pair": (ConfigError, lambda: row_sparse_array((ONES,), (4, 3))),  # type: ignore[arg-type]
    "an array": (ConfigError, lambda: row_sparse_array(ONES, (4, 3))),  # type: ignore[arg-type]
    "more rows than ids": (ShapeError, lambda: row_sparse_array((ONES, [1]), (4, 3))),
    "other rows": (ShapeError, lambda: row_sparse_array((ONES, [1, 2]), (4, 2))),
    "no rows, other length": (ShapeError, lambda: row_sparse_array((np.ones((0, 3)), []), (4, 2))),
    "an id too large": (RowIndexError, lambda: row_sparse_array((ONES, [1, 4]), (4, 3))),
    "a negative id": (RowIndexError, lambda: row_sparse_array((ONES, [1, -1]), (4, 3))),
    "a huge id": (RowIndexError, lambda: row_sparse_array((ONES, np.array([1, 2**64 - 1], np.uint64)), (4, 3))),
    "an id twice": (ConfigError, lambda: row_sparse_array((ONES, [1, 1]), (4, 3))),
    "float ids": (DTypeError, lambda: row_sparse_array((ONES, [1.0, 2.0]), (4, 3))),
    "bool ids": (DTypeError, lambda: row_sparse_array((ONES, np.array([True, False])), (4, 3))),
    "bfloat16 ids": (DTypeError, lambda: row_sparse_array((ONES, kvstore.bfloat16(np.zeros(2, np.uint16))), (4, 3))),
    "ragged ids": (DTypeError, lambda: row_sparse_array((ONES, [[1], [2, 3]]), (4, 3))),
    "complex data": (DTypeError, lambda: row_sparse_array((ONES * 1j, [1, 2]), (4, 3))),
    "no shape": (ConfigError, lambda: row_sparse_array((ONES, [1, 2]), ())),
    "a number as shape": (ConfigError, lambda: zeros(3)),  # type: ignore[arg-type]
    "a negative shape": (ConfigError, lambda: zeros((3, -1))),
    "a fractional shape": (ConfigError, lambda: zeros((3, 1.5))),  # type: ignore[arg-type]
    "an unknown dtype": (DTypeError, lambda: zeros((3, 1), "float99")),
    "a dtype that cannot travel": (DTypeError, lambda: zeros((3, 1), np.complex64)),
    "a scalar": (ConfigError, lambda: from_dense(np.float32(1))),
    "a sparse array as dense": (DTypeError, lambda: from_dense(zeros((3, 1)))),
    "sum of shapes": (ShapeError, lambda: zeros((3, 1)) + zeros((3, 2))),
    "sum of dtypes": (DTypeError, lambda: zeros((3, 1)) + zeros((3, 1), "float16")),
    "sum with dense": (ConfigError, lambda: zeros((3, 1)) + np.ones((3, 1), np.float32)),
    "dense with sum": (TypeError, lambda: np.ones((3, 1), np.float32) + zeros((3, 1))),
    "product of arrays": (ConfigError, lambda: zeros((3, 1)) * zeros((3, 1))),
    "fractions of integers": (DTypeError, lambda: rsp({0: 1}, (3, 1), "int32") * 0.5),
    "assignment to a row": (ConfigError, lambda: zeros((3, 1)).__setitem__(0, 1)),
    "assignment of another shape": (ShapeError, lambda: zeros((3, 1)).__setitem__(slice(None), zeros((4, 1)))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_mistakes_are_typed_errors(what: str) -> None:
    kind, call = REFUSED[what]
    with pytest.raises(kind):
        call()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "uint8"])
def test_arithmetic(dtype: str) -> None:
    a, b = rsp({0: 1, 2: 3}, (4, 2), dtype), rsp({2: 4, 3: 5}, (4, 2), dtype)
    assert column(a + b) == [1, 0, 7, 5]
    assert column(b - a) == ([-1 if dtype != "uint8" else 255, 0, 1, 5])
    assert column(a * 2) == column(2 * a) == [2, 0, 6, 0]
    before = a
    a += b
    a -= rsp({0: 1}, (4, 2), dtype)
    a *= 3
    assert before is a and column(a) == [0, 0, 21, 15]
    assert column(b) == [0, 0, 4, 5]
    a[:] = b
    b *= 0
    assert column(a) == [0, 0, 4, 5] and a.indices.tolist() == [2, 3]
    a[:] = 2
    assert column(a) == [0, 0, 2, 2]


def test_results_share_no_memory_with_operands() -> None:
    a = rsp({0: 1}, (4, 2))
    for result in (a * 1, a + a, -a, a - a):
        result.indices[...] = 3
        result.data[...] = 9
    assert column(a) == [1, 0, 0, 0] and a.indices.tolist() == [0]


def test_infinities_are_results_not_warnings() -> None:
    assert column(rsp({0: 60000}, (1, 2), "float16") * 2) == [np.inf]


def test_a_huge_array_without_rows_takes_no_memory() -> None:
    array = zeros((10**15, 10**6))
    assert array.data.nbytes == array.indices.nbytes == 0


def test_arrays_of_no_elements() -> None:
    for shape in ((0,), (0, 3), (3, 0), (0, 0)):
        array = from_dense(np.ones(shape, np.float32))
        assert array.indices.size == 0 and array.todense().shape == shape
        assert isinstance(array + zeros(shape), RowSparseArray)

"""Properties of rows: every operation on some rows is the same operation on whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvstore.arrays import Tensor, accumulate, widen
from kvstore.rows import Rows, as_dense, checked_ids, dense, merge, nonzero_rows, scatter, wanted_ids
from kvstore.sparse import from_dense
from pslite.dtypes import BFLOAT16, CODES, storage
from pslite.errors import DTypeError, RowIndexError, ShapeError

TABLE = 7
CODE = st.sampled_from(
    [CODES[name] for name in ("float32", "float64", "float16", "bfloat16", "int8", "uint64", "bool")]
)
ROW = st.sampled_from([(), (1,), (3,), (2, 2)])
IDS = st.lists(st.integers(0, TABLE - 1), unique=True).map(lambda ids: np.array(sorted(ids), np.int64))


def arrays(code: int, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    """Arrays of any bits, without NaN, whose payload a sum need not keep."""
    dtype = storage(code)
    if dtype.kind == "f":
        return hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, allow_nan=False))
    if code == BFLOAT16:
        finite = st.floats(width=16, allow_nan=False, allow_infinity=False)
        return hnp.arrays(np.float32, shape, elements=finite).map(lambda a: (a.view(np.uint32) >> 16).astype(np.uint16))
    return hnp.arrays(dtype, shape)


@st.composite
def several(draw: Any) -> tuple[int, tuple[int, ...], list[Rows]]:
    """A dtype, the shape of a table, and one or more sets of its rows."""
    code, row = draw(CODE), draw(ROW)
    sets = draw(st.lists(IDS, min_size=1, max_size=4))
    return code, (TABLE, *row), [Rows(ids, draw(arrays(code, (len(ids), *row)))) for ids in sets]


def is_same(a: Any, b: Any) -> bool:
    """Equal bits, but for the sign of zero and for NaN (of inf - inf)."""
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@given(several(), st.booleans())
def test_a_merge_is_the_sum_of_the_whole_arrays(drawn: Any, wide: bool) -> None:
    code, shape, parts = drawn
    merged = merge(parts, code, wide)
    assert merged.ids.tolist() == sorted({row for part in parts for row in part.ids.tolist()})
    checked_ids(merged.ids, len(merged.data), TABLE, "t")
    expected = accumulate([dense(part, shape) for part in parts], code, wide=wide)[merged.ids]
    if code == BFLOAT16 and not wide:
        assert is_same(widen(merged.data, code), widen(expected, code))
    else:
        assert is_same(merged.data, expected)


@given(several())
def test_a_merged_row_has_the_bits_of_its_own_sum(drawn: Any) -> None:
    """Whatever other rows there are: a table that is split over servers gets the same bits as a whole one."""
    code, _, parts = drawn
    merged = merge(parts, code)
    for row, value in zip(merged.ids.tolist(), merged.data, strict=True):
        terms = [part.data[part.ids == row] for part in parts if row in part.ids]
        total = accumulate(terms, code)[0]
        assert total.tobytes() == value.tobytes() or np.isnan(widen(value, code)).any()


@given(several(), st.integers(0, TABLE), st.integers(0, TABLE))
def test_a_merge_of_pieces_is_the_piece_of_the_merge(drawn: Any, a: int, b: int) -> None:
    code, shape, parts = drawn
    first, end = sorted((a, b))
    whole = merge(parts, code).between(first, end)
    cut = [part.between(first, end) for part in parts]
    piece = merge(cut, code)
    assert piece.ids.tolist() == whole.ids.tolist()
    assert is_same(widen(piece.data, code), widen(whole.data, code))
    for part, own in zip(parts, cut, strict=True):
        np.testing.assert_array_equal(dense(own, (end - first, *shape[1:])), dense(part, shape)[first:end])
        assert own.data.base is not None or not own.data.size  # a view


@given(several())
def test_a_merge_shares_no_memory_and_changes_no_part(drawn: Any) -> None:
    code, _, parts = drawn
    before = [(part.ids.copy(), part.data.copy()) for part in parts]
    merged = merge(parts, code)
    merged.ids[...] = -1
    merged.data[...] = 1
    for part, (ids, data) in zip(parts, before, strict=True):
        assert part.ids.tobytes() == ids.tobytes() and part.data.tobytes() == data.tobytes()


@given(several())
def test_rows_become_an_array_and_back(drawn: Any) -> None:
    code, shape, [rows, *_] = drawn
    whole = dense(rows, shape)
    assert as_dense(rows, shape).tobytes() == whole.tobytes() and as_dense(whole, shape) is whole
    found = nonzero_rows(Tensor(whole, code))
    zero = [row for row, value in zip(rows.ids.tolist(), rows.data, strict=True) if not (widen(value, code) != 0).any()]
    assert found.ids.tolist() == [row for row in rows.ids.tolist() if row not in zero]
    assert is_same(widen(dense(found, shape), code), widen(whole, code))
    other = np.ones(shape, storage(code))
    scatter(rows, other)
    assert other[rows.ids].tobytes() == rows.data.tobytes()
    others = np.delete(other, rows.ids, axis=0)
    np.testing.assert_array_equal(others, np.ones_like(others))


@given(CODE.filter(lambda code: code != BFLOAT16).flatmap(lambda code: arrays(code, (TABLE, 2))))
def test_from_dense_and_todense(array: Any) -> None:
    sparse = from_dense(array)
    np.testing.assert_array_equal(sparse.todense(), array)
    assert sparse.indices.tolist() == np.flatnonzero(array.any(axis=1)).tolist()


NUMBERS = st.sampled_from([np.int8, np.int64, np.uint64, np.float16, np.float32, np.float64])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@example(given_ids=np.array(-0.5), rows=0)
@given(NUMBERS.flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)), st.integers(0, 2**40))
def test_wanted_ids_are_ascending_unique_and_inside_or_an_index_error(given_ids: Any, rows: int) -> None:
    exact = [None if np.isnan(n) or np.isinf(n) else int(n) for n in given_ids.reshape(-1)]
    if all(n is not None and 0 <= n < rows for n in exact):
        found = wanted_ids(given_ids, rows, "t")
        assert found.dtype == np.int64 and found.tolist() == sorted({n for n in exact if n is not None})
        checked_ids(found, found.size, rows, "t")
    else:
        with pytest.raises(RowIndexError):
            wanted_ids(given_ids, rows, "t")


@given(st.lists(st.integers(-2, TABLE + 1)), st.integers(0, 5))
def test_checked_ids_takes_what_is_ascending_unique_and_inside(ids: list[int], count: int) -> None:
    good = ids == sorted(set(ids)) and all(0 <= row < TABLE for row in ids) and count == len(ids)
    if good:
        assert checked_ids(np.array(ids, np.int64), count, TABLE, "t").tolist() == ids
    else:
        with pytest.raises((ShapeError, RowIndexError)):
            checked_ids(np.array(ids, np.int64), count, TABLE, "t")


def test_checked_ids_takes_int64_in_one_dimension_only() -> None:
    for ids in (np.array([1], np.int32), np.array([1.0]), np.array([[1]]), np.array(1)):
        with pytest.raises(DTypeError):
            checked_ids(ids, 1, TABLE, "t")

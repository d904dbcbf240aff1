"""Row-sparse arrays: gradients and tables of which a call touches a few rows, such as embeddings.

``kv.init(key, array)`` with a RowSparseArray makes a row-sparse key: its value is a table of which rows can be pushed
and pulled (``kv.row_sparse_pull``). The semantics are those of MXNet's RowSparseNDArray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pslite.dtypes import BFLOAT16, NAMES, code_of, storage
from pslite.errors import ConfigError, DTypeError, ShapeError

from .arrays import Array, read, typed
from .bfloat16 import bfloat16, from_float32, to_float32
from .rows import Ids, Rows, dense, merge, nonzero_rows, read_ids, row_numbers

__all__ = ["RowSparseArray", "from_dense", "row_sparse_array", "zeros"]


class RowSparseArray:
    """An array of ``shape`` of which only some rows (of the first dimension) are there; the others are zero.

    ``indices``: int64, ascending, unique, shape (n,). ``data``: shape (n, *shape[1:]), the rows; a ``bfloat16`` for
    elements of that type. Both may be read and data written in place. Make one with ``row_sparse_array``, ``zeros`` or
    ``from_dense``.
    """

    __slots__ = ("_code", "_data", "indices", "shape")
    __array_ufunc__ = None  # numpy leaves ``array + sparse`` to this class, which refuses it

    def __init__(self, rows: Rows, code: int, shape: tuple[int, ...]) -> None:
        self.indices: Ids = rows.ids
        self.shape = shape
        self._data = rows.data
        self._code = code

    @property
    def data(self) -> Any:
        """The rows: a numpy array, or a ``kvstore.bfloat16``."""
        return typed(self._data, self._code)

    @property
    def dtype(self) -> Any:
        """Of the elements: a numpy dtype, or ``kvstore.bfloat16``."""
        return bfloat16 if self._code == BFLOAT16 else np.dtype(storage(self._code))

    def todense(self) -> Any:
        """A new array of ``shape`` with zeros in the rows that are not there."""
        return typed(dense(self._rows, self.shape), self._code)

    def copy(self) -> RowSparseArray:
        """A RowSparseArray that shares no memory with this one."""
        return RowSparseArray(Rows(self.indices.copy(), self._data.copy()), self._code, self.shape)

    @property
    def _rows(self) -> Rows:
        return Rows(self.indices, self._data)

    def _set(self, rows: Rows, code: int) -> None:
        """Become these rows, cast to this array's dtype."""
        self.indices = rows.ids
        self._data = rows.data if code == self._code else _cast(rows.data, code, self._code)

    # -- arithmetic, as updaters need it ------------------------------------------------------------------------------

    def __iadd__(self, other: Any) -> RowSparseArray:
        self._set(merge([self._rows, self._like(other)._rows], self._code), self._code)
        return self

    def __isub__(self, other: Any) -> RowSparseArray:
        return self.__iadd__(-self._like(other))

    def __imul__(self, factor: Any) -> RowSparseArray:
        self._data[...] = (self * factor)._data
        return self

    def __add__(self, other: Any) -> RowSparseArray:
        return self.copy().__iadd__(other)

    def __sub__(self, other: Any) -> RowSparseArray:
        return self.copy().__isub__(other)

    def __neg__(self) -> RowSparseArray:
        data = self._data ^ np.uint16(0x8000) if self._code == BFLOAT16 else np.negative(self._data)
        return RowSparseArray(Rows(self.indices.copy(), data), self._code, self.shape)

    def __mul__(self, factor: Any) -> RowSparseArray:
        if not isinstance(factor, (int, float, np.integer, np.floating)):
            raise ConfigError(name="factor", value=f"{factor!r:.80}", allowed="a RowSparseArray times a number")
        if self._data.dtype.kind in "iub" and self._code != BFLOAT16 and factor != int(factor):
            raise DTypeError(key="factor", got=f"a fraction, {factor!r}", expected=f"as the array: {NAMES[self._code]}")
        with np.errstate(over="ignore", invalid="ignore"):
            if self._code == BFLOAT16:
                data: Array = from_float32(to_float32(self._data) * np.float32(factor))
            else:
                data = self._data * np.asarray(factor).astype(self._data.dtype)
        return RowSparseArray(Rows(self.indices.copy(), data), self._code, self.shape)

    __rmul__ = __mul__

    def __setitem__(self, where: Any, value: Any) -> None:
        """``stored[:] = received``: become a copy of another array of this shape, or this number in all rows there."""
        if where != slice(None):
            raise ConfigError(name="index", value=f"{where!r:.80}", allowed="only array[:] can be assigned to")
        if isinstance(value, RowSparseArray):
            other = self._like(value).copy()
            self._set(other._rows, other._code)
        elif self._code == BFLOAT16:
            self._data[...] = from_float32(np.full(self._data.shape, value, np.float32))
        else:
            self._data[...] = value

    def _like(self, other: Any) -> RowSparseArray:
        if not isinstance(other, RowSparseArray):
            raise ConfigError(
                name="operand", value=type(other).__name__, allowed="give a RowSparseArray: from_dense(a)"
            )
        if other.shape != self.shape:
            raise ShapeError(key="operand", got=list(other.shape), expected=list(self.shape))
        if other._code != self._code:
            raise DTypeError(key="operand", got=NAMES[other._code], expected=NAMES[self._code])
        return other

    def __repr__(self) -> str:
        return f"<RowSparseArray {self.shape} {NAMES[self._code]}, {len(self.indices)} rows>"


def row_sparse_array(arg: tuple[Any, Any], shape: Sequence[int], dtype: Any = None) -> RowSparseArray:
    """``row_sparse_array((data, indices), shape)``.

    data: shape (n, *shape[1:]). indices: n integers in any order, each row once. dtype: None for that of data, else
    what numpy takes or 'bfloat16'. Both are copied. Raises ShapeError, DTypeError, RowIndexError (an IndexError),
    ConfigError.
    """
    if not (isinstance(arg, (tuple, list)) and len(arg) == 2):
        raise ConfigError(name="arg", value=f"{arg!r:.80}", allowed="give (data, indices)")
    whole = _shape(shape)
    tensor = read(np.asarray(arg[0]) if isinstance(arg[0], (list, tuple)) else arg[0], "data")
    code = tensor.code if dtype is None else _code(dtype)
    data = tensor.data if code == tensor.code else _cast(tensor.data, tensor.code, code)
    given = read_ids(arg[1], "indices")
    if given.data.dtype.kind not in "iu" or given.code == BFLOAT16:
        raise DTypeError(key="indices", got=NAMES[given.code], expected="integers")
    ids = row_numbers(given.data, whole[0], "indices")
    if data.shape != (len(ids), *whole[1:]):
        raise ShapeError(key="data", got=list(data.shape), expected=[len(ids), *whole[1:]])
    order = np.argsort(ids, kind="stable")
    ids, data = ids[order], data[order]
    if ids.size and not bool((ids[1:] > ids[:-1]).all()):
        twice = int(ids[1:][ids[1:] == ids[:-1]][0])
        raise ConfigError(name="indices", value=twice, allowed="give each row once: sum its gradients first")
    return RowSparseArray(Rows(ids, data), code, whole)


def zeros(shape: Sequence[int], dtype: Any = "float32") -> RowSparseArray:
    """An array of ``shape`` without any row; takes no memory for them."""
    whole, code = _shape(shape), _code(dtype)
    return RowSparseArray(Rows(np.empty(0, np.int64), np.empty((0, *whole[1:]), storage(code))), code, whole)


def from_dense(a: Any) -> RowSparseArray:
    """The rows of an array (at least 1-D) that are not all zeros."""
    tensor = read(a, "a")
    shape = _shape(tensor.shape)
    return RowSparseArray(nonzero_rows(tensor), tensor.code, shape)


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    fits = isinstance(shape, (list, tuple)) and len(shape) and all(isinstance(n, (int, np.integer)) for n in shape)
    if not fits or min(shape) < 0:
        raise ConfigError(name="shape", value=f"{shape!r:.80}", allowed="give a tuple of at least one dimension")
    return tuple(int(n) for n in shape)


def _code(dtype: Any) -> int:
    if dtype is bfloat16 or dtype == "bfloat16":
        return BFLOAT16
    try:
        return code_of(np.dtype(dtype), "dtype")
    except TypeError as error:
        raise DTypeError(key="dtype", got=f"{dtype!r:.80}", expected="one of " + ", ".join(NAMES)) from error


def _cast(data: Array, code: int, target: int) -> Array:
    values = to_float32(data) if code == BFLOAT16 else data
    if target == BFLOAT16:
        return np.asarray(from_float32(values.astype(np.float32)))
    with np.errstate(all="ignore"):
        return values.astype(storage(target))

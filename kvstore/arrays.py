"""The one adapter between users' arrays and numpy, and the sum of arrays.

Accepted are numpy arrays and scalars, ml_dtypes' bfloat16 arrays, ``kvstore.bfloat16(bits)``, torch tensors and jax
arrays on any device, and whatever offers the buffer protocol or ``__dlpack__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pslite.dtypes import BFLOAT16, CODES, code_of, storage
from pslite.errors import ConfigError, ShapeError

from . import frameworks
from .bfloat16 import bfloat16, from_float32, to_float32
from .frameworks import Array, named

__all__ = [
    "BLOCK",
    "LOW_PRECISION",
    "Array",
    "Tensor",
    "accumulate",
    "add_up",
    "check_out",
    "in_memory",
    "is_array",
    "narrow",
    "read",
    "typed",
    "widen",
    "write",
]

BLOCK = 64 * 1024  # elements: the handful of blocks that one operation touches stay in the L2 cache
LOW_PRECISION = (CODES["float16"], BFLOAT16)
_BOOL = CODES["bool"]


@dataclass(slots=True, eq=False)
class Tensor:
    """``data``: C-contiguous, of the little-endian dtype ``pslite.dtypes.storage(code)``; shares the user's memory
    whenever that already was so."""

    data: Array
    code: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


def is_array(value: object) -> bool:
    """False for a list or tuple, which holds one array per device; True for anything ``read`` is to look at."""
    return not isinstance(value, (list, tuple))


def read(value: object, key: object = "") -> Tensor:
    """The user's array as a Tensor, copied only if it is not contiguous, not little-endian, or on another device.

    Python's own numbers have no dtype and are refused, numpy scalars are 0-d arrays.
    Raises DTypeError for what is not an array, or of a dtype that cannot travel.
    """
    view, code = _view(value, key)
    return Tensor(np.asarray(view, dtype=storage(code), order="C"), code)


def write(out: object, data: Array, code: int, key: object = "") -> None:
    """Copies ``data`` (storage dtype of ``code``) into ``out``, casting to out's dtype; strides of out may be any.

    Casts to and from bfloat16 go by float32, rounding to nearest even. Raises what ``check_out`` does.
    """
    if isinstance(out, np.ndarray) and _is_like(out, data, code):  # as nearly always: there is nothing to find out
        np.copyto(out, data)
        return
    target, target_code = _target(out, data.shape, key)
    if not isinstance(target, np.ndarray):
        frameworks.fill(target, data, code)
        return
    if code != target_code and BFLOAT16 in (code, target_code):
        values = to_float32(data) if code == BFLOAT16 else data
        data = from_float32(values.astype(np.float32)) if target_code == BFLOAT16 else values
    np.copyto(target, data, casting="unsafe")


def _is_like(out: Array, data: Array, code: int) -> bool:
    plain = type(out) is np.ndarray and code != BFLOAT16 and out.flags.writeable
    return plain and out.dtype == data.dtype and out.shape == data.shape


def check_out(out: object, shape: tuple[int, ...], key: object = "") -> None:
    """Raises what ``write`` of data of this shape would: ShapeError unless the shapes are equal, DTypeError as ``read``
    does, ConfigError if ``out`` is read-only, as all jax arrays are."""
    _target(out, shape, key)


def in_memory(out: object, key: object = "") -> Array | None:
    """What has the memory of an ``out`` that ``check_out`` passed; None if that is another device's."""
    return None if frameworks.tensor_elsewhere(out, key) is not None else _view(out, key)[0]


def _target(out: object, shape: tuple[int, ...], key: object) -> tuple[Any, int]:
    """What to write into, with its code: an array that shares the memory of ``out``, or a tensor on another device."""
    if frameworks.is_jax(out):
        remedy = "jax arrays cannot be changed; use what pull(key) returns, or give a numpy array as out"
        raise ConfigError(name="out", value="a jax array", allowed=remedy)
    tensor = frameworks.tensor_elsewhere(out, key)
    target, code = _view(out, key) if tensor is None else (tensor, frameworks.torch_code(tensor, key))
    if tuple(target.shape) != shape:
        raise ShapeError(key=named(key), got=list(target.shape), expected=list(shape))
    if isinstance(target, np.ndarray) and not target.flags.writeable:
        raise ConfigError(name="out", value=f"a read-only {type(out).__name__}", allowed="give a writable array")
    return target, code


def typed(data: Array, code: int) -> Array | bfloat16:
    """Data of the storage dtype as users hold it: bfloat16's is marked as such."""
    return bfloat16(data) if code == BFLOAT16 else data


def widen(data: Array, code: int) -> Array:
    """float16 and bfloat16 as a new float32 array; any other array itself."""
    if code == BFLOAT16:
        return to_float32(data)
    return data.astype(np.float32) if code in LOW_PRECISION else data


def narrow(values: Array, out: Array, code: int) -> None:
    """Rounds what ``widen`` gave back into ``out``, in place; other arrays need nothing."""
    if code in LOW_PRECISION:
        out[...] = from_float32(values) if code == BFLOAT16 else values


def accumulate(arrays: Sequence[Array], code: int, out: Array | None = None, wide: bool = False) -> Array:
    """The sum of one or more arrays of one shape, from left to right: the same input gives the same bits.

    float16 and bfloat16 are summed in float32 and rounded once, integers wrap around, bool is the logical or. The
    result is ``out`` (contiguous; it may be the first array, and must not overlap the others) or a new array, also
    when only one array is given. ``wide``: the sum of float16 and bfloat16 is not rounded but a new float32 array.
    """
    keep = wide and code in LOW_PRECISION
    assert out is None or not keep, "a sum that keeps its width is a new array"
    total = np.empty(arrays[0].shape, np.float32 if keep else storage(code)) if out is None else out
    assert total.flags.c_contiguous, "a reshaped copy would lose the sum"
    if len(arrays) == 1:
        total[...] = widen(arrays[0], code) if keep else arrays[0]
        return total
    flat, terms = total.reshape(-1), [array.reshape(-1) for array in arrays]
    at_once = BLOCK if len(arrays) > 2 or code in LOW_PRECISION else max(flat.size, 1)  # two are passed over once
    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are results, not warnings in a server's log
        for low in range(0, flat.size, at_once):
            block = slice(low, low + at_once)
            part = flat[block] if keep else widen(flat[block], code)
            if code in LOW_PRECISION:
                add_up((widen(term[block], code) for term in terms), code, part)
            else:
                add_up([term[block] for term in terms], code, part)
            if not keep:
                narrow(part, flat[block], code)
    return total


def add_up(terms: Iterable[Array], code: int, out: Array) -> None:
    """Writes the sum of two or more arrays, as ``widen`` gives them, into ``out``, from left to right.

    The first may be ``out``, and each is read before the next is asked for.
    """
    add = np.logical_or if code == _BOOL else np.add
    rest = iter(terms)
    total = next(rest)
    for term in rest:
        add(total, term, out=out)
        total = out


def _view(value: object, key: object) -> tuple[Array, int]:
    """An array that shares the memory of ``value`` (bfloat16 as uint16), with its code."""
    if isinstance(value, bfloat16):
        return value.bits, BFLOAT16
    array = value if isinstance(value, np.ndarray) else frameworks.to_numpy(value, key)
    if isinstance(array, bfloat16):
        return array.bits, BFLOAT16
    code = code_of(array.dtype.newbyteorder("="), key)
    return (array.view(np.uint16) if code == BFLOAT16 else array), code

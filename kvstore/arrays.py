"""The one adapter between users' arrays and numpy, and the sum of arrays.

Accepted are numpy arrays and scalars, ml_dtypes' bfloat16 arrays, ``kvstore.bfloat16(bits)``, torch tensors on the
CPU, and whatever offers the buffer protocol or ``__dlpack__``. No framework is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pslite.dtypes import BFLOAT16, CODES, NAMES, code_of, storage
from pslite.errors import ConfigError, DTypeError, ShapeError

from .bfloat16 import bfloat16, from_float32, to_float32

__all__ = ["BLOCK", "Array", "Tensor", "accumulate", "check_out", "is_array", "narrow", "read", "widen", "write"]

Array = npt.NDArray[Any]

BLOCK = 64 * 1024  # elements: the handful of blocks that one operation touches stay in the L2 cache
_LOW_PRECISION = (CODES["float16"], BFLOAT16)
_CPU_DEVICES = (1, 3, 13)  # DLPack's kDLCPU, kDLCUDAHost, kDLCUDAManaged
_KINDS = "an array: numpy, torch on the CPU, kvstore.bfloat16(bits), the buffer protocol or __dlpack__"


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
    """The user's array as a Tensor, copied only if it is not contiguous or not little-endian.

    Python's own numbers have no dtype and are refused, numpy scalars are 0-d arrays.
    Raises DTypeError for what is not an array, not in the CPU's memory, or of a dtype that cannot travel.
    """
    view, code = _view(value, key)
    return Tensor(np.asarray(view, dtype=storage(code), order="C"), code)


def write(out: object, data: Array, code: int, key: object = "") -> None:
    """Copies ``data`` (storage dtype of ``code``) into ``out``, casting to out's dtype; strides of out may be any.

    Casts to and from bfloat16 go by float32, rounding to nearest even.
    Raises ShapeError unless the shapes are equal, DTypeError as ``read`` does, ConfigError if out is read-only.
    """
    target, target_code = check_out(out, data.shape, key)
    if code != target_code and BFLOAT16 in (code, target_code):
        values = to_float32(data) if code == BFLOAT16 else data
        data = from_float32(values.astype(np.float32)) if target_code == BFLOAT16 else values
    np.copyto(target, data, casting="unsafe")


def check_out(out: object, shape: tuple[int, ...], key: object = "") -> tuple[Array, int]:
    """The array behind ``out`` and its code; raises what ``write`` of data of this shape would."""
    target, code = _view(out, key)
    if target.shape != shape:
        raise ShapeError(key=_name(key), got=list(target.shape), expected=list(shape))
    if not target.flags.writeable:
        raise ConfigError(name="out", value=f"a read-only {type(out).__name__}", allowed="give a writable array")
    return target, code


def widen(data: Array, code: int) -> Array:
    """float16 and bfloat16 as a new float32 array; any other array itself."""
    if code == BFLOAT16:
        return to_float32(data)
    return data.astype(np.float32) if code in _LOW_PRECISION else data


def narrow(values: Array, out: Array, code: int) -> None:
    """Rounds what ``widen`` gave back into ``out``, in place; other arrays need nothing."""
    if code in _LOW_PRECISION:
        out[...] = from_float32(values) if code == BFLOAT16 else values


def accumulate(arrays: Sequence[Array], code: int, out: Array | None = None, wide: bool = False) -> Array:
    """The sum of one or more arrays of one shape, from left to right: the same input gives the same bits.

    float16 and bfloat16 are summed in float32 and rounded once, integers wrap around, bool is the logical or. The
    result is ``out`` (contiguous; it may be the first array, and must not overlap the others) or a new array, also
    when only one array is given. ``wide``: the sum of float16 and bfloat16 is not rounded but a new float32 array.
    """
    keep = wide and code in _LOW_PRECISION
    assert out is None or not keep, "a sum that keeps its width is a new array"
    total = np.empty(arrays[0].shape, np.float32 if keep else storage(code)) if out is None else out
    assert total.flags.c_contiguous, "a reshaped copy would lose the sum"
    if len(arrays) == 1:
        np.copyto(total, widen(arrays[0], code) if keep else arrays[0])
        return total
    add = np.logical_or if code == CODES["bool"] else np.add
    flat, terms = total.reshape(-1), [array.reshape(-1) for array in arrays]
    with np.errstate(over="ignore", invalid="ignore"):  # inf and NaN are results, not warnings in a server's log
        for low in range(0, flat.size, BLOCK):
            block = slice(low, low + BLOCK)
            part = flat[block] if keep else widen(flat[block], code)
            first, second, *rest = (widen(term[block], code) for term in terms)
            add(first, second, out=part)
            for term in rest:
                add(part, term, out=part)
            if not keep:
                narrow(part, flat[block], code)
    return total


def _name(key: object) -> int | str:
    return key if isinstance(key, (int, str)) else str(key)


def _view(value: object, key: object) -> tuple[Array, int]:
    """An array that shares the memory of ``value`` (bfloat16 as uint16), with its code."""
    if isinstance(value, bfloat16):
        return value.bits, BFLOAT16
    array = value if isinstance(value, np.ndarray) else _foreign(value, key)
    if isinstance(array, bfloat16):
        return array.bits, BFLOAT16
    code = code_of(array.dtype.newbyteorder("="), key)
    return (array.view(np.uint16) if code == BFLOAT16 else array), code


def _foreign(value: Any, key: object) -> Array | bfloat16:
    """What is not a numpy array, as one."""
    if isinstance(value, np.generic):
        return np.asarray(value)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _torch(torch, value, key)
    try:
        return np.asarray(memoryview(value))
    except (TypeError, ValueError, BufferError):
        pass  # no buffer protocol, or a format that numpy does not know
    if not hasattr(value, "__dlpack__"):
        raise DTypeError(key=_name(key), got=f"of Python's {type(value).__name__}", expected=_KINDS)
    device = tuple(value.__dlpack_device__())
    if device[0] not in _CPU_DEVICES:
        raise _elsewhere(key, type(value).__name__, f"DLPack device {device}")
    try:
        return np.from_dlpack(value)
    except (TypeError, RuntimeError, BufferError) as error:
        raise DTypeError(key=_name(key), got=str(error), expected="one of " + ", ".join(NAMES)) from error


def _torch(torch: Any, tensor: Any, key: object) -> Array | bfloat16:
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        raise _elsewhere(key, str(tensor.dtype), f"device {tensor.device}")
    try:
        if tensor.dtype == torch.bfloat16:
            return bfloat16(tensor.view(torch.int16).numpy().view(np.uint16))
        array: Array = tensor.numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, or a dtype without a numpy equivalent
        raise DTypeError(key=_name(key), got=f"{tensor.dtype} ({tensor.layout})", expected=_KINDS) from error
    return array


def _elsewhere(key: object, dtype: str, place: str) -> DTypeError:
    return DTypeError(key=_name(key), got=f"{dtype} on {place}", expected="an array in the CPU's memory; copy it there")

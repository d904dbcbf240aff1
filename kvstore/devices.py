"""The sum over devices, in the framework that the arrays belong to: one array instead of all comes to the CPU."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pslite.dtypes import NAMES, code_of

from .arrays import Tensor, read
from .frameworks import as_tensor, is_jax, torch_code

_LOW_PRECISION = ("float16", "bfloat16")
_UNSIGNED = ("uint16", "uint32", "uint64")


def device_sum(arrays: Sequence[Any], key: object = "", wide: bool = False) -> Tensor | None:
    """The sum of two or more torch tensors, or jax arrays, of one shape and dtype, made on the device of the first.

    None for all else: then ``read`` and ``accumulate`` give the sum, or the error. Raises DTypeError as ``read`` does.
    The bits are those of ``accumulate``: from left to right, float16 and bfloat16 in float32 and rounded once
    (``wide``: not rounded, the result is float32), integers wrap around, bool is the logical or. Two exceptions: the
    payload of a NaN is the framework's, and jax takes subnormal numbers for 0 on the CPU. The result is a fresh array.
    """
    if len(arrays) < 2 or isinstance(arrays[0], np.ndarray):
        return None
    if all(map(is_jax, arrays)):
        return _jax_sum(arrays, key, wide)
    tensors = [as_tensor(array, key) for array in arrays]
    return None if any(tensor is None for tensor in tensors) else _torch_sum(tensors, key, wide)


def _torch_sum(tensors: Sequence[Any], key: object, wide: bool) -> Tensor | None:
    name = _common_dtype(tensors, [torch_code(tensor, key) for tensor in tensors])
    if name is None:
        return None
    device, dtype = tensors[0].device, tensors[0].dtype
    here = (tensor.to(device) for tensor in tensors)
    if name in _LOW_PRECISION:
        total = _total(tensor.float() for tensor in here)
        return read(total if wide else total.to(dtype), key)
    if name in _UNSIGNED:  # torch does not add them, but signed integers, whose sums have the same bits
        signed = getattr(sys.modules["torch"], name.removeprefix("u"))
        return read(_total(tensor.view(signed) for tensor in here).view(dtype), key)
    return read(_total(here, logical=name == "bool"), key)


def _jax_sum(arrays: Sequence[Any], key: object, wide: bool) -> Tensor | None:
    jax = sys.modules["jax"]
    name = _common_dtype(arrays, [code_of(array.dtype, key) for array in arrays])
    if name is None:
        return None
    try:
        here = (jax.device_put(array, arrays[0].sharding) for array in arrays)
        if name in _LOW_PRECISION:
            total = _total(array.astype("float32") for array in here)
            total = total if wide else total.astype(name)
        else:
            total = _total(here, logical=name == "bool")
    except (TypeError, AttributeError, RuntimeError):  # inside jit, or donated: ``read`` says so
        return None
    result = read(total, key)
    return Tensor(result.data.copy(), result.code)  # jax's own is read-only


def _common_dtype(arrays: Sequence[Any], codes: Sequence[int]) -> str | None:
    """The name of the arrays' dtype; None unless they have one shape and one dtype."""
    alike = len({tuple(array.shape) for array in arrays}) == len(set(codes)) == 1
    return NAMES[codes[0]] if alike else None


def _total(terms: Iterable[Any], logical: bool = False) -> Any:
    """The sum from left to right as a new array, in place from the third term on where the framework can."""
    add: Any = operator.or_ if logical else operator.add
    add_to: Any = operator.ior if logical else operator.iadd
    terms = iter(terms)
    total = add(next(terms), next(terms))
    for term in terms:
        total = add_to(total, term)
    return total

"""The closed table of element types that travel: a small code on the wire, never a dtype string.

bfloat16 has no numpy dtype of its own here: its elements are carried as uint16 and the code says what they are.
"""

from __future__ import annotations

import numpy as np

from .errors import DTypeError, ProtocolError

# Codes are part of the protocol: append, never renumber.
NAMES = (
    "float32",
    "float64",
    "float16",
    "uint8",
    "int32",
    "int8",
    "int64",
    "bfloat16",
    "bool",
    "int16",
    "uint16",
    "uint32",
    "uint64",
)
CODES = {name: code for code, name in enumerate(NAMES)}
BFLOAT16 = CODES["bfloat16"]

# By their strings, they are the very objects that arrays have: numpy takes an equal one for another, and makes a view.
_STORAGE = tuple(np.dtype("<u2" if n == "bfloat16" else np.dtype(n).newbyteorder("<").str) for n in NAMES)
_BY_DTYPE = {dtype: code for code, dtype in enumerate(_STORAGE) if code != BFLOAT16}
ITEMSIZES = {code: dtype.itemsize for code, dtype in enumerate(_STORAGE)}


def storage(code: int) -> np.dtype[np.generic]:
    """The numpy dtype that holds elements of this code; raises ProtocolError for an unknown code."""
    if not (isinstance(code, int) and 0 <= code < len(_STORAGE)):
        raise ProtocolError(f"unknown dtype code {code!r:.40}; this version knows 0 to {len(_STORAGE) - 1}")
    return _STORAGE[code]


def code_of(dtype: np.dtype[np.generic], key: object = "") -> int:
    """The code of a numpy dtype; raises DTypeError for one that cannot travel."""
    code = _BY_DTYPE.get(dtype)
    if code is not None:
        return code
    if dtype.name == "bfloat16":  # ml_dtypes' scalar type
        return BFLOAT16
    code = CODES.get(dtype.name) if dtype.kind in "fiub" and dtype.isnative else None
    if code is None:
        raise DTypeError(key=str(key), got=str(dtype), expected="one of " + ", ".join(NAMES))
    return code


def code_named(dtype: object) -> int:
    """The code of what numpy takes for a dtype, or of 'bfloat16'; raises DTypeError."""
    if dtype == "bfloat16":
        return BFLOAT16
    try:
        found = np.dtype(dtype)  # type: ignore[call-overload]
    except TypeError:
        raise DTypeError(key="", got=f"{dtype!r:.80}", expected="one of " + ", ".join(NAMES)) from None
    return code_of(found)

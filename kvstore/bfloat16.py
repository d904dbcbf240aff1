"""bfloat16 in plain numpy: the upper half of a float32, carried as uint16.

numpy has no dtype for it. ``bfloat16(bits)`` marks a uint16 array as such numbers where ml_dtypes or torch are not
at hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pslite.errors import DTypeError

__all__ = ["bfloat16", "from_float32", "to_float32"]


class bfloat16:
    """Marks ``bits``, a uint16 array of any shape, as bfloat16 numbers; shares its memory.

    Raises DTypeError when ``bits`` is not a numpy array of uint16.
    """

    __slots__ = ("bits",)

    def __init__(self, bits: npt.NDArray[np.uint16]) -> None:
        if not (isinstance(bits, np.ndarray) and bits.dtype == np.uint16):
            got = str(getattr(bits, "dtype", type(bits).__name__))
            raise DTypeError(key="bfloat16", got=got, expected="a numpy array of uint16")
        self.bits = bits

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    def __repr__(self) -> str:
        return f"bfloat16({to_float32(self.bits)})"


def to_float32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The exact float32 values of bfloat16 ``bits``, in a new array of the same shape."""
    wide: npt.NDArray[Any] = np.empty(bits.shape, np.uint32)
    np.left_shift(bits, 16, out=wide, dtype=np.uint32)
    return wide.view(np.float32)


def from_float32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of the nearest bfloat16 numbers, ties to even, in a new array of the same shape.

    Too large becomes infinite; a NaN stays a (quiet) NaN of the same sign.
    """
    wide: npt.NDArray[Any] = np.asarray(values, np.float32).reshape(-1).view(np.uint32)
    rounded = wide >> 16
    rounded &= 1
    rounded += wide
    rounded += 0x7FFF  # half of the last place kept, and one more if that place is odd
    rounded >>= 16
    bits = rounded.astype(np.uint16)
    nan = np.isnan(wide.view(np.float32))
    if nan.any():  # adding carries a NaN's payload into its exponent and sign, so NaNs are truncated instead
        bits[nan] = wide[nan] >> 16 | 0x40
    return bits.reshape(values.shape)

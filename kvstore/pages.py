"""Tables of which memory is taken as rows are written, a small page at a time."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

from .arrays import Array

__all__ = ["in_small_pages", "lazy_zeros"]

_OWN_MAPPING = 64 * 1024 * 1024  # bytes: malloc maps an array of this size by itself (M_MMAP_THRESHOLD_MAX is 32 MiB)
_MADV_NOHUGEPAGE = 15


def lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """Zeros that take memory where they are written."""
    return in_small_pages(np.zeros(shape, dtype))


def in_small_pages(array: Array) -> Array:
    """Returns the array, whose memory Linux will give in pages of 4 KiB where it has not been touched yet.

    numpy asks for huge pages of 2 MiB: 20,000 rows all over a table of 2.5 GB would make all of it resident, and the
    first push take seconds.
    """
    if sys.platform == "linux" and array.nbytes >= _OWN_MAPPING and array.flags.owndata:
        first = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (array.ctypes.data + array.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        madvise(first, length, _MADV_NOHUGEPAGE)  # advice: a kernel without huge pages refuses, and needs none
    return array

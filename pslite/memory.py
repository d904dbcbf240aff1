"""Where the arrays come from that are sent to other processes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]
PACK_BELOW = 16 * 1024  # bytes: smaller arrays are copied into a message, wherever they are


class Memory(Protocol):
    """Memory of this process, which others may be able to read. Thread-safe."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A C-contiguous, writable array with arbitrary contents."""

    def renew(self, array: Array) -> None:
        """Say that an array from ``empty`` is going to be written anew: those who read it meanwhile find out."""

    def holds(self, array: Array) -> bool:
        """Whether this very array, not one that it is a view of, can be read by others where it is."""


class Plain:
    """Memory that nobody else reads."""

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        return np.empty(shape, dtype)

    def renew(self, array: Array) -> None:
        pass

    def holds(self, array: Array) -> bool:
        return False


PLAIN = Plain()

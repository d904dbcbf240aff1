"""Where the arrays of dense values live."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from .arrays import Array

__all__ = ["PLAIN", "Memory"]


class Memory(Protocol):
    """Gives the two arrays that a value is written to in turn. Called by the value's owner only, in its thread."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new writable, C-contiguous array, its contents arbitrary. It takes its memory back when it is collected.

        Its ``base`` is not a numpy array (``np.ndarray(shape, dtype, buffer)`` has the buffer): a view's base then is
        the array itself, whose reference count tells whether anybody reads it.
        """

    def renew(self, array: Array) -> None:
        """The owner is about to overwrite ``array``, which ``empty`` gave: readers in other processes must notice."""


class _Plain:
    """The memory of this process."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.empty(shape, dtype)

    def renew(self, array: Array) -> None:
        """Nobody else reads it."""


PLAIN: Memory = _Plain()

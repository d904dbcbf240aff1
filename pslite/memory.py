"""Where the arrays come from that are sent to other processes."""

from __future__ import annotations

from collections.abc import Sequence
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


class KeptMemory(Memory, Protocol):
    """Memory that outlives this process, with a journal that says what is in it: for the process that follows it.

    Raises KeeperError where nobody keeps it.
    """

    def zeros(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """An array of zeros; a large one takes memory where it is written."""

    def place(self, array: Array) -> tuple[int, int]:
        """What a successor finds an array by that this memory ``holds``: its segment and its place there."""

    def found(self) -> list[bytes]:
        """The journal of the predecessor: what it has committed, in order; empty if there was none."""

    def reopen(self, wanted: Sequence[tuple[tuple[int, int], tuple[int, ...], npt.DTypeLike]]) -> list[Array]:
        """The predecessor's arrays of these places, shapes and dtypes; all else is free. To be called once, first."""

    def commit(self, records: Sequence[bytes]) -> bool:
        """Write these to the journal, all or none. False if it is full: nothing was written."""

    def rewrite(self, records: Sequence[bytes]) -> None:
        """Replace the journal by these."""

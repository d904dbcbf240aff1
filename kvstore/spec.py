"""What is fixed of a key from init on: its shape, its dtype, and whether it is row-sparse."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pslite.dtypes import NAMES, storage
from pslite.errors import ConfigError, DTypeError, ShapeError, StorageError

from .keys import Key
from .rows import Content, Ids, Rows, checked_ids


def check_whole(name: str, value: str, split: Key | None) -> None:
    """Raise ConfigError if a setting that needs whole arrays comes when a key, ``split``, is split over the servers."""
    if split is not None:
        remedy = f"it needs whole arrays, and key {split!r} is split over the servers: set it before init"
        raise ConfigError(name=name, value=value, allowed=remedy)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece lies in its key's array, of this ``shape``: from row ``first`` on, or element if it is ``flat``."""

    first: int
    shape: tuple[int, ...]
    flat: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """``shape`` and dtype ``code`` of a key, or of a piece of it; a row-sparse one is a table of rows."""

    key: Key
    shape: tuple[int, ...]
    code: int
    sparse: bool = False

    @property
    def nbytes(self) -> int:
        """Of the whole array."""
        return math.prod(self.shape) * storage(self.code).itemsize

    def check(self, content: Content, code: int) -> None:
        """Raise unless this may be pushed: a whole array to a dense key, rows to any.

        Raises DTypeError, ShapeError, StorageError, RowIndexError.
        """
        if code != self.code:
            raise DTypeError(key=self.key, got=NAMES[code], expected=NAMES[self.code])
        if isinstance(content, Rows):
            self.check_rows(content)
        elif self.sparse:
            raise StorageError(key=self.key, got="a dense array", expected="a RowSparseArray, as at init")
        elif content.shape != self.shape:
            raise ShapeError(key=self.key, got=list(content.shape), expected=list(self.shape))

    def check_rows(self, rows: Rows) -> None:
        """Raise unless these can be rows of an array of this shape."""
        if not self.shape or rows.data.shape[1:] != self.shape[1:] or rows.data.ndim != len(self.shape):
            raise ShapeError(key=self.key, got=list(rows.data.shape), expected=list(self.shape))
        checked_ids(rows.ids, len(rows.data), self.shape[0], self.key)

    def check_wanted(self, ids: Ids | None) -> None:
        """Raise unless a pull may want these rows; None: all."""
        if ids is None:
            return
        if not self.sparse:
            raise StorageError(key=self.key, got="a pull of rows", expected="a key that was initialised as row-sparse")
        checked_ids(ids, ids.size, self.shape[0], self.key)

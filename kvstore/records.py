"""What a worker knows of a key: its shape, its dtype, and where its pieces live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pslite import Balancer
from pslite.errors import ProtocolError

from .arrays import Array, Tensor
from .keys import Key


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``first`` to ``end`` of a value, under ``wire`` on the server whose key range has it."""

    wire: int
    first: int
    end: int

    def of(self, data: Array, whole: bool) -> Array:
        """This piece of an array, as a view."""
        return data if whole else data[self.first : self.end]


@dataclass(slots=True)
class Record:
    """A key. ``pushes`` changes under the store's lock, ``version`` on the leading thread when a pull is complete."""

    key: Key
    shape: tuple[int, ...]
    code: int
    pieces: list[Piece]
    version: int = 0  # of the value pulled last
    pushes: int = 0  # made by this worker: its next one is for round pushes + 1

    @property
    def whole(self) -> bool:
        """Whether the value lives on one server."""
        return len(self.pieces) == 1

    def to_wire(self) -> list[Any]:
        """What the directory keeps, the same for every worker."""
        return [list(self.shape), self.code, [[p.wire, p.first, p.end] for p in self.pieces]]

    @staticmethod
    def from_wire(key: Key, wire: Any) -> Record:
        """The record that rank 0 published."""
        try:
            shape, code, pieces = wire
            return Record(key, tuple(shape), int(code), [Piece(*p) for p in pieces])
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"the record of key {key!r} is malformed: {wire!r:.200}") from error


class Planner:
    """Rank 0's decision where new keys go: whole ones where the fewest bytes are, large ones over all servers."""

    def __init__(self, ranges: Sequence[tuple[int, int]], bound: int) -> None:
        self._starts = [first for first, _ in ranges]
        self._bound = bound
        self._balancer = Balancer(len(ranges))
        self._count = 0
        self.may_split = True  # False under an updater or optimizer that needs whole arrays

    def plan(self, key: Key, tensor: Tensor) -> Record:
        """Place one key. Splits are on row boundaries (the first dimension)."""
        ordinal, self._count = self._count, self._count + 1
        shape, size = tensor.shape, tensor.data.size
        if self.may_split and size >= self._bound and len(self._starts) > 1 and shape and shape[0] > 1:
            split = self._balancer.split(shape[0], tensor.nbytes // shape[0])
        else:
            split = [(self._balancer.place(tensor.nbytes), 0, shape[0] if shape else 1)]
        pieces = [Piece(self._starts[server] + ordinal, first, end) for server, first, end in split]
        return Record(key, shape, tensor.code, pieces)

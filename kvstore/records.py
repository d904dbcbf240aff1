"""What a worker knows of a key: its spec, and where its pieces live."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pslite import Balancer
from pslite.dtypes import storage
from pslite.errors import ProtocolError

from .keys import Key
from .ledger import PUSHES, VERSION, Ledger, Traffic
from .rows import Content, Rows
from .spec import Spec


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``first`` to ``end`` of a value, under ``wire`` on the server whose key range has it."""

    wire: int
    first: int
    end: int


@dataclass(slots=True)
class Record:
    """A key. ``pushes`` changes under the store's lock, ``version`` on the leading thread when a pull is complete."""

    spec: Spec
    pieces: list[Piece]
    ledger: Ledger  # where its counters are
    flat: bool = False  # pieces are of the array's elements in C order, not of its rows
    at: int = field(init=False)  # its number there

    def __post_init__(self) -> None:
        self.at = self.ledger.add()

    @property
    def version(self) -> int:
        """Of the value pulled last."""
        return self.ledger.get(VERSION, self.at)

    @version.setter
    def version(self, version: int) -> None:
        self.ledger.set(VERSION, self.at, version)

    @property
    def pushes(self) -> int:
        """The number of this worker's last push."""
        return self.ledger.get(PUSHES, self.at)

    @pushes.setter
    def pushes(self, pushes: int) -> None:
        self.ledger.set(PUSHES, self.at, pushes)

    @property
    def next_push(self) -> int:
        """The number of its next one."""
        return self.ledger.next_push(self.at)

    def push(self) -> None:
        """Number one more push."""
        self.ledger.push(self.at)

    @property
    def traffic(self) -> Traffic:
        """Bytes pushed and pulled."""
        return Traffic(self.ledger, self.at)

    @property
    def key(self) -> Key:
        return self.spec.key

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its arrays in memory."""
        return storage(self.spec.code)

    @property
    def whole(self) -> bool:
        """Whether the value lives on one server."""
        return len(self.pieces) == 1

    def cut(self, piece: Piece, content: Content) -> Content:
        """This piece of an array or of some rows, as a view; rows are counted from the piece's first one."""
        if self.whole:
            return content
        if isinstance(content, Rows):
            return content.between(piece.first, piece.end)
        return (content.reshape(-1) if self.flat else content)[piece.first : piece.end]

    def shape_of(self, piece: Piece) -> tuple[int, ...]:
        """The shape of this piece."""
        row = () if self.flat else self.spec.shape[1:]
        return self.spec.shape if self.whole else (piece.end - piece.first, *row)

    def named(self, piece: Piece) -> list[Any]:
        """What an init tells the server of a piece."""
        shape = self.spec.shape
        return [self.key, not self.whole, self.shape_of(piece), piece.first, shape, self.flat and not self.whole]

    def to_wire(self) -> list[Any]:
        """What the directory keeps, the same for every worker."""
        spec = self.spec
        pieces = [[p.wire, p.first, p.end] for p in self.pieces]
        return [list(spec.shape), spec.code, pieces, spec.sparse, self.flat]

    @staticmethod
    def from_wire(key: Key, wire: Any, ledger: Ledger) -> Record:
        """The record that was published."""
        try:
            shape, code, pieces, sparse, flat = wire
            spec = Spec(key, tuple(shape), int(code), bool(sparse))
            return Record(spec, [Piece(*p) for p in pieces], ledger, bool(flat))
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"the record of key {key!r} is malformed: {wire!r:.200}") from error


class Planner:
    """The lead's decision where new keys go: whole ones where the fewest bytes are, large ones over all servers."""

    def __init__(self, ranges: Sequence[tuple[int, int]], bound: int, ledger: Ledger) -> None:
        self._starts = [first for first, _ in ranges]
        self._bound = bound
        self._ledger = ledger
        self._balancer = Balancer(len(ranges))
        self._count = 0
        self.may_split = True  # False under an updater, optimizer or codec that needs whole arrays

    def go_on(self, used: Sequence[int], nbytes: Sequence[int]) -> None:
        """In place of another worker: each server has so many of its ordinals used up, and so many bytes."""
        self._count = max(used)
        self._balancer = Balancer(len(self._starts), nbytes)

    def plan(self, spec: Spec) -> Record:
        """Place one key. Splits are on row boundaries (the first dimension)."""
        ordinal, self._count = self._count, self._count + 1
        rows, size = spec.shape[0] if spec.shape else 1, math.prod(spec.shape)
        nbytes = size * storage(spec.code).itemsize
        if self.may_split and size >= self._bound and len(self._starts) > 1 and rows > 1:
            split = self._balancer.split(rows, nbytes // rows)
        else:
            split = [(self._balancer.place(nbytes), 0, rows)]
        pieces = [Piece(self._starts[server] + ordinal, first, end) for server, first, end in split]
        return Record(spec, pieces, self._ledger)

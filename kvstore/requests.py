"""What a worker's call becomes on the wire, and what its answers become in the caller's arrays."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pslite import KVPairs
from pslite.dtypes import CODES, code_of, storage
from pslite.errors import ProtocolError

from .arrays import Array, typed, write
from .commands import CODED, ROWS, WHOLE
from .compression import Codec
from .contents import RowsWanted, fill, results, rows_returned
from .keys import Group, Key
from .records import Piece, Record
from .rows import Content, Rows, as_dense
from .sparse import RowSparseArray

_INT64 = CODES["int64"]

Answers = dict[int, tuple[Array, int]]
"""What the servers sent: by key on the wire the values and their version."""


@dataclass(slots=True, eq=False)
class Item:
    """One piece of a key in a request."""

    record: Record
    piece: Piece
    arrays: list[Array]
    codes: list[int]
    kind: int = WHOLE

    @property
    def nbytes(self) -> int:
        """Bytes of what is pushed, or of what a pull of all gets."""
        if self.arrays:
            return sum(array.nbytes for array in self.arrays)
        return math.prod(self.record.shape_of(self.piece)) * storage(self.record.spec.code).itemsize


def pushed(record: Record, content: Content) -> list[Item]:
    """The pieces of what is pushed. Each server of a split key gets one, if without rows: it makes the round."""
    if record.flat:  # slices of elements have no rows
        content = as_dense(content, record.spec.shape)
    return [_item(record, piece, record.cut(piece, content)) for piece in record.pieces]


def _item(record: Record, piece: Piece, part: Content) -> Item:
    if isinstance(part, Rows):
        return Item(record, piece, [part.ids, part.data], [_INT64, record.spec.code], ROWS)
    return Item(record, piece, [part], [record.spec.code])


def coded(record: Record, codes: Sequence[list[Array]]) -> list[Item]:
    """The pieces of what is pushed, as a codec made them."""
    return [
        Item(record, piece, code, [code_of(array.dtype) for array in code], CODED)
        for piece, code in zip(record.pieces, codes, strict=True)
    ]


def wanted(record: Record) -> list[Item]:
    """A pull of all of a key."""
    return [Item(record, piece, [], []) for piece in record.pieces]


def rows_of(record: Record, want: RowsWanted) -> list[Item]:
    """A pull of some rows, from the servers that have any of them."""
    items = []
    for piece in record.pieces:
        ids = record.cut(piece, Rows(want.ids, want.ids))
        assert isinstance(ids, Rows)
        if ids.ids.size:
            items.append(Item(record, piece, [ids.ids], [_INT64], ROWS))
    return items


def pairs_of(items: Sequence[Item], push: bool) -> KVPairs:
    """The pairs of a request, in ascending order of the keys on the wire."""
    ordered = sorted(items, key=lambda item: item.piece.wire)
    pairs = KVPairs(
        np.array([item.piece.wire for item in ordered], np.uint64),
        [array for item in ordered for array in item.arrays],
        codes=[code for item in ordered for code in item.codes],
    )
    if push:
        pairs.versions = np.array([item.record.version for item in ordered], np.uint64)
        pairs.rounds = np.array([item.record.pushes for item in ordered], np.uint64)
    if any(item.kind != WHOLE for item in ordered):
        pairs.kinds = np.array([item.kind for item in ordered], np.uint64)
        pairs.lens = np.array([len(item.arrays) for item in ordered], np.int64)
    return pairs


def pairs_in_turn(items: Iterable[Item], push: bool, at_once: int) -> Iterator[KVPairs]:
    """A call's items, in their order, as pairs of about ``at_once`` bytes of values, made when they are asked for."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and size + item.nbytes > at_once:
            yield pairs_of(batch, push)
            batch, size = [], 0
        batch.append(item)
        size += item.nbytes
    if batch:
        yield pairs_of(batch, push)


# -- answers; these run on the leading thread -------------------------------------------------------------------------


class Filling:
    """A pull: values go into ``outs``, or into new arrays without them. ``listed``: the caller gave a list of keys."""

    def __init__(
        self, keys: list[Key], listed: bool, records: dict[Key, Record], outs: list[Group] | None, codec: Codec | None
    ) -> None:
        self._keys = keys
        self._listed = listed
        self._outs = None if outs is None else {g.key: g.arrays for g in outs}
        times = Counter(id(out) for g in outs or () for out in g.arrays)
        self._shared = {out for out, count in times.items() if count > 1}  # the last key of the call is what they get
        self._codec = codec
        self._pieces = {piece.wire: (record, piece) for record in records.values() for piece in record.pieces}
        self._gathered: dict[Key, Array] = {}  # whole values, where pieces cannot be written to where they belong
        self._came: dict[int, tuple[int, int, int]] = {}  # by key on the wire: version, bytes that came, bytes of it

    def take(self, part: KVPairs) -> None:
        """Put what a server sent where it belongs; does no harm if it is done again."""
        if part.versions is None:
            raise ProtocolError("an answer of values without their versions")
        kinds = [WHOLE] * len(part.keys) if part.kinds is None else part.kinds.tolist()
        for wire, arrays, version, kind in zip(
            part.keys.tolist(), part.arrays(), part.versions.tolist(), kinds, strict=True
        ):
            record, piece = self._pieces[wire]
            value = _decoded(record, piece, arrays, version, self._codec) if kind == CODED else arrays[0]
            self._put(record, piece, value)
            self._came[wire] = version, sum(array.nbytes for array in arrays), value.nbytes

    def _put(self, record: Record, piece: Piece, value: Array) -> None:
        gather = self._outs is None
        for out in () if self._outs is None else self._outs[record.key]:
            if not self._at_once(record, out):
                gather = True
            elif record.whole:
                fill(out, value, record.spec)
            else:
                write(out[piece.first : piece.end], value, record.spec.code, record.key)
        if gather:
            whole = self._gathered.get(record.key)
            if whole is None:
                whole = self._gathered[record.key] = np.empty(record.spec.shape, storage(record.spec.code))
            part = record.cut(piece, whole)
            assert isinstance(part, np.ndarray)
            part[...] = value

    def _at_once(self, record: Record, out: Any) -> bool:
        """Whether pieces can be written to an array as they come."""
        return (record.whole or (isinstance(out, np.ndarray) and not record.flat)) and id(out) not in self._shared

    def finish(self, _: object) -> Any:
        """What the call returns, when all is there."""
        for record in {id(record): record for record, _ in self._pieces.values()}.values():
            came = [self._came[piece.wire] for piece in record.pieces]
            record.version = min(version for version, _, _ in came)
            record.traffic.pulled(sum(sent for _, sent, _ in came), sum(raw for _, _, raw in came))
            if self._outs is not None and record.key in self._gathered:
                self._fill(record)
        if self._outs is not None:
            return None
        specs = {record.key: record.spec for record, _ in self._pieces.values()}
        left = {key: self._gathered.get(key) for key in specs}
        return results(self._keys, self._listed, lambda key: typed(_once(left, key), specs[key].code))

    def _fill(self, record: Record) -> None:
        assert self._outs is not None
        for out in self._outs[record.key]:
            if not self._at_once(record, out):
                fill(out, self._gathered[record.key], record.spec)


def _once(arrays: dict[Key, Array | None], key: Key) -> Array:
    """An array for each time that a key is named: the first is given away, later ones are copies."""
    array = arrays[key]
    assert array is not None
    arrays[key] = array.copy()
    return array


def rows_into(
    keys: list[Key], listed: bool, records: dict[Key, Record], wants: list[RowsWanted], new: bool
) -> Callable[..., Any]:
    """Put rows into the outs of a ``row_sparse_pull``; returns them if they are ``new``."""

    def finish(parts: list[KVPairs]) -> Any:
        found = _received(parts, records)
        filled: dict[Key, list[RowSparseArray]] = {}
        for want in wants:
            pieces = [found[p.wire][0] for p in records[want.spec.key].pieces if p.wire in found]
            rows = pieces or [np.empty((0, *want.spec.shape[1:]), storage(want.spec.code))]
            filled[want.spec.key] = want.deliver(rows[0] if len(rows) == 1 else np.concatenate(rows))
        return rows_returned(keys, listed, filled) if new else None

    return finish


def _received(parts: list[KVPairs], records: dict[Key, Record]) -> Answers:
    """The rows that came, by key on the wire, with the records' versions and traffic brought up to date."""
    found: Answers = {}
    for part in parts:
        if part.versions is None:
            raise ProtocolError("an answer of values without their versions")
        rows = [array for [array] in part.arrays()]
        found.update(zip(part.keys.tolist(), zip(rows, part.versions.tolist(), strict=True), strict=True))
    for record in records.values():
        mine = [found[piece.wire] for piece in record.pieces if piece.wire in found]
        nbytes = sum(rows.nbytes for rows, _ in mine)
        record.traffic.pulled(nbytes, nbytes)
        if mine:  # else nothing was sent, and this may run beside the leading thread
            record.version = min(version for _, version in mine)
    return found


def _decoded(record: Record, piece: Piece, code: list[Array], version: int, codec: Codec | None) -> Array:
    if codec is None:
        raise ProtocolError(f"key {record.key!r} came compressed, which was not asked for")
    shape = record.shape_of(piece)
    return codec.decoded(code, math.prod(shape), codec.salt_of(record.key, version, 0)).reshape(shape)

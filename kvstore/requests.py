"""What a worker's call becomes on the wire, and what its answers become in the caller's arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


# -- answers; these run when all of a pull is there, on the leading thread --------------------------------------------


def pull_into(
    keys: list[Key], listed: bool, records: dict[Key, Record], outs: list[Group] | None, codec: Codec | None
) -> Callable[..., Any]:
    """Put values into ``outs``, or return new arrays without them. ``listed``: the caller gave a list of keys."""

    def finish(parts: list[KVPairs]) -> Any:
        found = _received(parts, records, codec)
        if outs is None:
            return results(keys, listed, lambda k: typed(_fresh(records[k], found), records[k].spec.code))
        for g in outs:
            for out in g.arrays:
                _write(out, records[g.key], found)
        return None

    return finish


def rows_into(
    keys: list[Key], listed: bool, records: dict[Key, Record], wants: list[RowsWanted], new: bool
) -> Callable[..., Any]:
    """Put rows into the outs of a ``row_sparse_pull``; returns them if they are ``new``."""

    def finish(parts: list[KVPairs]) -> Any:
        found = _received(parts, records, None)
        filled: dict[Key, list[RowSparseArray]] = {}
        for want in wants:
            pieces = [found[p.wire][0] for p in records[want.spec.key].pieces if p.wire in found]
            rows = pieces or [np.empty((0, *want.spec.shape[1:]), storage(want.spec.code))]
            filled[want.spec.key] = want.deliver(rows[0] if len(rows) == 1 else np.concatenate(rows))
        return rows_returned(keys, listed, filled) if new else None

    return finish


def _received(parts: list[KVPairs], records: dict[Key, Record], codec: Codec | None) -> Answers:
    """What came, by key on the wire, with the records' versions and traffic brought up to date."""
    came: dict[int, tuple[list[Array], int, int]] = {}
    for part in parts:
        if part.versions is None:
            raise ProtocolError("an answer of values without their versions")
        kinds = [WHOLE] * len(part.keys) if part.kinds is None else part.kinds.tolist()
        came.update(
            zip(part.keys.tolist(), zip(part.arrays(), part.versions.tolist(), kinds, strict=True), strict=True)
        )
    found: Answers = {}
    for record in records.values():
        mine = [(piece, *came[piece.wire]) for piece in record.pieces if piece.wire in came]
        for piece, arrays, version, kind in mine:
            value = _decoded(record, piece, arrays, version, codec) if kind == CODED else arrays[0]
            found[piece.wire] = value, version
            record.traffic.pull += sum(array.nbytes for array in arrays)
            record.traffic.pull_raw += value.nbytes
        if mine:  # else nothing was sent, and this may run beside the leading thread
            record.version = min(version for _, _, version, _ in mine)
    return found


def _decoded(record: Record, piece: Piece, code: list[Array], version: int, codec: Codec | None) -> Array:
    if codec is None:
        raise ProtocolError(f"key {record.key!r} came compressed, which was not asked for")
    shape = record.shape_of(piece)
    return codec.decoded(code, math.prod(shape), codec.salt_of(record.key, version, 0)).reshape(shape)


def _write(out: Any, record: Record, found: Answers) -> None:
    if record.whole or record.flat or not isinstance(out, np.ndarray):
        fill(out, _joined(record, found), record.spec)
        return
    for piece in record.pieces:  # each piece straight into its rows
        write(out[piece.first : piece.end], found[piece.wire][0], record.spec.code, record.key)


def _fresh(record: Record, found: Answers) -> Array:
    """The whole value in memory of its own."""
    value = _joined(record, found)
    return value.copy() if record.whole else value


def _joined(record: Record, found: Answers) -> Array:
    """The whole value; of a key on one server a view of the message."""
    pieces = [found[p.wire][0] for p in record.pieces]
    return pieces[0] if record.whole else np.concatenate(pieces).reshape(record.spec.shape)

"""Checkpoints between the worker of rank 0, which has the file, and the servers, which have the keys.

What compression holds back lives on every worker: it goes by way of the servers' stash, since workers do not talk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pslite import Flag, KVPairs, KVWorker
from pslite.dtypes import code_of
from pslite.errors import ProtocolError

from .arrays import Array
from .checkpoint.files import Residual
from .checkpoint.unit import IDS, Unit, join
from .commands import LOAD, SAVE, STASH, UNSTASH
from .compressing import Compression
from .records import Record
from .requests import Item, pairs_of, wanted
from .rows import Content
from .spec import Spec

KEYS_PER_BATCH = 1024
BYTES_PER_BATCH = 64 * 1024 * 1024  # of values; what is under way of a checkpoint is a few times that, or one key


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records whose values are moved together."""
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and (size + record.spec.nbytes > BYTES_PER_BATCH or len(batch) == KEYS_PER_BATCH):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += record.spec.nbytes
    if batch:
        yield batch


def pull_units(worker: KVWorker, records: Iterable[Record], values: bool) -> Iterator[tuple[Spec, Unit]]:
    """Everything that the servers have of keys, or the optimizer's part of it."""
    for batch in batches(records):
        items = [item for record in batch for item in wanted(record)]
        found: dict[int, Unit] = {}
        for part in worker.customer.wait_for(_send(worker, pairs_of(items, False), Flag.PULL, SAVE, values)):
            found.update(units_of(part))
        for record in batch:
            unit = join(record.key, [(p.first, found[p.wire]) for p in record.pieces])
            if record.flat:
                unit.arrays = {name: array.reshape(record.spec.shape) for name, array in unit.arrays.items()}
            yield record.spec, unit


def push_unit(worker: KVWorker, record: Record, unit: Unit) -> None:
    """Make a key what a unit says."""
    if record.flat and not record.whole:
        unit = replace(unit, arrays={name: array.reshape(-1) for name, array in unit.arrays.items()})
    cut = {p.wire: unit if record.whole else unit.cut(p.first, p.end) for p in record.pieces}
    worker.customer.wait_for(_send(worker, pairs_of_units(cut), Flag.PUSH, LOAD, None))


def pairs_of_units(units: dict[int, Unit]) -> KVPairs:
    """Units as they travel, by key on the wire; what they are is in ``meta``."""
    arrays: list[list[Array]] = []
    meta = {}
    for wire, unit in sorted(units.items()):
        named = unit.arrays if unit.ids is None else {IDS: unit.ids, **unit.arrays}
        arrays.append(list(named.values()))
        meta[wire] = [list(named), unit.version, unit.count]
    return KVPairs(
        np.array(sorted(units), np.uint64),
        [array for own in arrays for array in own],
        lens=np.array([len(own) for own in arrays], np.int64),
        codes=[code_of(array.dtype) for own in arrays for array in own],
        meta=meta,
    )


def units_of(pairs: KVPairs) -> dict[int, Unit]:
    """The units in a message; raises ProtocolError if it is malformed."""
    units = {}
    try:
        for wire, arrays in zip(pairs.keys.tolist(), pairs.arrays(), strict=True):
            names, version, count = pairs.meta[wire]
            named = dict(zip(names, arrays, strict=True))
            units[wire] = Unit(named, named.pop(IDS, None), int(version), int(count))
    except (TypeError, KeyError, ValueError) as error:
        raise ProtocolError(f"a unit without its description: {error}") from error
    return units


# -- what compression holds back --------------------------------------------------------------------------------------


def stash(worker: KVWorker, records: Iterable[Record], rank: int, residuals: Iterable[Residual]) -> None:
    """Leave one worker's residuals with the servers."""
    by_key = {record.key: record for record in records}
    for held in residuals:
        record = by_key[held.key]
        items = [Item(record, p, [_cut(record, p, held.array)], [_FLOAT32]) for p in record.pieces]
        pairs = pairs_of(items, False)
        pairs.rounds = np.full(len(items), held.pushes, np.uint64)
        worker.customer.wait_for(_send(worker, pairs, Flag.PUSH, STASH, rank))


def unstash(worker: KVWorker, records: Iterable[Record], rank: int) -> Iterator[Residual]:
    """The residuals that are with the servers for one worker."""
    for batch in batches(records):
        items = [item for record in batch for item in wanted(record)]
        found: dict[int, tuple[Array, int]] = {}
        for part in worker.customer.wait_for(_send(worker, pairs_of(items, False), Flag.PULL, UNSTASH, rank)):
            rounds = part.rounds.tolist() if part.rounds is not None else []
            for wire, own, pushes in zip(part.keys.tolist(), part.arrays(), rounds, strict=True):
                if own:
                    found[wire] = own[0], pushes
        for record in batch:
            pieces = [found[p.wire] for p in record.pieces if p.wire in found]
            if pieces:
                array = np.concatenate([a for a, _ in pieces]) if len(pieces) > 1 else pieces[0][0]
                yield Residual(record.key, rank, pieces[0][1], array)


def residuals_of(compression: Compression, records: dict[Any, Record], rank: int) -> list[Residual]:
    """What this worker holds back."""
    return [
        Residual(key, rank, records[key].pushes, feedback.residual)
        for (key, _), feedback in compression.feedback.items()
    ]


def _cut(record: Record, piece: Any, array: Array) -> Array:
    part: Content = record.cut(piece, array)
    assert isinstance(part, np.ndarray)
    return part


def _send(worker: KVWorker, pairs: KVPairs, flags: int, cmd: int, meta: Any) -> Any:
    what = {SAVE: "saving", LOAD: "loading", STASH: "saving residuals", UNSTASH: "loading residuals"}[cmd]
    finish = (lambda parts: parts) if flags & Flag.PULL else None
    return worker.send(pairs, flags, cmd, finish=finish, meta=pairs.meta if cmd == LOAD else meta, what=what)


_FLOAT32 = code_of(np.dtype(np.float32))

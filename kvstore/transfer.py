"""Checkpoints between the worker of rank 0, which has the file, and the servers, which have the keys.

What compression holds back lives on every worker: it goes by way of the servers' stash, since workers do not talk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pslite import Flag, KVPairs, KVWorker
from pslite.dtypes import CODES, code_of
from pslite.errors import ProtocolError

from .arrays import Array
from .checkpoint.files import Held
from .checkpoint.unit import IDS, Unit, join
from .commands import LOAD, SAVE, STASH, UNSTASH
from .keys import Key
from .records import Piece, Record
from .requests import pairs_of, wanted
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


def push_units(worker: KVWorker, units: Iterable[tuple[Record, Unit]]) -> None:
    """Make keys what units say, in one message to each server."""
    cut: dict[int, Unit] = {}
    for record, unit in units:
        if record.flat and not record.whole:
            unit = replace(unit, arrays={name: array.reshape(-1) for name, array in unit.arrays.items()})
        cut.update((p.wire, unit if record.whole else unit.cut(p.first, p.end)) for p in record.pieces)
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


# -- what the workers have --------------------------------------------------------------------------------------------

HeldParts = dict[int, tuple[Array | None, int]]
"""By key on the wire: a piece of a residual, if there is one, and the number of pushes."""


def stash(worker: KVWorker, records: Iterable[Record], rank: int, held: Callable[[Key], Held]) -> None:
    """Leave one worker's part with the servers."""
    for batch in batches(records):
        parts: HeldParts = {}
        for record in batch:
            own = held(record.key)
            for piece in record.pieces:
                parts[piece.wire] = None if own.residual is None else _cut(record, piece, own.residual), own.pushes
        worker.customer.wait_for(_send(worker, pairs_of_held(parts), Flag.PUSH, STASH, rank))


def unstash(worker: KVWorker, records: Iterable[Record], rank: int) -> Iterator[Held]:
    """What is with the servers for one worker."""
    for batch in batches(records):
        items = [item for record in batch for item in wanted(record)]
        found: HeldParts = {}
        for part in worker.customer.wait_for(_send(worker, pairs_of(items, False), Flag.PULL, UNSTASH, rank)):
            found.update(held_of(part))
        for record in batch:
            pieces, counts = zip(*(found[p.wire] for p in record.pieces), strict=True)
            residual = None if pieces[0] is None else np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
            yield Held(record.key, rank, counts[0], residual)


def pairs_of_held(parts: HeldParts) -> KVPairs:
    """Workers' parts as they travel."""
    keys = sorted(parts)
    arrays = [array for key in keys if (array := parts[key][0]) is not None]
    return KVPairs(
        np.array(keys, np.uint64),
        arrays,
        lens=np.array([parts[key][0] is not None for key in keys], np.int64),
        rounds=np.array([parts[key][1] for key in keys], np.uint64),
        codes=[CODES["float32"]] * len(arrays),
    )


def held_of(pairs: KVPairs) -> HeldParts:
    """Workers' parts in a message; raises ProtocolError if it is malformed."""
    if pairs.rounds is None or any(len(own) > 1 for own in pairs.arrays()):
        raise ProtocolError("residuals without the numbers of pushes")
    counted = zip(pairs.keys.tolist(), pairs.arrays(), pairs.rounds.tolist(), strict=True)
    return {wire: (own[0] if own else None, pushes) for wire, own, pushes in counted}


def _cut(record: Record, piece: Piece, array: Array) -> Array:
    part: Content = record.cut(piece, array)
    assert isinstance(part, np.ndarray)
    return part


def _send(worker: KVWorker, pairs: KVPairs, flags: int, cmd: int, meta: Any) -> Any:
    what = {SAVE: "saving", LOAD: "loading", STASH: "leaving residuals", UNSTASH: "fetching residuals"}[cmd]
    finish = (lambda parts: parts) if flags & Flag.PULL else None
    return worker.send(pairs, flags, cmd, finish=finish, meta=pairs.meta if cmd == LOAD else meta, what=what)

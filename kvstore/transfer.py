"""Checkpoints between the worker of rank 0, which has the file, and the servers, which have the keys.

What compression holds back lives on every worker: it goes by way of the servers' stash, since workers do not talk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from pslite import Flag, KVPairs, KVWorker

from .arrays import Array
from .checkpoint.files import Held
from .checkpoint.unit import Unit, join
from .checkpoint.wire import HeldParts, held_of, pairs_of_held, pairs_of_units, units_of
from .commands import LOAD, SAVE, STASH, UNSTASH
from .keys import Key
from .records import Piece, Record
from .requests import pairs_of, wanted
from .rows import Content
from .spec import Spec

KEYS_PER_BATCH = 1024  # a message names each of them
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


# -- what the workers have --------------------------------------------------------------------------------------------


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


def _cut(record: Record, piece: Piece, array: Array) -> Array:
    part: Content = record.cut(piece, array)
    assert isinstance(part, np.ndarray)
    return part


def _send(worker: KVWorker, pairs: KVPairs, flags: int, cmd: int, meta: Any) -> Any:
    what = {SAVE: "saving", LOAD: "loading", STASH: "leaving residuals", UNSTASH: "fetching residuals"}[cmd]
    finish = (lambda parts: parts) if flags & Flag.PULL else None
    return worker.send(pairs, flags, cmd, finish=finish, meta=pairs.meta if cmd == LOAD else meta, what=what)

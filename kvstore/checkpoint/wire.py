"""What is saved of keys, as it travels between servers and the worker of rank 0."""

from __future__ import annotations

import numpy as np

from kvstore.arrays import Array
from pslite import KVPairs
from pslite.dtypes import CODES, code_of
from pslite.errors import ProtocolError

from .unit import IDS, Unit

HeldParts = dict[int, tuple[Array | None, int]]
"""By key on the wire: a piece of a residual, if there is one, and the number of pushes."""


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

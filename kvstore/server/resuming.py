"""What a server takes from the checkpoint that its job goes on from, as keys are initialised."""

from __future__ import annotations

import math
from collections.abc import Iterable

from kvstore.checkpoint.directory import Checkpoint
from kvstore.checkpoint.part import Described, Part
from kvstore.checkpoint.unit import Unit, join
from kvstore.keys import Key
from kvstore.rules import Rule, from_wire
from kvstore.spec import Place, Spec
from kvstore.value import check_unit
from pslite.dtypes import NAMES
from pslite.errors import CheckpointError, DTypeError, ShapeError, StorageError

from .store import New


class Resume:
    """A checkpoint that is open until all of it was fetched, or the job ends. The server's thread uses it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.id = checkpoint.id
        self.rule: Rule | None = from_wire(checkpoint.parts[0].header["settings"]["rule"])
        self._pieces: dict[Key, list[tuple[Part, Described]]] = {}
        for part, described in checkpoint.pieces():
            self._pieces.setdefault(described.spec.key, []).append((part, described))
        self.elements = sum(math.prod(described.spec.shape) for _, described in checkpoint.pieces())

    def units(self, new: dict[int, New]) -> dict[int, Unit]:
        """What these new keys were, by key on the wire, if they are in the checkpoint.

        Raises DTypeError, ShapeError, StorageError if they were something else, CheckpointError if it is damaged.
        """
        units = {}
        for wire, n in new.items():
            if n.spec.key in self._pieces:
                place = n.place or Place(0, n.spec.shape)
                self._check(n.spec, place)
                units[wire] = self._unit(n.spec, place)
                check_unit(n.spec, units[wire], self.rule)
        return units

    def fetched(self, specs: Iterable[Spec]) -> int:
        """How many of the elements these keys, or pieces of them, are."""
        return sum(math.prod(spec.shape) for spec in specs if spec.key in self._pieces)

    def close(self) -> None:
        self._checkpoint.close()

    def _check(self, spec: Spec, place: Place) -> None:
        _, saved = self._pieces[spec.key][0]
        if spec.code != saved.spec.code:
            raise DTypeError(key=spec.key, got=NAMES[spec.code], expected=f"{NAMES[saved.spec.code]}, as in {self.id}")
        if place.shape != saved.place.shape:
            raise ShapeError(key=spec.key, got=list(place.shape), expected=list(saved.place.shape))
        if spec.sparse != saved.spec.sparse:
            kinds = {True: "a RowSparseArray", False: "a dense array"}
            raise StorageError(key=spec.key, got=kinds[spec.sparse], expected=f"{kinds[not spec.sparse]}, as it was")

    def _unit(self, spec: Spec, place: Place) -> Unit:
        """A key, or a piece of it that may be cut otherwise than it was."""
        pieces = sorted(self._pieces[spec.key], key=lambda piece: piece[1].place.first)
        for part, saved in pieces:
            if (saved.place, saved.spec.shape) == (place, spec.shape):
                return part.unit(saved)
        flat = place.flat or any(saved.place.flat for _, saved in pieces)
        first, end = _extent(place, spec.shape, flat)
        parts: list[tuple[int, Unit]] = []
        at = first
        for part, saved in pieces:
            low, high = _extent(saved.place, saved.spec.shape, flat)
            if low <= at < min(high, end):
                unit = part.unit(saved)
                if flat:
                    unit.arrays = {name: array.reshape(-1) for name, array in unit.arrays.items()}
                parts.append((at - first, unit.cut(at - low, min(high, end) - low)))
                at = min(high, end)
        if at != end:
            raise CheckpointError(path=str(self.id), reason=f"not all of key {spec.key!r} is in it")
        whole = join(spec.key, parts)
        if flat:
            whole.arrays = {name: array.reshape(spec.shape) for name, array in whole.arrays.items()}
        return whole


def _extent(place: Place, shape: tuple[int, ...], flat: bool) -> tuple[int, int]:
    """First and end of a piece, in rows, or in elements if ``flat``."""
    row = 1 if place.flat or not flat else math.prod(place.shape[1:])
    return place.first * row, (place.first + (shape[0] if shape else 1)) * row

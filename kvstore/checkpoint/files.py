"""What a checkpoint's manifest says: keys, optimizer, and what each worker has held back under compression."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kvstore.arrays import Array
from kvstore.keys import Key, checked
from kvstore.rows import checked_ids
from kvstore.rules import Rule
from kvstore.spec import Spec
from kvstore.value import check_unit
from pslite.dtypes import CODES, NAMES, storage
from pslite.errors import CheckpointError

from .archive import Reader, explained, reading, writing
from .unit import IDS, PULLED, SENT, SLOT, VALUE, Unit

_FLOAT32 = np.dtype(np.float32)


@dataclass(slots=True)
class Settings:
    """Of the store that was saved. ``rule``: the optimizer or updater, None if it was not asked for."""

    type: str
    num_workers: int
    rule: list[Any] | None
    states_of: str | None = None  # name of the optimizer whose slots and counts there are


@dataclass(slots=True, eq=False)
class Held:
    """One worker's (or on a device store, one device's) part of a key."""

    key: Key
    stream: int  # rank, or device
    pushes: int  # made of the key: the next one's random numbers follow from it
    residual: Array | None  # what compression has held back, if it was used


@dataclass(slots=True, eq=False)
class Checkpoint:
    """A file that is being read."""

    path: str
    reader: Reader
    settings: Settings
    specs: dict[Key, Spec] = field(default_factory=dict)
    _entries: dict[Key, dict[str, Any]] = field(default_factory=dict)

    def unit(self, key: Key, values: bool) -> Unit:
        """What was saved of a key, or the optimizer's part of it."""
        return self._unit(key, values, self.reader.read)

    def _outline(self, key: Key, values: bool) -> Unit:
        """The same without the numbers: zeros that take no memory."""
        return self._unit(key, values, self._zeros)

    def _zeros(self, member: str) -> Array:
        shape, dtype = self.reader.layout(member)
        return np.broadcast_to(np.zeros((), dtype), shape)

    def _unit(self, key: Key, values: bool, read: Any) -> Unit:
        entry = self._entries[key]
        wanted = {n: m for n, m in entry["arrays"].items() if n != IDS and (values or n.startswith(SLOT))}
        ids = self.reader.read(entry["arrays"][IDS]) if IDS in entry["arrays"] else None
        return Unit({name: read(member) for name, member in wanted.items()}, ids, entry["version"], entry["count"])

    def held(self, key: Key, stream: int) -> Held:
        """One worker's part; a worker that was not there when the file was written goes on with the largest count."""
        entry = self._entries[key]
        member = entry["residuals"].get(str(stream))
        pushes = entry["pushes"].get(str(stream), max(entry["pushes"].values(), default=entry["version"]))
        return Held(key, stream, pushes, None if member is None else self.reader.read(member))

    def streams(self, key: Key) -> list[int]:
        """Whose residuals of a key there are."""
        return [int(stream) for stream in self._entries[key]["residuals"]]

    def check(self, specs: dict[Key, Spec], values: bool) -> None:
        """Raise CheckpointError unless it has what these keys need: with values all that is there fits."""
        for spec in specs.values():
            saved = self.specs.get(spec.key)
            if saved is None:
                raise CheckpointError(path=self.path, reason=f"key {spec.key!r} is not in it")
            if saved != spec:
                raise CheckpointError(path=self.path, reason=f"it has {_shown(saved)}, the store {_shown(spec)}")
        new = next((key for key in self.specs if key not in specs), None)
        if new is not None and not values:
            raise CheckpointError(
                path=self.path, reason=f"it has states of key {new!r}, which the store has not: init it"
            )
        if new is not None and specs and type(new) is not type(next(iter(specs))):
            raise CheckpointError(path=self.path, reason=f"it has key {new!r}; int and str keys cannot be mixed")
        if values and not all(VALUE in entry["arrays"] for entry in self._entries.values()):
            raise CheckpointError(path=self.path, reason="it has optimizer states only: use load_optimizer_states")

    def check_units(self, values: bool, rule: Rule | None) -> None:
        """Raise CheckpointError unless the saved slots are those of a rule."""
        for key, spec in self.specs.items():
            check_unit(spec, self._outline(key, values), rule)

    def _add(self, entry: Any) -> None:
        """Take in a key of the manifest, if it makes sense; raises anything if not."""
        key = entry["key"]
        counts = [entry["version"], entry["count"], *entry["pushes"].values()]
        shape = tuple(entry["shape"])
        if not all(type(n) is int and 0 <= n < 2**63 for n in [*counts, *shape]):
            raise ValueError(f"key {key!r} has bad numbers")
        if type(key) not in (int, str) or key in self.specs or type(next(iter(self.specs), key)) is not type(key):
            raise ValueError(f"key {key!r:.80} is no key, or is there twice")
        spec = Spec(checked(key), shape, CODES[entry["dtype"]], bool(entry["sparse"]))
        self.specs[key], self._entries[key] = spec, entry
        self._check_arrays(spec, entry)

    def _check_arrays(self, spec: Spec, entry: dict[str, Any]) -> None:
        unit = self._outline(spec.key, True)
        rows = spec.shape
        if unit.ids is not None:
            checked_ids(unit.ids, len(unit.ids), spec.shape[0] if spec.sparse else 0, spec.key)
            rows = (len(unit.ids), *spec.shape[1:])
        for name, array in unit.arrays.items():
            dtype = {VALUE: storage(spec.code), SENT: _FLOAT32, PULLED: _FLOAT32}.get(name)
            if dtype is None and not (name.startswith(SLOT) and len(name) > len(SLOT)):
                raise ValueError(f"key {spec.key!r} has an array {name!r}")
            if (dtype is not None and (array.shape, array.dtype) != (rows, dtype)) or (
                unit.ids is not None and array.shape[:1] != rows[:1]
            ):
                raise ValueError(f"{name!r} of key {spec.key!r} is an array of {array.dtype} {array.shape}")
        for stream, member in entry["residuals"].items():
            fits = not spec.sparse and storage(spec.code) == _FLOAT32 == self.reader.layout(member)[1]
            if not (stream.isascii() and stream.isdigit() and fits and self.reader.layout(member)[0] == spec.shape):
                raise ValueError(f"the residual {stream!r:.20} of key {spec.key!r} does not fit it")


def save(
    path: str | os.PathLike[str], settings: Settings, units: Iterable[tuple[Spec, Unit]], held: Iterable[Held] = ()
) -> None:
    """Write a checkpoint, unit by unit; raises CheckpointError, and leaves what was there under ``path``."""
    with writing(path) as writer:
        entries = []
        for spec, unit in units:
            arrays = unit.arrays if unit.ids is None else {IDS: unit.ids, **unit.arrays}
            members = {name: writer.add(array) for name, array in arrays.items()}
            own = {"key": spec.key, "shape": list(spec.shape), "dtype": NAMES[spec.code], "sparse": spec.sparse}
            entries.append((spec.key, {**own, "version": unit.version, "count": unit.count, "arrays": members}))
        pushes: dict[Key, dict[str, int]] = defaultdict(dict)
        residuals: dict[Key, dict[str, str]] = defaultdict(dict)
        for part in held:
            pushes[part.key][str(part.stream)] = part.pushes
            if part.residual is not None:
                residuals[part.key][str(part.stream)] = writer.add(part.residual)
        keys = [{**entry, "pushes": pushes[key], "residuals": residuals[key]} for key, entry in entries]
        writer.finish({"settings": asdict(settings), "keys": keys})


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """A checkpoint whose every byte was checked, and whose arrays fit its keys; raises CheckpointError."""
    with reading(path) as reader:
        with explained(str(path)):
            checkpoint = Checkpoint(str(path), reader, _settings(reader.manifest["settings"]))
            for entry in reader.manifest["keys"]:
                checkpoint._add(entry)
        yield checkpoint


def _settings(fields: dict[str, Any]) -> Settings:
    settings = Settings(**fields)
    rule = settings.rule
    if rule is not None and not (isinstance(rule, list) and rule and isinstance(rule[0], str)):
        raise ValueError(f"the rule {rule!r:.80} is malformed")
    return settings


def _shown(spec: Spec) -> str:
    return f"key {spec.key!r} as {'a row-sparse' if spec.sparse else 'an'} array of {NAMES[spec.code]} {spec.shape}"

"""What a checkpoint's manifest says: keys, optimizer, compression, and what each worker has held back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from kvstore.arrays import Array
from kvstore.keys import Key
from kvstore.spec import Spec
from pslite.dtypes import CODES, NAMES
from pslite.errors import CheckpointError

from .archive import Reader, reading, writing
from .unit import IDS, SENT, VALUE, Unit


@dataclass(slots=True)
class Settings:
    """Of the store that was saved. ``rule``: the optimizer or updater, None if it was not asked for."""

    type: str
    num_workers: int
    rule: list[Any] | None


@dataclass(slots=True, eq=False)
class Residual:
    """What compression has held back of one worker's (or on a device store, one device's) gradients of a key."""

    key: Key
    stream: int  # rank, or device
    pushes: int  # made of the key: the next one's random numbers follow from it
    array: Array


@dataclass(slots=True, eq=False)
class Checkpoint:
    """A file that is being read."""

    path: str
    reader: Reader
    settings: Settings
    specs: dict[Key, Spec] = field(default_factory=dict)
    _keys: dict[Key, dict[str, Any]] = field(default_factory=dict)

    def unit(self, key: Key, values: bool) -> Unit:
        """What was saved of a key, or the optimizer's part of it."""
        entry = self._keys[key]
        wanted = {n: member for n, member in entry["arrays"].items() if values or n not in (VALUE, SENT)}
        arrays = {name: self.reader.read(member) for name, member in wanted.items()}
        ids = arrays.pop(IDS, None)
        return Unit(arrays, ids, int(entry["version"]), int(entry["count"]))

    def residuals(self) -> Iterator[Residual]:
        """What was held back, by key and worker."""
        for entry in self.reader.manifest["residuals"]:
            array = self.reader.read(entry["array"])
            yield Residual(entry["key"], int(entry["stream"]), int(entry["pushes"]), array)

    def check(self, specs: Iterable[Spec], values: bool) -> None:
        """Raise CheckpointError unless all keys of the store were saved as they are, with ``values`` if needed."""
        for spec in specs:
            saved = self.specs.get(spec.key)
            if saved is None:
                raise CheckpointError(path=self.path, reason=f"key {spec.key!r} is not in it")
            if saved != spec:
                raise CheckpointError(path=self.path, reason=f"it has {_shown(saved)}, the store {_shown(spec)}")
        if values and not all(VALUE in entry["arrays"] for entry in self._keys.values()):
            raise CheckpointError(path=self.path, reason="it has optimizer states only: use load_optimizer_states")


def save(
    path: str | os.PathLike[str],
    settings: Settings,
    units: Iterable[tuple[Spec, Unit]],
    residuals: Iterable[Residual] = (),
) -> None:
    """Write a checkpoint, unit by unit; raises CheckpointError, and leaves what was there under ``path``."""
    with writing(path) as writer:
        keys = []
        for spec, unit in units:
            arrays = unit.arrays if unit.ids is None else {IDS: unit.ids, **unit.arrays}
            members = {name: writer.add(array) for name, array in arrays.items()}
            counts = {"version": unit.version, "count": unit.count}
            own = {"key": spec.key, "shape": list(spec.shape), "dtype": NAMES[spec.code], "sparse": spec.sparse}
            keys.append({**own, **counts, "arrays": members})
        held = [{"key": r.key, "stream": r.stream, "pushes": r.pushes, "array": writer.add(r.array)} for r in residuals]
        writer.finish({"settings": asdict(settings), "keys": keys, "residuals": held})


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """A checkpoint whose every byte was checked; raises CheckpointError."""
    with reading(path) as reader:
        checkpoint = Checkpoint(str(path), reader, Settings(**reader.manifest["settings"]))
        for entry in reader.manifest["keys"]:
            key = entry["key"]
            shape = tuple(int(n) for n in entry["shape"])
            checkpoint.specs[key] = Spec(key, shape, CODES[entry["dtype"]], bool(entry["sparse"]))
            checkpoint._keys[key] = entry
        yield checkpoint


def _shown(spec: Spec) -> str:
    return f"key {spec.key!r} as {'a row-sparse' if spec.sparse else 'an'} array of {NAMES[spec.code]} {spec.shape}"

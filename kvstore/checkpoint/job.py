"""Checkpoints of a whole job: what they and their parts are called, and what a part has of a key. Without I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kvstore.spec import Place, Spec

from .unit import Unit


class Id(NamedTuple):
    """Of a checkpoint; later ones are larger. ``epoch`` counts the jobs that wrote into the directory."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch:06d}-{self.number:010d}"

    @property
    def manifest(self) -> str:
        """The manifest's name."""
        return f"{self}.manifest"

    def part(self, server: int) -> str:
        """The name of a server's part."""
        return f"{self}-{server:05d}.part"

    def header(self, job: str, server: int, servers: int) -> dict[str, Any]:
        """What a part says it is."""
        return {"job": job, "epoch": self.epoch, "number": self.number, "server": server, "servers": servers}


@dataclass(slots=True, eq=False)
class Saved:
    """What is written of a key, or of a piece of it. ``more``: counters of its server; new ones may be added."""

    wire: int  # its key on the wire
    spec: Spec
    place: Place
    unit: Unit
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        arrays = sum(array.nbytes for array in self.unit.arrays.values())
        return arrays + (0 if self.unit.ids is None else self.unit.ids.nbytes)


@dataclass(frozen=True, slots=True)
class Stamp:
    """By which a part is known: bytes, and the CRC-32 of all of them that are no arrays."""

    length: int
    checksum: int

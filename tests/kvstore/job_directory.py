"""A directory of small checkpoints whose contents follow from their numbers. Run as a program it writes the second."""

from __future__ import annotations

import random
import sys

import numpy as np

from kvstore.checkpoint.directory import Directory
from kvstore.checkpoint.job import Id, Saved
from kvstore.checkpoint.unit import SLOT, VALUE, Unit
from kvstore.server.partfile import PartFile
from kvstore.spec import Place, Spec
from pslite.dtypes import CODES

SERVERS = 2
SETTINGS = {"type": "sync", "rule": ["assign"], "changed": {}}


def keys(server: int, number: int) -> list[Saved]:
    rng = np.random.default_rng(number)
    shapes: list[tuple[int, ...]] = [(), (0, 3), (40, 30), (7,)]
    found = []
    for at, shape in enumerate(shapes):
        spec = Spec(f"k{server}-{at}", shape, CODES["float32"])
        arrays = {VALUE: rng.random(shape).astype("f4"), SLOT + "mom": rng.random(shape).astype("f4")}
        found.append(Saved(at, spec, Place(0, shape), Unit(arrays, None, number, number), {"rounds": number}))
    table = Spec(f"k{server}-t", (100, 3), CODES["float32"], True)
    rows = Unit({VALUE: rng.random((2, 3)).astype("f4")}, np.array([5, 99]), number, 0)
    return [*found, Saved(9, table, Place(0, (100, 3)), rows)]


def write(directory: Directory, id: Id, job: str = "j", keep: int = 3) -> None:
    stamps = []
    files = [PartFile(directory, job, server, SERVERS) for server in range(SERVERS)]
    for server, file in enumerate(files):
        file.begin(id, SETTINGS)
        file.add(keys(server, id.number))
        stamps.append(file.finish())
    files[0].complete(id, stamps, keep)


def found(directory: Directory) -> Id | None:
    """The newest good one, after its arrays were compared with what was written."""
    checkpoint = directory.newest()
    if checkpoint is None:
        return None
    for server, part in enumerate(checkpoint.parts):
        for described, saved in zip(part.keys, keys(server, checkpoint.id.number), strict=True):
            unit = part.unit(described)
            assert described.spec == saved.spec and described.place == saved.place
            assert (unit.version, unit.count) == (saved.unit.version, saved.unit.count)
            assert {n: a.tobytes() for n, a in unit.arrays.items()} == {
                n: a.tobytes() for n, a in saved.unit.arrays.items()
            }
    checkpoint.close()
    return checkpoint.id


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes of a file after a bit was flipped, or a page zeroed, or some were lost or added."""
    at = rng.randrange(len(data))
    kind = rng.choice(["flip", "flip", "flip", "cut", "zero", "more"])
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == "cut":
        return data[:at]
    if kind == "more":
        return data + rng.randbytes(rng.randrange(1, 9))
    page = at // 4096 * 4096
    return data[:page] + bytes(len(data[page : page + 4096])) + data[page + 4096 :]


if __name__ == "__main__":
    write(Directory(sys.argv[1]), Id(1, 2), keep=1)

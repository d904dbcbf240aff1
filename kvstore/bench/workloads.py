"""The workloads: what a worker pushes and pulls in a round, all of it float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pslite.errors import ConfigError

Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Workload:
    """``shapes`` of the keys. ``rows``: of a row-sparse table, how many random rows a worker pushes and pulls; 0 for
    dense keys. ``calls``: how often a round repeats itself; its time is then the median of the repetitions.
    ``pushpull``: by one call, where there is such a call.
    """

    name: str
    shapes: Shapes
    rows: int = 0
    calls: int = 1
    pushpull: bool = False

    @property
    def floats(self) -> int:
        """How many a worker pushes at once."""
        if self.rows:
            return self.rows * math.prod(self.shapes[0][1:])
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def bytes(self) -> int:
        """The same in bytes."""
        return 4 * self.floats


def resnet50() -> Shapes:
    """The 161 parameter arrays of ResNet-50 v1 (He et al. 2015)."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                convolutions.append((4 * width, inputs, 1, 1))
            for shape in convolutions:
                shapes += [shape, shape[:1], shape[:1]]  # each with the two vectors of its batch normalization
            inputs = 4 * width
    return (*shapes, (1000, 2048), (1000,))


def vgg16() -> Shapes:
    """The 32 parameter arrays of VGG-16 (Simonyan and Zisserman 2014)."""
    shapes: list[tuple[int, ...]] = []
    inputs = 3
    for width, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            shapes += [(width, inputs, 3, 3), (width,)]
            inputs = width
    for width, inputs in ((4096, 512 * 7 * 7), (4096, 4096), (1000, 4096)):
        shapes += [(width, inputs), (width,)]
    return tuple(shapes)


def bert_base() -> Shapes:
    """The 199 parameter arrays of BERT-base, uncased, with its pooler (Devlin et al. 2018)."""
    hidden, inner = 768, 3072
    norm = [(hidden,), (hidden,)]
    square = [(hidden, hidden), (hidden,)]
    layer = [*square * 4, *norm, (inner, hidden), (inner,), (hidden, inner), (hidden,), *norm]
    return ((30522, hidden), (512, hidden), (2, hidden), *norm, *layer * 12, *square)


def one_array(size: int) -> Workload:
    """One key of so many bytes; small ones several times in a round."""
    return Workload(f"{size} bytes", ((size // 4,),), calls=max(1, min(100, (1 << 20) // size)))


def small_arrays(count: int) -> Workload:
    """So many keys of 8 floats; few ones several times in a round."""
    return Workload(f"{count} keys", ((8,),) * count, calls=max(1, min(100, 1000 // count)))


_ALL: dict[str, Callable[[], Workload]] = {
    "resnet50": lambda: Workload("resnet50", resnet50()),
    "vgg16": lambda: Workload("vgg16", vgg16()),
    "bert-base": lambda: Workload("bert-base", bert_base()),
    "big64": lambda: Workload("big64", ((64 << 18,),)),
    "big256": lambda: Workload("big256", ((256 << 18,),)),
    "small2000": lambda: Workload("small2000", ((16,),) * 2000),
    "small100k": lambda: Workload("small100k", ((8,),) * 100_000),
    "one16": lambda: Workload("one16", ((16,),), calls=200, pushpull=True),
    "rowsparse": lambda: Workload("rowsparse", ((200_000, 64),), rows=20_000),
}
NAMES = tuple(_ALL)


def workload(name: str) -> Workload:
    """The workload of this name. Raises ConfigError."""
    if name not in _ALL:
        raise ConfigError(name="--workload", value=name, allowed="workloads are " + ", ".join((*NAMES, "pairs10m")))
    return _ALL[name]()

"""Times along an axis: sizes of one key, numbers of keys, numbers of workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from .compare import Comparison, compare
from .options import Options
from .statistic import Step, median, worst_step
from .workloads import Workload, one_array, small_arrays, workload

SIZES = tuple(1 << power for power in range(10, 31, 2))
KEYS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
WORKERS = (1, 2, 4, 8)
AXES = {"sizes": "bytes of one key", "keys": "keys of 8 floats", "workers": "workers"}


@dataclass(frozen=True)
class Sweep:
    """The points of one curve for each series."""

    over: str
    points: list[tuple[int, Comparison]]

    @property
    def x(self) -> list[float]:
        """Where the points are."""
        return [float(x) for x, _ in self.points]

    def seconds(self) -> dict[str, list[float]]:
        """Medians, by series and point."""
        names = self.points[0][1].series
        return {name: [median(comparison.series[name].rounds) for _, comparison in self.points] for name in names}

    def steps(self) -> dict[str, Step]:
        """The worst step of each series."""
        return {name: worst_step(self.x, seconds) for name, seconds in self.seconds().items()}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        points = [{"x": x} | comparison.as_dict() for x, comparison in self.points]
        steps = {name: asdict(step) for name, step in self.steps().items()}
        return {"over": self.over, "points": points, "worst_steps": steps}


def sweep(over: str, options: Options) -> Sweep:
    """Measure all points. Raises JobFailed."""
    return Sweep(over, [(x, compare(load, at)) for x, load, at in points(over, options)])


def points(over: str, options: Options) -> Iterator[tuple[int, Workload, Options]]:
    """What is measured at each point."""
    if over == "sizes":
        yield from ((size, one_array(size), options) for size in SIZES)
    elif over == "keys":
        yield from ((count, small_arrays(count), options) for count in KEYS)
    else:
        yield from ((n, workload(options.workload), replace(options, workers=n)) for n in WORKERS)

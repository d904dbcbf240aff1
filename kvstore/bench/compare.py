"""One measurement: jobs of ours, of a peer and of plain numpy in turn, never two at once."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from . import jobs, limit
from .jobs import Measured
from .options import Options
from .statistic import Ratio, median, ratio
from .workloads import Workload

OURS = "pslite"


@dataclass
class Series:
    """The jobs of one kind. ``moved``: bytes that all workers of a job pushed and pulled in all rounds."""

    moved: int
    baseline: int  # bytes of memory of its interpreter with numpy
    jobs: list[Measured] = field(default_factory=list)

    @property
    def rounds(self) -> list[list[float]]:
        """Seconds, by job."""
        return [job.rounds for job in self.jobs]

    @property
    def cpu(self) -> dict[str, float]:
        """CPU seconds per GB by role, over all jobs."""
        total = self.moved * len(self.jobs) / 1e9
        return {role: sum(job.cpu[role] for job in self.jobs) / total for role in self.jobs[0].cpu}

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the largest process by role, less the baseline."""
        return {role: max(job.memory[role] for job in self.jobs) - self.baseline for role in self.jobs[0].memory}

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        memory = self.memory
        return {
            "rounds_s": self.rounds,
            "median_s": median(self.rounds),
            "cpu_s_per_gb": self.cpu,
            "memory_bytes": memory,
        }


@dataclass
class Comparison:
    """What was measured of one workload. ``limits``: seconds of each round of numpy, by repetition."""

    workload: Workload
    options: Options
    series: dict[str, Series]
    limits: list[list[float]]

    def ratio(self, peer: str) -> Ratio:
        """The peer's time over ours."""
        return ratio(self.series[peer].rounds, self.series[OURS].rounds)

    @property
    def distance(self) -> Ratio | None:
        """Our time over what memory allows."""
        return ratio(self.series[OURS].rounds, self.limits) if self.limits else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        options = self.options
        names = ("workers", "servers", "type", "server", "transport", "arrays", "calls", "busy_worker")
        peer = options.peer
        return {
            "workload": self.workload.name,
            "keys": len(self.workload.shapes),
            "bytes": self.workload.bytes,
            **{name: getattr(options, name) for name in names},
            "series": {name: series.as_dict() for name, series in self.series.items()},
            "ratio": None if peer is None else asdict(self.ratio(peer)),
            "limit": {"rounds_s": self.limits, **asdict(self.distance)} if self.distance else None,
        }


def compare(workload: Workload, options: Options) -> Comparison:
    """Run everything. Raises JobFailed."""
    job = {
        "shapes": [list(shape) for shape in workload.shapes],
        "rows": workload.rows,
        "calls": workload.calls,
        "pushpull": workload.pushpull,
        "server": options.server,
        "type": options.type,
        "arrays": options.arrays,
        "each": options.calls == "each",
        "rounds": options.rounds,
        "workers": options.workers,
        "busy": options.busy_worker,
    }
    moved = 2 * workload.bytes * workload.calls * options.rounds * options.workers
    series = {OURS: Series(moved, jobs.baseline(sys.executable))}
    if options.peer:
        series[options.peer] = Series(moved, jobs.baseline(options.peer_python))
    limits = []
    for _ in range(options.repeat):
        series[OURS].jobs.append(jobs.run_ours(job, options.servers, options.transport))
        _tell(workload, OURS, series[OURS].rounds[-1])
        if options.peer:
            measured = jobs.run_peer(options.peer, options.peer_python, job, options.servers)
            series[options.peer].jobs.append(measured)
            _tell(workload, options.peer, measured.rounds)
        if options.limit:
            limits.append(limit.measure(workload.floats, options.workers, options.rounds))
            _tell(workload, "limit", limits[-1])
    return Comparison(workload, options, series, limits)


def _tell(workload: Workload, name: str, rounds: list[float]) -> None:
    """A sign of life."""
    sys.stderr.write(f"{workload.name}: {name} {1e3 * median([rounds]):.4g} ms\n")
    sys.stderr.flush()

"""What a job's directory shows of pushes that were lost or applied twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import lanes
from .ledger import Ledger
from .worker import Job


@dataclass
class Findings:
    """Of all workers that came to the end; ``problems`` has also what workers saw meanwhile."""

    lost: int = 0
    doubled: int = 0
    problems: list[str] = field(default_factory=list)
    finals: int = 0  # workers that came to the end


def find(directory: Path, job: Job, ledger: Ledger) -> Findings:
    """Compare the last values of every worker with the ledger."""
    found = Findings()
    for path in sorted(directory.glob("violations-*")):
        found.problems += path.read_text().splitlines()
    for path in sorted(directory.glob("final-*.npz")):
        found.finals += 1
        with np.load(path) as values:
            for index, name in enumerate(values.files):
                for rank in range(job.workers):
                    bounds = int(ledger.acked(rank)[index]), int(ledger.attempted(rank)[index])
                    verdict = lanes.judge(values[name], job.workers, rank, *bounds)
                    found.lost += verdict.lost
                    found.doubled += verdict.doubled
                    if verdict.text:
                        found.problems.append(f"key {index} in {path.stem}: {verdict.text}")
    return found

"""The trials of cases, as a table and as a file that later runs add to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kvstore.chaos.report import percentiles

from .case import Case, Trial

Results = dict[str, list[Trial]]  # by the case's id

_COLUMNS = ("case", "trials", "lost", "doubled", "hung", "wrong", "detection p50/p99", "recovery p50/p99")
_BEGIN, _END = "<!-- cases -->", "<!-- /cases -->"


def read(path: Path) -> Results:
    """What earlier runs found; nothing if there is no file."""
    if not path.exists():
        return {}
    return {id: [Trial(**trial) for trial in trials] for id, trials in json.loads(path.read_text()).items()}


def write(path: Path, results: Results) -> None:
    """Keep it for later runs."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps({id: [asdict(trial) for trial in trials] for id, trials in results.items()}, indent=1))
    fresh.replace(path)


def markdown(cases: Sequence[Case], results: Results) -> str:
    """A row for each case that has trials, in the order of the plan; times in seconds."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "| --- |" + " ---: |" * (len(_COLUMNS) - 1)]
    return "\n".join([*lines, *(_row(case, results[case.id]) for case in cases if case.id in results)])


def update(path: Path, cases: Sequence[Case], results: Results) -> None:
    """Put the table in the place that a document has for it."""
    text = path.read_text()
    pattern = re.compile(f"(?<={re.escape(_BEGIN)}\n).*?(?={re.escape(_END)})", re.DOTALL)
    assert pattern.search(text), f"{path} has no lines {_BEGIN} and {_END}"
    path.write_text(pattern.sub(lambda _: f"\n{markdown(cases, results)}\n\n", text))


def _row(case: Case, trials: Sequence[Trial]) -> str:
    counts = (
        len(trials),
        sum(trial.lost for trial in trials),
        sum(trial.doubled for trial in trials),
        sum(trial.hung for trial in trials),
        sum(not trial.ok for trial in trials),
    )
    times = (_times([t.detection for t in trials]), _times([t.recovery for t in trials]))
    return "| " + " | ".join([f"{case.number} {case.name}", *map(str, counts), *times]) + " |"


def _times(times: Sequence[float | None]) -> str:
    found = percentiles(times)
    return "/".join(f"{time:.2f}" for time in found) if found else ""

"""The outcomes of many trials as a table, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .trial import Outcome

_TIMES = ("detected", "recovered", "ended")
_COLUMNS = ("case", "store", "seeds", "trials", "faults", "pushes", "lost", "doubled", "hung", "wrong", *_TIMES)


def table(outcomes: Sequence[Outcome]) -> str:
    """A line for each case and store, and below it what was wrong in which trial. Times are seconds, p50/p99."""
    rows = [_COLUMNS, *(_row(case) for case in summary(outcomes))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for outcome in outcomes:
        trial = f"{outcome.store}, {outcome.case}, seed {outcome.seed}"
        lines += [f"{trial}: {problem}" for problem in outcome.problems]
        if outcome.hung:
            lines.append(f"{trial}: the watchdog ended it:\n{outcome.stacks}")
    return "\n".join(lines) + "\n"


def document(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The same, and each trial, as JSON values."""
    return {"cases": summary(outcomes), "trials": [asdict(outcome) for outcome in outcomes]}


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Of each case the sums of its trials, and of their times in seconds [p50, p99], or None."""
    cases: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        cases.setdefault((outcome.case, outcome.store), []).append(outcome)
    return [_summary(*case, trials) for case, trials in cases.items()]


def _summary(case: str, store: str, trials: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "case": case,
        "store": store,
        "seeds": [trials[0].seed, trials[-1].seed],
        "trials": len(trials),
        "faults": sum(trial.faults for trial in trials),
        "pushes": sum(trial.pushes for trial in trials),
        "lost": sum(trial.lost for trial in trials),
        "doubled": sum(trial.doubled for trial in trials),
        "hung": sum(trial.hung for trial in trials),
        "wrong": sum(not trial.ok for trial in trials),
        "detected": percentiles([time for trial in trials for time in trial.detected]),
        "recovered": percentiles([time for trial in trials for time in trial.recovered]),
        "ended": percentiles([trial.ended for trial in trials]),
    }


def percentiles(times: Sequence[float | None]) -> list[float] | None:
    """The 50th and the 99th of the times that are known."""
    known = sorted(time for time in times if time is not None)
    return [known[math.ceil(part * len(known)) - 1] for part in (0.5, 0.99)] if known else None


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    times = ("-" if case[name] is None else "/".join(f"{time:.2f}" for time in case[name]) for name in _TIMES)
    seeds = "-".join(str(seed) for seed in dict.fromkeys(case["seeds"]))
    return (case["case"], case["store"], seeds, *(str(case[name]) for name in _COLUMNS[3:-3]), *times)

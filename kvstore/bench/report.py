"""What was measured, as short tables for people and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from pslite import __version__

from .compare import OURS, Comparison
from .statistic import ALLOWED_STEP, Ratio, median
from .sweep import AXES, Sweep

FORMAT = 1  # of the JSON


def document(**results: Any) -> dict[str, Any]:
    """The JSON of a run: its results, and where they come from."""
    machine = {
        "cpus": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pslite": __version__,
    }
    return {"format": FORMAT, "machine": machine, **results}


def comparison(found: Comparison) -> str:
    """The tables of one workload."""
    load, options = found.workload, found.options
    unencrypted = " without encryption" if options.transport == "tcp" else ""
    settings = [options.type, options.server]
    settings += [f"transport {options.transport}{unencrypted}" if options.transport else ""]
    settings += ["kv.empty" if options.arrays == "empty" else "", "call by call" if options.calls == "each" else ""]
    settings += ["busy workers" if options.busy_worker else ""]
    head = [
        load.name,
        counted(len(load.shapes), "key"),
        f"{size(load.bytes)} a worker",
        counted(options.workers, "worker"),
        counted(options.servers, "server"),
        *filter(None, settings),
    ]
    roles = ("worker", "server")
    rows = [["", "median ms", "lowest", "highest", *(f"{r} CPU s/GB" for r in roles), *(f"{r} MB" for r in roles)]]
    for name, series in found.series.items():
        rounds = [seconds for job in series.rounds for seconds in job]
        cpu = [_or_dash(series.cpu.get(role)) for role in roles]
        memory = [_or_dash(None if (m := series.memory.get(role)) is None else m / 1e6) for role in roles]
        rows.append([name, *(_ms(v) for v in (median([rounds]), min(rounds), max(rounds))), *cpu, *memory])
    lines = [", ".join(head), *table(rows)]
    if options.peer:
        lines.append(f"{options.peer} / {OURS}: {_spread(found.ratio(options.peer), options.repeat)}")
    if found.distance:
        spread = _spread(found.distance, options.repeat)
        lines.append(f"{OURS} / limit: {spread}; the limit is {_ms(median(found.limits))} ms")
    return "\n".join(lines) + "\n"


def sweep(found: Sweep) -> str:
    """The table of a sweep: a line for each point."""
    by_series = found.seconds()
    peer = found.points[0][1].options.peer
    rows = [[AXES[found.over], *(f"{name} ms" for name in by_series), *([f"{peer} / {OURS}"] if peer else [])]]
    for index, (x, point) in enumerate(found.points):
        times = [_ms(seconds[index]) for seconds in by_series.values()]
        rows.append([f"{x:,}", *times, *([f"{point.ratio(peer).median:.3g}"] if peer else [])])
    lines = table(rows)
    for name, step in found.steps().items():
        verdict = "within" if step.factor <= ALLOWED_STEP else "above"
        where = f"from {step.start:,.0f} to {step.end:,.0f}"
        lines.append(f"{name}: worst step {step.factor:.2f} x the trend, {where}; {verdict} {ALLOWED_STEP}")
    return "\n".join(lines) + "\n"


def pairs(found: dict[str, dict[str, list[float]]]) -> str:
    """The table of the workload pairs10m: seconds of pushes and pulls for each kind of handle."""
    rows = [["10 M pairs", "push ms", "pull ms"]]
    for name, times in found.items():
        rows.append([name, *(_ms(median([times[what]])) if what in times else "-" for what in ("push", "pull"))])
    return "\n".join(table(rows)) + "\n"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([name.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, *cells in rows
    ]


def size(count: float) -> str:
    """Bytes for people."""
    units = ["B", "kB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"


def counted(number: int, what: str) -> str:
    """``1 key``, ``2 keys``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.{3 if seconds < 0.01 else 1}f}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _spread(found: Ratio, repeat: int) -> str:
    between = f"{_times(found.lowest)} to {_times(found.highest)} in {counted(repeat, 'pair')} of jobs"
    return f"{_times(found.median)} ({between})"


def _times(factor: float) -> str:
    return f"{factor:.2f}" if factor < 100 else f"{factor:,.0f}"

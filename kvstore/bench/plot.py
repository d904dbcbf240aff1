"""Sweeps as a picture; matplotlib is needed here only."""

from __future__ import annotations

from collections.abc import Sequence

from .statistic import trend
from .sweep import AXES, Sweep


def plot(sweeps: Sequence[Sweep], path: str) -> None:
    """Write a PNG: a panel for each sweep, with the measured points and, dashed, their trend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(sweeps), 4.5), layout="constrained")
    for index, found in enumerate(sweeps):
        axes = figure.add_subplot(1, len(sweeps), index + 1)
        for name, seconds in found.seconds().items():
            [line] = axes.plot(found.x, [1e3 * value for value in seconds], "o-", label=name)
            a, b = trend(found.x, seconds)
            axes.plot(found.x, [1e3 * (a + b * x) for x in found.x], "--", color=line.get_color(), alpha=0.5)
        if found.over != "workers":
            axes.set_xscale("log")
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel(AXES[found.over])
        axes.set_ylabel("a round, ms")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png", dpi=120)

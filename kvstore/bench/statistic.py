"""Medians, ratios with their spread, and trends. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALLOWED_STEP = 1.5


@dataclass(frozen=True)
class Ratio:
    """How much slower others are: of the medians of all rounds; the lowest and highest of a pair of jobs."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Step:
    """Two neighbouring points of a sweep, and how much more the second takes than the trend says."""

    factor: float
    start: float
    end: float


def median(jobs: Sequence[Sequence[float]]) -> float:
    """Of all rounds of all jobs."""
    return statistics.median(seconds for rounds in jobs for seconds in rounds)


def ratio(others: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> Ratio:
    """Of the seconds of two series of jobs that ran in turn."""
    pairs = [statistics.median(b) / statistics.median(a) for b, a in zip(others, ours, strict=True)]
    return Ratio(median(others) / median(ours), min(pairs), max(pairs))


def trend(x: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The a and b, neither below 0, of the line a + b * x with the least squares of relative errors."""
    weights = 1 / np.asarray(seconds, float)
    columns = np.stack([weights, weights * np.asarray(x, float)], axis=1)
    a, b = (float(number) for number in np.linalg.lstsq(columns, np.ones(len(weights)), rcond=None)[0])
    if a < 0:
        return 0.0, float(columns[:, 1].sum() / (columns[:, 1] ** 2).sum())
    if b < 0:
        return float(columns[:, 0].sum() / (columns[:, 0] ** 2).sum()), 0.0
    return a, b


def worst_step(x: Sequence[float], seconds: Sequence[float]) -> Step:
    """The step between neighbours that rises most above the trend's."""
    a, b = trend(x, seconds)
    line = [a + b * value for value in x]
    steps = [
        Step(seconds[i + 1] / seconds[i] / (line[i + 1] / line[i]), x[i], x[i + 1]) for i in range(len(seconds) - 1)
    ]
    return max(steps, key=lambda step: step.factor)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.bench.statistic import Ratio, Step, median, ratio, trend, worst_step

SECONDS = st.floats(1e-5, 100)


def test_the_median_is_that_of_all_rounds() -> None:
    assert median([[1, 2, 9], [3, 4]]) == 3


def test_a_ratio_is_of_all_rounds_and_its_spread_of_pairs_of_jobs() -> None:
    assert ratio([[4, 4, 4], [9, 9, 9]], [[2, 2, 2], [3, 3, 3]]) == Ratio(6.5 / 2.5, 2, 3)


@given(st.lists(st.lists(SECONDS, min_size=1), min_size=1), st.floats(0.1, 10))
def test_what_always_takes_so_many_times_as_long_has_no_spread(ours: list[list[float]], factor: float) -> None:
    found = ratio([[factor * seconds for seconds in rounds] for rounds in ours], ours)
    assert (found.median, found.lowest, found.highest) == pytest.approx((factor, factor, factor))


@given(st.floats(0, 1), st.floats(1e-9, 1))
def test_a_trend_finds_the_line_that_points_lie_on(a: float, b: float) -> None:
    x = [1.0, 10.0, 100.0, 1000.0]
    found = trend(x, [a + b * value for value in x])
    assert [found[0] + found[1] * value for value in x] == pytest.approx([a + b * value for value in x])


@given(st.lists(SECONDS, min_size=2, max_size=12))
def test_a_trend_never_falls_and_is_never_negative(seconds: list[float]) -> None:
    a, b = trend(range(1, 1 + len(seconds)), seconds)
    assert min(a, b) >= 0 < a + b


def test_a_sudden_step_is_the_worst() -> None:
    x = [1.0, 2.0, 4.0, 8.0, 16.0]
    step = worst_step(x, [1.0, 2.0, 4.0, 16.0, 32.0])
    assert (step.start, step.end) == (4, 8)
    assert step.factor == pytest.approx(2, rel=0.1)


def test_on_a_straight_line_there_is_none() -> None:
    step = worst_step([1, 2, 3], [5, 7, 9])
    assert step == Step(pytest.approx(1), step.start, step.end)

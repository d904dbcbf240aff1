"""Random pushes of rows by up to four ranks, on the server's brain and on whole arrays in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstore.optimizer import create
from kvstore.sparse import row_sparse_array, zeros

from .driving import Driver

ROWS, SHAPE = 5, (5, 2)
RATE, MOMENTUM = np.float32(0.5), np.float32(0.75)


@st.composite
def pushes(draw: Any) -> tuple[int, list[tuple[int, dict[int, int]]]]:
    """A number of workers, and (rank, {row: number}) in the order of arrival."""
    workers = draw(st.integers(1, 4))
    rows = st.dictionaries(st.integers(0, ROWS - 1), st.integers(-8, 8))
    return workers, draw(st.lists(st.tuples(st.integers(0, workers - 1), rows), max_size=16))


def rounds(workers: int, made: list[tuple[int, dict[int, int]]], sync: bool) -> list[list[dict[int, int]]]:
    """What each round sums."""
    if not sync:
        return [[rows] for _, rows in made]
    own = [[rows for rank, rows in made if rank == r] for r in range(workers)]
    return [list(contributions) for contributions in zip(*own, strict=False)]


def array(rows: dict[int, int]) -> Any:
    data = np.array([[value, value / 4] for value in rows.values()], np.float32).reshape(-1, 2)
    return row_sparse_array((data, np.array(list(rows), np.int64)), SHAPE)


@given(pushes(), st.booleans(), st.sampled_from(["assign", "lazy", "standard"]), st.booleans())
def test_rows_are_changed_as_the_same_rows_of_whole_arrays(drawn: Any, sync: bool, rule: str, dense: bool) -> None:
    workers, made = drawn
    driver = Driver(workers, sync)
    if rule != "assign":
        sgd = create("sgd", learning_rate=float(RATE), momentum=float(MOMENTUM), lazy_update=rule == "lazy")
        driver.agree(0, "rule", ["optimizer", sgd.to_wire()])
    value, mom = np.arange(10, dtype=np.float32).reshape(SHAPE), np.zeros(SHAPE, np.float32)
    driver.init(t=value if dense else row_sparse_array((value, np.arange(ROWS)), SHAPE))
    for rank, rows in made:
        driver.push(rank, t=array(rows))
    for contributions in rounds(workers, made, sync):
        total = zeros(SHAPE).todense()
        for rows in contributions:
            total += array(rows).todense()
        changed = sorted({row for rows in contributions for row in rows}) if rule == "lazy" else list(range(ROWS))
        if rule == "assign":
            value = total
        else:
            mom[changed] = MOMENTUM * mom[changed] - RATE * total[changed]
            value[changed] += mom[changed]
    np.testing.assert_array_equal(driver.value("t"), value)
    if not dense:
        [(_, [found])] = driver.pull_rows(99, "t", [0, 3])
        np.testing.assert_array_equal(found, value[[0, 3]])

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pslite.van.shared import Extents

UNIT = 64


def gaps(size: int, taken: dict[int, int]) -> list[tuple[int, int]]:
    """The free extents as (nbytes, offset), each as large as it can be."""
    found, offset = [], 0
    for start, nbytes in [*sorted(taken.items()), (size, 0)]:
        if start > offset:
            found.append((start - offset, offset))
        offset = start + nbytes
    return found


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=80))
def test_any_order_of_takes_and_gives(units: int, calls: list[tuple[bool, int]]) -> None:
    size = units * UNIT
    extents, taken = Extents(size), dict[int, int]()
    for take, n in calls:
        if take:
            fitting = [gap for gap in gaps(size, taken) if gap[0] >= n * UNIT]
            offset = extents.take(n * UNIT)
            if offset is None:
                assert not fitting, "neighbours that are free are one extent"
                continue
            smallest = min(fitting)[0]
            assert offset in [start for nbytes, start in fitting if nbytes == smallest]
            taken[offset] = n * UNIT
        elif taken:
            offset = sorted(taken)[n % len(taken)]
            extents.give(offset, taken.pop(offset))
        assert extents.empty == (not taken)
    for offset, nbytes in taken.items():
        extents.give(offset, nbytes)
    assert extents.empty
    assert extents.take(size) == 0


def test_of_equal_extents_the_one_freed_last_is_used_first() -> None:
    extents = Extents(8 * UNIT)
    offsets = [extents.take(UNIT) for _ in range(8)]
    assert offsets == [i * UNIT for i in range(8)]
    for i in (4, 0, 6, 2):  # none is beside another
        extents.give(i * UNIT, UNIT)
    assert [extents.take(UNIT) for _ in range(5)] == [2 * UNIT, 6 * UNIT, 0, 4 * UNIT, None]


def test_a_training_loop_fits_for_ever() -> None:
    """200 sizes from 100 bytes to 4 MB; each array of a round is freed when the same one of the next round is made."""
    rng = random.Random(1)
    sizes = [UNIT * rng.randint(2, 4 ** rng.randint(2, 8)) for _ in range(200)]
    extents = Extents(int(1.5 * sum(sizes)) // UNIT * UNIT)
    held: list[int | None] = [None] * len(sizes)
    for _ in range(300):
        for i, nbytes in enumerate(sizes):
            offset = extents.take(nbytes)
            assert offset is not None
            before, held[i] = held[i], offset
            if before is not None:
                extents.give(before, nbytes)

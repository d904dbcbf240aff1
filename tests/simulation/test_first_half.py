"""Thousands of schedules of whole jobs: the first half."""

from __future__ import annotations

import pytest

from . import promises


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", range(promises.BLOCKS))
def test_no_schedule_breaks_a_promise(block: int) -> None:
    promises.check(0, block)

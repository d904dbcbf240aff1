"""Bugs that a case must find; the simulation has others, see tests/simulation/bugs.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .resource_cases import clock_jumps

FIND_WITHIN = 5  # jobs; nearly always the first


@pytest.mark.processes
def test_liveness_by_the_wall_clock_is_found(tmp_path: Path) -> None:
    """Deadlines pass when somebody sets the clock."""
    for seed in range(FIND_WITHIN):
        where = tmp_path / str(seed)
        where.mkdir()
        try:
            clock_jumps(seed, where, BUG="wall clock")
        except AssertionError as error:
            assert re.search("not complete|PeerLost|Timeout|did not become true", str(error))
            return
    pytest.fail(f"{FIND_WITHIN} jobs did not find it")

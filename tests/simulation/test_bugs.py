"""The bugs that schedules must find."""

from __future__ import annotations

import pytest

from . import campaign
from .bugs import BUGS
from .job import Result

FIND_WITHIN = 2000  # schedules


def found(bug: str) -> Result:
    """The first schedule that finds a bug."""
    results: list[Result] = []
    campaign.run_here(range(FIND_WITHIN), bug, results.append, at_most=1)
    return results[-1]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found(bug: str) -> None:
    result = found(bug)
    assert result.violation
    assert result.story, "it tells the last events"
    assert f"python -m tests.simulation --seed {result.seed} --bug {bug}" in campaign.told(result, bug)

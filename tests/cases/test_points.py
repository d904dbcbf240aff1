"""Every named point has a trial that dies there."""

from __future__ import annotations

from pslite.failpoints import POINTS

from . import point_cases


def test_every_point_is_hit_by_a_trial() -> None:
    hit = {*point_cases.SERVER, *point_cases.CHECKPOINT, *point_cases.SCHEDULER, *point_cases.WORKER}
    assert hit == set(POINTS)

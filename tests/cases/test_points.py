"""Every named point has a trial that dies there."""

from __future__ import annotations

from pslite.failpoints import POINTS

from . import point_cases


def test_every_point_is_hit_by_a_trial() -> None:
    of_servers = {*point_cases.SERVER, *point_cases.REPLICATED, *point_cases.CHECKPOINT}
    moving = {"before_adopt", "before_release", "after_release"}  # tests/system/test_scaling.py
    hit = {*of_servers, *moving, *point_cases.SCHEDULER, *point_cases.WORKER}
    assert hit == set(POINTS)

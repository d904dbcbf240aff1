"""Every named point has a trial that dies there."""

from __future__ import annotations

from pslite.failpoints import POINTS

from . import point_cases


def test_every_point_is_hit_by_a_trial() -> None:
    of_servers = {*point_cases.SERVER, *point_cases.REPLICATED, *point_cases.CHECKPOINT}
    hit = {*of_servers, *point_cases.SCHEDULER, *point_cases.WORKER}
    assert hit == set(POINTS)

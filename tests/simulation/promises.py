"""What the tests of many schedules have in common: two files, for two processes beside each other."""

from __future__ import annotations

import os

from . import campaign

SCHEDULES = int(os.environ.get("SIM_SCHEDULES", "5000" if os.environ.get("CI") == "true" else "500"))
HALVES, BLOCKS = 2, 5  # of a half: each block is a test, with a time limit of its own


def check(half: int, block: int) -> None:
    """A part of the schedules: no promise is broken."""
    count = SCHEDULES // HALVES // BLOCKS
    first = campaign.first_seed() + (half * BLOCKS + block) * count
    print(f"seeds from {first}")
    summary = campaign.run(first, count, jobs=1)
    print(summary)
    assert not summary.failed, "\n\n".join(map(campaign.told, summary.failed))
    assert summary.schedules == count
    assert summary.restarts > count / 4, "processes die in many of them"

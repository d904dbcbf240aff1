"""Runs a module whose wall clock jumps: ``jumping.py SEED MODULE ARGUMENT...``. With BUG set, liveness looks at it."""

import os
import random
import runpy
import sys
import time
from unittest import mock

_DAY = 86_400.0
_STEP = 0.05  # seconds from one jump to the next
_real, _monotonic = time.time, time.monotonic
_jumps = random.Random(int(sys.argv[1]))


class Wall:
    """Goes forth by a month and back by a day, stands still, runs a hundred times as fast, or steps as NTP does."""

    def __init__(self) -> None:
        self._now, self._rate, self._at, self._next = _real(), 1.0, _monotonic(), 0.0

    def __call__(self) -> float:
        now = _monotonic()
        self._now += self._rate * (now - self._at)
        self._at = now
        if now >= self._next:
            self._next = now + _STEP
            self._now += _jumps.choice([30 * _DAY, -_DAY, 0.0, 0.128, -0.128])
            self._rate = _jumps.choice([0.0, 1.0, 100.0])
        return self._now


wall = Wall()
time.time = wall
time.time_ns = lambda: int(wall() * 1e9)

if os.environ.get("BUG") == "wall clock":
    from pslite.postoffice.office import Postoffice

    defaults = Postoffice.__init__.__defaults__
    assert defaults[1] is time.monotonic
    mock.patch.object(Postoffice.__init__, "__defaults__", (defaults[0], time.time, *defaults[2:])).start()

sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

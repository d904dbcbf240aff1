"""The seed of this run of the tests, in all its processes: CASES_SEED, or another one each second."""

from __future__ import annotations

import os
import time

SEED = int(os.environ.setdefault("CASES_SEED", str(time.time_ns() // 10**9 % 10**6)))

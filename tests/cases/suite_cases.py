"""Cases whose trials are tests of their own: the suite runs them as such, a soak runs them from here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.system.jobs import ROOT

from .case import Trial, case

_WORDS = 4000  # characters of a failure


def tests(number: int, name: str, *files: str, needs: tuple[str, ...] = (), soak: int = 1, **env: str) -> None:
    """Register a case whose trials are the tests of some files, with these settings in a soak."""

    def run(seed: int, where: Path) -> list[Trial]:
        own = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(where / "tests")]
        done = subprocess.run(
            [*own, f"--hypothesis-seed={seed}", *files],
            cwd=ROOT,
            env=os.environ | {"CASES_SEED": str(seed)} | env,
            stdout=subprocess.PIPE,
            text=True,
        )
        counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|errors?)", done.stdout)}
        found = [Trial() for _ in range(max(sum(counts.values()), 1))]
        if done.returncode:
            found[0].wrong.append(done.stdout[-_WORDS:])
        return found

    case(number, name, soak=soak, needs=needs, limit=1200.0, in_suite=True)(run)


tests(10, "every message lost or doubled", "tests/pslite/test_every_message.py", soak=300)
tests(11, "simulation", "tests/simulation", soak=1, SIM_SCHEDULES="20000")
tests(22, "malformed messages and bytes on every socket", "tests/fuzz", soak=40)
tests(
    25, "disk full, or failing, in a checkpoint; killed at every call", "tests/system/test_checkpoint_killed.py",
    needs=("strace",), EVERY_CALL="1",
)  # fmt: skip
tests(
    26, "damaged checkpoints", "tests/kvstore/test_checkpoint_damage.py", "tests/kvstore/test_checkpoint_directory.py"
)  # fmt: skip
tests(29, "the launcher", "tests/launcher", "tests/security/test_secrets.py")
tests(30, "jobs in one process, 200 cycles", "tests/system/test_life_cycle.py", LIFE_CYCLES="200")

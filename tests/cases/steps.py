"""Jobs of ``tests/system/scripts/steps.py``, whose workers kill or stop themselves between their pushes of two keys."""

from __future__ import annotations

import re
import subprocess
import sys
from random import Random

from tests.system.jobs import SCRIPTS, launch

from .case import Trial

_WORKERS, _STEPS = 3, 12
_SCRIPT = [sys.executable, SCRIPTS / "steps.py"]


def restarted(type: str, seed: int) -> Trial:
    """The worker is started again, and goes on with the step in which it was."""
    rank, step, how = _drawn(seed)
    done = _job(type, f"{rank}:{step}:{how}", "--max-restarts", 1)
    total = 6 if type == "dist_sync" else 6 * _STEPS
    expected = {each: (step - 1 if each == rank else 0, f"{total} {total}") for each in range(_WORKERS)}
    wrong = _failed(done) or ([] if _results(done) == expected else [f"{_results(done)}, not {expected}"])
    if f"ended well after 1 restart: worker {rank} (1)" not in done.stderr:
        wrong.append(done.stderr)
    return Trial(wrong=wrong)


def shrunk(type: str, seed: int) -> Trial:
    """The others go on without it, and have the same values."""
    rank, step, how = _drawn(seed)
    done = _job(type, f"{rank}:{step}:{how}", "--on-worker-lost", "shrink")
    found = {each: values for each, (_, values) in _results(done).items()}
    others, mine = 6 - (rank + 1), rank + 1
    # Of the last push to "a" nobody knows whether it has left the process that was stopped.
    either = {f"{others * _STEPS + mine * n} {others * _STEPS + mine * step}" for n in (step, step + 1)}
    allowed = {f"{others} {others}"} if type == "dist_sync" else either
    wrong, values = _failed(done), set(found.values())
    if set(found) != set(range(_WORKERS)) - {rank} or len(values) != 1 or not values <= allowed:
        wrong.append(f"{found}, not one of {allowed}")
    if "the others go on without it" not in done.stderr:
        wrong.append(done.stderr)
    return Trial(wrong=wrong)


def _drawn(seed: int) -> tuple[int, int, str]:
    random = Random(seed)
    return random.randrange(_WORKERS), random.randrange(1, _STEPS - 1), random.choice(["SIGKILL", "SIGSTOP"])


def _job(type: str, event: str, *flags: object) -> subprocess.CompletedProcess[str]:
    return launch("-n", _WORKERS, "-s", 2, *flags, *_SCRIPT, type, _STEPS, event)


def _failed(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [f"status {done.returncode}: {done.stderr}"] if done.returncode else []


def _results(done: subprocess.CompletedProcess[str]) -> dict[int, tuple[int, str]]:
    """By rank: the step it began with, and the two values."""
    lines = re.findall(r"rank (\d) began with (\d+), ranks \[.*\]: (.*)", done.stdout)
    return {int(rank): (int(began), values) for rank, began, values in lines}

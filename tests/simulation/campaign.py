"""Many schedules, on several processes."""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import chain

from .bugs import BUGS
from .job import Result, simulate
from .plan import draw

COMMAND = "python -m tests.simulation"
AT_MOST = 5  # failing schedules, after which a process stops


@dataclass
class Summary:
    """What many schedules came to."""

    schedules: int = 0
    events: int = 0
    restarts: int = 0
    seconds: float = 0.0
    failed: list[Result] = field(default_factory=list)

    def __str__(self) -> str:
        rate = self.events / max(self.seconds, 1e-9)
        return (
            f"{self.schedules} schedules, {self.events} events and {self.restarts} restarts in {self.seconds:.0f} s"
            f" ({rate:.0f} events/s), {len(self.failed)} failed"
        )


def first_seed() -> int:
    """SIM_SEED, else another one each day."""
    given = os.environ.get("SIM_SEED")
    return int(given) if given else datetime.date.today().toordinal() * 1_000_000


def replay(seed: int, bug: str = "") -> str:
    """The command that runs a schedule again."""
    return f"{COMMAND} --seed {seed}" + (f" --bug {bug}" if bug else "")


def run_one(seed: int, bug: str = "") -> Result:
    """One schedule."""
    with BUGS[bug]() if bug else contextlib.nullcontext():
        return simulate(draw(seed))


def run_here(seeds: range, bug: str, report: Callable[[Result], None], at_most: int = AT_MOST) -> None:
    """Schedules one after the other, until too many have failed."""
    failed = 0
    gc.collect()
    gc.freeze()
    gc.disable()
    for number, seed in enumerate(seeds):
        if number % 20 == 0:
            gc.collect()  # a schedule leaves few cycles behind, but they hold descriptors
        result = run_one(seed, bug)
        report(result)
        failed += bool(result.violation)
        if failed >= at_most:
            break
    gc.enable()


def run(first: int, count: int, jobs: int) -> Summary:
    """Schedules on several processes, which have no part in each other."""
    began, summary = time.monotonic(), Summary()
    command = [sys.executable, "-m", "tests.simulation", "--count", str(count), "--first", str(first)]
    shards = [
        subprocess.Popen([*command, "--shard", f"{i}/{jobs}"], stdout=subprocess.PIPE, text=True) for i in range(jobs)
    ]
    try:
        with ThreadPoolExecutor(jobs) as readers:  # one that nobody reads would wait for room in its pipe
            for result in chain.from_iterable(readers.map(lambda shard: list(_results(shard)), shards)):
                summary.schedules += 1
                summary.events += result.events
                summary.restarts += result.restarts
                summary.failed += [result] if result.violation else []
    finally:
        for shard in shards:
            shard.kill()
            shard.wait()
            assert shard.stdout is not None
            shard.stdout.close()
    summary.seconds = time.monotonic() - began
    return summary


def _results(shard: subprocess.Popen[str]) -> Iterator[Result]:
    assert shard.stdout is not None
    for line in shard.stdout:
        yield Result(**json.loads(line))
    if shard.wait():
        raise RuntimeError(f"a process of the simulation ended with status {shard.returncode}")


def line(result: Result) -> str:
    """A result as its process writes it; the story of one that went well is of no use."""
    return json.dumps(asdict(result))


def told(result: Result, bug: str = "") -> str:
    """A failed schedule, to be read."""
    return "\n".join([*result.story, f"seed {result.seed}: {result.violation}", f"replay: {replay(result.seed, bug)}"])

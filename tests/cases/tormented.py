"""Real jobs of lanes that are harmed again and again; each time is a trial."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.chaos import lanes
from kvstore.chaos.options import END_WITHIN, Options
from kvstore.chaos.plan import Injection, plan
from kvstore.chaos.stores import ours
from kvstore.chaos.trial import Outcome
from kvstore.chaos.trial import Trial as Torment
from kvstore.chaos.worker import Job

from .case import Trial

WORKERS, SERVERS = 3, 2
REPLICAS = ("--replicas", "1")  # of two servers one may die
SECONDS = 0.5  # of a round of faults; it lasts until everybody goes on


def job(type: str, barrier_every: int = 0) -> Job:
    """Small keys, which are bundled, some that travel apart, and a large one."""
    width = lanes.width(WORKERS)
    return Job(type, WORKERS, (width,) * 12 + (width * 600,) * 2 + (width * 30_000,), barrier_every)


def tormented(work: Job, *flags: str) -> Torment:
    """A job that can be harmed, under the launcher with these options."""
    return Torment(work, ours(Options(workers=WORKERS, servers=SERVERS, launcher=flags), ""), END_WITHIN)


def torment(faults: str, seed: int, rounds: int, work: Job, *flags: str) -> list[Trial]:
    """Harm a job so many times."""
    return inject([plan(faults, seed, SECONDS, WORKERS, SERVERS, round) for round in range(rounds)], work, *flags)


def inject(rounds: Sequence[Sequence[Injection]], work: Job, *flags: str) -> list[Trial]:
    """Do a job these faults. It must go on after each round."""
    restarts = ["--max-restarts", str(sum(map(len, rounds)))]
    with tormented(work, *restarts, *flags) as running:
        outcome = running.run("", 0, SECONDS, rounds, must_survive=True)
    found, each = trials(outcome, len(rounds)), outcome.faults // len(rounds)
    for index, trial in enumerate(found):
        mine = slice(index * each, (index + 1) * each)
        trial.detection = max(outcome.detected[mine], default=None)
        trial.recovery = max(outcome.recovered[mine], default=None)
    return found


def trials(outcome: Outcome, count: int) -> list[Trial]:
    """What was wrong with a job is in the first of its trials: the values at the end tell of all together."""
    wrong = [*outcome.problems, outcome.stacks] if outcome.hung else outcome.problems
    first = Trial(outcome.lost, outcome.doubled, outcome.hung, wrong)
    return [first, *(Trial() for _ in range(count - 1))]

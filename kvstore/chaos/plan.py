"""Which harm is done when. Pure: a seed gives the same plan each time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from pslite.errors import ConfigError

#: Seconds from SIGSTOP to SIGCONT: a pause is less than a peer is waited for, so that nobody may be given up.
LASTS = {"pause": 0.4, "freeze": 5.0}
_NAME = re.compile(r"(kill|restart|stop|pause|freeze)-(worker|server|scheduler)|garbage-(server|scheduler)")


@dataclass(frozen=True)
class Injection:
    """One fault, ``at`` seconds after all work.

    ``how``: kill (SIGKILL), restart (and it is started again), stop (SIGSTOP), one of ``LASTS``, or garbage (what is no
    message comes to where it listens).
    """

    at: float
    how: str
    role: str
    rank: int

    @property
    def survivable(self) -> bool:
        """Whether the job must go on."""
        return self.how in ("pause", "restart", "garbage")

    @property
    def target(self) -> str:
        """How the launcher calls the process."""
        return self.role if self.role == "scheduler" else f"{self.role} {self.rank}"


def check(case: str) -> str:
    """The case, if it is one: ``none``, or names of faults with + between them. Raises ConfigError."""
    if case != "none" and not all(_NAME.fullmatch(name) for name in case.split("+")):
        allowed = (
            "give none, or kill, restart, stop, pause or freeze and -worker, -server or -scheduler, or garbage-server "
            "or garbage-scheduler, several joined by +"
        )
        raise ConfigError(name="--faults", value=case, allowed=allowed)
    return case


def plan(case: str, seed: int, seconds: float, workers: int, servers: int, round: int = 0) -> list[Injection]:
    """The faults of a case, each at a random time in the middle of the round, in the order of time."""
    random = Random(f"{case} {seed} {round}")
    return sorted(_draw(case, random, seconds, workers, servers), key=lambda injection: injection.at)


def _draw(case: str, random: Random, seconds: float, workers: int, servers: int) -> Iterator[Injection]:
    for name in [] if case == "none" else case.split("+"):
        how, role = name.split("-")
        count = {"worker": workers, "server": servers, "scheduler": 1}[role]
        yield Injection(random.uniform(0.1, 0.7) * seconds, how, role, random.randrange(count))

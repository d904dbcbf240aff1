"""What happens in a schedule: the job, the network and the faults, all drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from pslite import failpoints

FAULTS = ("crash", "crash", "crash", "pause", "break", "cut", "slow", "clock")
ANYWHERE = ("event", "send")
_ELSEWHERE = ("_replicate", "_adopt", "_release")


def _points(role: str) -> tuple[str, ...]:
    """The points that the code names of a role; there are no replicas here, and no server moves."""
    named = {name: where.split(":")[0].split()[0] for name, where in failpoints.POINTS.items()}
    return tuple(name for name, whose in named.items() if whose == role and not name.endswith(_ELSEWHERE))


POINTS = {"worker": ANYWHERE, "scheduler": ANYWHERE + _points("scheduler")}
POINTS["server"] = ANYWHERE + tuple(name for name in _points("server") if "checkpoint" not in name)
SAVING = ("file", *(name for name in _points("server") if "checkpoint" in name))  # if there are checkpoints


@dataclass(frozen=True)
class Fault:
    """``point``, ``count``: where a process dies; ``seconds``: how long it stops, is slow or cut off."""

    at: float  # seconds after all have joined
    kind: str
    role: str
    rank: int
    point: str = ""
    count: int = 0
    seconds: float = 0.0
    other: tuple[str, int] = ("scheduler", 0)  # from which it is cut off
    one_way: int = 0  # 1: from it, 2: to it


@dataclass(frozen=True)
class Plan:
    """A schedule. The defaults are a calm one."""

    seed: int = 0
    sync: bool = True
    workers: int = 3
    servers: int = 2
    keys: int = 2  # on each server
    steps: int = 20
    pushes: int = 1  # of each key in a step
    ahead: int = 1  # steps whose pushes may be unanswered
    style: str = "bundle"  # or 'list', 'single'
    backwards: tuple[int, ...] = ()  # ranks that push their keys in the opposite order
    pull_every: int = 1  # steps, if pulls are not in the same requests
    both: bool = False  # pushpull, or push and pull
    think: float = 0.05  # seconds of a step, at most
    meet: int = 7  # steps between barriers
    window: int = 0  # bytes under way; 0: more than there will be
    loss: float = 0.0
    double: float = 0.0
    delay: float = 0.005
    in_order: bool = True
    resend_timeout: float = 0.5
    asked: str = "wait"  # on_worker_lost, or 'shrink'
    early: float = 0.0  # when the scheduler dies, if not all have joined by then; 0: it does not
    lost: int = -1  # the worker that is not started again
    zombies: bool = False  # workers that are given up are not ended before their successors start
    save_every: float = 0.0  # seconds between checkpoints; 0: there are none
    disk_errors: float = 0.0  # of the steps of writing files
    bit_flips: float = 0.0  # of the files
    faults: list[Fault] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Pushes of each key by each worker."""
        return self.steps * self.pushes


def draw(seed: int) -> Plan:
    """The schedule of a seed."""
    rng = Random(seed)
    pick = rng.choice
    workers, servers = pick((3, 3, 3, 3, 3, 3, 3, 4)), 2
    shrinks = rng.random() < 0.1
    lost = rng.randrange(workers) if not shrinks and rng.random() < 0.06 else -1
    save_every = pick((0.1, 0.3, 1.0)) if rng.random() < 0.2 else 0.0
    faults = [_fault(rng, workers, servers, save_every > 0) for _ in range(pick((2, 2, 3, 4)))]
    if lost >= 0:
        faults.append(Fault(rng.uniform(0, 0.8), "crash", "worker", lost, pick(ANYWHERE), rng.randint(1, 30)))
    return Plan(
        seed=seed,
        sync=rng.random() < 0.6,
        workers=workers,
        servers=servers,
        keys=pick((1, 1, 2, 2, 3)),
        pushes=1 if rng.random() < 0.92 else 2,
        ahead=pick((1, 1, 2, 3)),
        style=pick(("bundle",) * 4 + ("list",) * 3 + ("single",)),
        backwards=tuple(rank for rank in range(workers) if rng.random() < 0.3),
        pull_every=pick((1, 3, 5)),
        both=rng.random() < 0.7,
        think=pick((0.0, 0.02, 0.1)),
        meet=pick((5, 7, 100)),
        window=pick((0, 0, 0, 60, 200)),
        loss=pick((0.0, 0.0, 0.01, 0.05)),
        double=pick((0.0, 0.0, 0.02, 0.15)),
        delay=pick((0.0005, 0.005, 0.05)),
        in_order=rng.random() < 0.6,
        resend_timeout=pick((0.1, 0.5, 1.0)),
        asked="shrink" if shrinks else "wait",
        early=rng.uniform(0.05, 0.3) if rng.random() < 0.05 else 0.0,
        lost=lost,
        zombies=rng.random() < 0.6,
        save_every=save_every,
        disk_errors=pick((0.0, 0.02, 0.1)),
        bit_flips=pick((0.0, 0.1, 0.3)),
        faults=sorted(faults, key=lambda fault: fault.at),
    )


def _fault(rng: Random, workers: int, servers: int, saves: bool) -> Fault:
    kind, at = rng.choice(FAULTS), rng.uniform(0, 1.5)
    everybody = [("server", r) for r in range(servers)] + [("worker", r) for r in range(workers)]
    role, rank = rng.choice(everybody)
    if kind == "crash":
        if rng.random() < 0.15:
            role, rank = "scheduler", 0
        points = POINTS[role] + (SAVING if saves and role == "server" else ())
        return Fault(at, kind, role, rank, rng.choice(points), rng.randint(1, 12))
    seconds = rng.choice((0.1, 0.4, 0.9, 2.0, 4.0))
    if kind == "pause" and rng.random() < 0.1:
        role, rank, seconds = "scheduler", 0, min(seconds, 0.9)
    if kind == "slow":
        return Fault(at, kind, role, rank, seconds=rng.choice((0.005, 0.03)))
    other = rng.choice([("scheduler", 0), *(each for each in everybody if each[0] != role)])
    return Fault(at, kind, role, rank, seconds=seconds, other=other, one_way=rng.randrange(3))

"""Case 6: processes of a job die at every named point, one life after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from kvstore.chaos.worker import Job
from kvstore.checkpoint.directory import Directory

from .case import Trial, case
from .tormented import REPLICAS, SERVERS, job, tormented, trials

SERVER = (
    *("after_recv", "before_send", "before_apply", "kept_before_flip", "kept_after_flip"),
    *("after_apply_before_ack", "after_ack"),
)
REPLICATED = ("before_replicate", "after_replicate")
CHECKPOINT = (
    *("checkpoint_begun", "checkpoint_before_sync", "checkpoint_before_rename", "checkpoint_after_rename"),
    *("checkpoint_before_manifest", "checkpoint_before_prune"),
)
SCHEDULER = ("join_reply", "epoch_change", "barrier_release", "after_recv", "before_send")
WORKER = ("after_recv", "before_send") * 3


def lives(work: Job, points: Mapping[str, Sequence[str]], *flags: str) -> list[Trial]:
    """By process, ``NAME=kill@N`` for each of its lives. A trial is a death."""
    longest = max(map(len, points.values()))
    turns = [[f"{who}:{own[n]}" for who, own in points.items() if n < len(own)] for n in range(longest)]
    text = ";".join(",".join(turn) for turn in turns)
    expected = Counter({_label(who): len(own) for who, own in points.items()})
    launcher = ["--max-restarts", str(longest), "--env", f"PS_FAILPOINTS={text}", *flags]
    with tormented(work, *launcher) as running:
        outcome = running.run("", 0, 0.0, [], must_survive=True, deaths=expected.total())
    if Counter(outcome.deaths) != expected:
        outcome.problems.append(f"not every point of {text} was reached: {Counter(outcome.deaths)}")
    return trials(outcome, expected.total())


def _label(who: str) -> str:
    """As the launcher calls it."""
    return who if who == "scheduler" else f"{who[:-1]} {who[-1]}"


def _in_some_order(random: Random, points: Sequence[str], most: int) -> list[str]:
    return [f"{point}=kill@{random.randint(1, most)}" for point in random.sample(points, len(points))]


@case(6, "a server at each point", quick=len(SERVER), soak=20 * len(SERVER))
def server(seed: int, where: Path) -> list[Trial]:
    random = Random(seed)
    work = job(random.choice(["dist_sync", "dist_async"]))
    return lives(work, {f"server{random.randrange(SERVERS)}": _in_some_order(random, SERVER, 60)})


@case(6, "a server with a replica at each point", quick=len(REPLICATED), soak=20 * len(REPLICATED))
def replicated(seed: int, where: Path) -> list[Trial]:
    random = Random(seed)
    work, who = job(random.choice(["dist_sync", "dist_async"])), f"server{random.randrange(SERVERS)}"
    points = _in_some_order(random, REPLICATED, 60)
    return [trial for point in points for trial in lives(work, {who: [point]}, *REPLICAS)]


@case(6, "a server at each point of a checkpoint", quick=len(CHECKPOINT), soak=20 * len(CHECKPOINT))
def checkpoint(seed: int, where: Path) -> list[Trial]:
    random = Random(seed)
    place = where / "checkpoints"
    points = {"server0": _in_some_order(random, CHECKPOINT, 1)}
    found = lives(job("dist_async"), points, "--checkpoint-dir", str(place), "--checkpoint-every", "0.2")
    directory = Directory(place)
    newest = directory.newest()
    if newest is None:
        found[0].wrong.append("there is no complete checkpoint")
    else:
        newest.close()
    directory.close()
    return found


@case(6, "a worker and the scheduler at each point", quick=11, soak=20 * 11)
def scheduler_and_worker(seed: int, where: Path) -> list[Trial]:
    random = Random(seed)
    first, *others = SCHEDULER
    starts, moves, *rest = [f"{first}=kill@{random.randint(1, 5)}", f"{others[0]}=kill@{random.randint(1, 4)}"]
    scheduler = [starts, moves, *rest, *_in_some_order(random, others[1:], 6)]
    worker = [f"{point}=kill@{random.randint(60, 160)}" for point in WORKER]  # beyond what a start takes
    return lives(job("dist_sync", barrier_every=1), {"scheduler": scheduler, f"worker{random.randrange(3)}": worker})

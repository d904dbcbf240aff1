"""Single situations, which schedules come to now and then."""

from __future__ import annotations

from typing import Any

import pytest

from .job import Job
from .plan import POINTS, SAVING, Fault, Plan
from .process import Crashed
from .worker import Worker


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("style", ["bundle", "single"])
def test_a_worker_dies_between_its_pushes_of_two_keys(
    seed: int, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step's first key is pushed, the second is not: the round of each has each worker's contribution once."""
    push, pushed = Worker._data, []

    def dies(self: Worker, server: int, keys: list[int], flags: int, number: int = 0) -> None:
        if self.rank == 1 and not self.restarts and number >> 32 == 5 and server == 1:
            pushed.append(self._sent[self.job.keys_of(0)[0]])
            raise Crashed
        push(self, server, keys, flags, number)

    monkeypatch.setattr(Worker, "_data", dies)
    result = Job(Plan(seed=seed, style=style, ahead=1 + seed % 3, backwards=(2,))).run()
    assert not result.violation, result.story
    assert result.restarts == 1
    assert pushed == [5]


@pytest.mark.parametrize("seed", range(20))
def test_opposite_orders_at_the_limit_of_what_is_parked(seed: int) -> None:
    """Each worker's window is full of pushes that wait for the other's, which wait for room."""
    plan = Plan(seed=seed, workers=2, keys=6, style="single", ahead=3, window=60, backwards=(1,), think=0.0,
                both=seed % 2 == 0)  # fmt: skip
    job = Job(plan)
    waited: list[Any] = []
    progress = Worker.progress

    def note(self: Worker) -> None:
        waited.extend(o for o in self.core.delivery._outboxes.values() if len(o.window))
        progress(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "progress", note)
        result = job.run()
    assert not result.violation, result.story
    assert waited, "the windows were full"


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("point", [*POINTS["server"], "file"])
@pytest.mark.parametrize("sync", [True, False])
def test_a_server_dies_at_any_point(point: str, count: int, sync: bool) -> None:
    """Before what it applied is kept, while that is written, after it, before the answers leave, between files."""
    faults = [Fault(0.3, "crash", "server", 0, point, count)]
    saves, think = (0.02, 0.3) if point == "file" else (0.0, 0.05)
    plan = Plan(seed=count, sync=sync, ahead=3, pushes=2, think=think, save_every=saves, faults=faults)
    result = Job(plan).run()
    assert not result.violation, result.story
    assert result.restarts == 1


@pytest.mark.parametrize("seed", range(10))
def test_a_worker_dies_and_then_the_server_with_its_parked_pushes(seed: int) -> None:
    """What waited in the server for another worker is lost: the worker must begin with that, not behind it."""
    faults = [Fault(0.2, "cut", "worker", 1, seconds=8.0, other=("server", server)) for server in range(2)]
    faults += [Fault(0.6, "crash", "worker", 0, "event", 1), Fault(5.0, "crash", "server", 0, "event", 1)]
    result = Job(Plan(seed=seed, ahead=3, style="list", think=0.1, faults=faults)).run()
    assert not result.violation, result.story
    assert result.restarts == 2


@pytest.mark.parametrize("point", SAVING)
@pytest.mark.parametrize("server", [0, 1])
def test_a_server_dies_while_it_writes_a_checkpoint(point: str, server: int) -> None:
    faults = [Fault(0.1, "crash", "server", server, point, 1)]
    job = Job(Plan(seed=server, think=0.3, save_every=0.05, faults=faults))
    result = job.run()
    assert not result.violation, result.story
    assert result.restarts == (server == 0 or point not in ("checkpoint_before_manifest", "checkpoint_before_prune"))
    assert job.disk.written >= 1, "later ones are"


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("point", POINTS["scheduler"])
@pytest.mark.parametrize("asked", ["wait", "shrink"])
def test_the_scheduler_dies_at_any_point(asked: str, point: str, count: int) -> None:
    """With a worker, whose death only some have heard of; before they have joined, if it is the first event."""
    faults = [Fault(0.2, "crash", "worker", 1, "event", 1), Fault(0.3, "crash", "scheduler", 0, point, count)]
    early = 0.1 if count == 1 else 0.0
    result = Job(Plan(seed=count, asked=asked, loss=0.02, double=0.1, early=early, faults=faults)).run()
    assert not result.violation, result.story
    assert result.restarts >= 1 or point == "join_reply", "nobody joins again"


@pytest.mark.parametrize("seed", range(20))
def test_a_zombie_has_one_successor(seed: int) -> None:
    """It was given up, goes on, and hears that it was, before or after its successor starts."""
    faults = [Fault(0.2, "pause", "worker", 2, seconds=2.5)]
    result = Job(Plan(seed=seed, zombies=True, think=0.1, faults=faults)).run()
    assert not result.violation, result.story
    assert result.restarts == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_worker_that_was_dropped_reads_answers_of_a_server_that_died_meanwhile(seed: int) -> None:
    """They were given before that server died, and change nothing: the worker itself is not listened to any more."""
    faults = [Fault(0.3, "pause", "worker", 1, seconds=2.0), Fault(0.35, "crash", "server", 0, "after_ack", 2)]
    result = Job(Plan(seed=seed, asked="shrink", ahead=3, think=0.1, delay=0.05, faults=faults)).run()
    assert not result.violation, result.story


@pytest.mark.parametrize("seed", range(5))
def test_checkpoints_of_a_calm_job_are_all_written(seed: int) -> None:
    job = Job(Plan(seed=seed, save_every=0.1))
    result = job.run()
    assert not result.violation, result.story
    assert job.disk.written >= 2


@pytest.mark.parametrize("seed", range(20))
def test_checkpoints_on_a_disk_that_fails(seed: int) -> None:
    """Training goes on; the newest one that is whole is found, or none, or it is said that all are damaged."""
    faults = [Fault(0.3, "crash", "server", seed % 2, "file", 1 + seed)]
    plan = Plan(seed=seed, pushes=2, save_every=0.05, disk_errors=0.05, bit_flips=0.2, faults=faults)
    result = Job(plan).run()
    assert not result.violation, result.story

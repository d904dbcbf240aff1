"""Single situations, which schedules come to now and then."""

from __future__ import annotations

from typing import Any

import pytest

from .job import Job
from .plan import POINTS, Fault, Plan
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


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("sync", [True, False])
def test_a_server_dies_at_any_point(point: str, count: int, sync: bool) -> None:
    """Before what it applied is kept, between two keys, after that, and before the answers leave."""
    faults = [Fault(0.3, "crash", "server", 0, point, count)]
    result = Job(Plan(seed=count, sync=sync, ahead=3, pushes=2, faults=faults)).run()
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

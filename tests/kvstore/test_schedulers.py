"""The learning rate as a function of the number of updates, against values that MXNet 1.9.1 gave."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from kvstore.optimizer import (
    SGD,
    CosineScheduler,
    FactorScheduler,
    LRScheduler,
    MultiFactorScheduler,
    PolyScheduler,
    Updater,
)
from pslite.errors import ConfigError

TRACES: list[tuple[LRScheduler, list[float]]] = [
    (FactorScheduler(3, 0.5, base_lr=1), [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125]),
    (FactorScheduler(1, 0.1, stop_factor_lr=0.05, base_lr=1), [1, 1, 0.1, 0.05, 0.05]),
    (MultiFactorScheduler([2, 5], 0.1, base_lr=1), [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]),
    (PolyScheduler(5, base_lr=1), [1, 0.64, 0.36, 0.16, 0.04, 0, 0, 0]),
    (CosineScheduler(5, 1, 0.1, warmup_steps=2), [0, 0.5, 1, 0.775, 0.325, 0.1, 0.1, 0.1]),
    (FactorScheduler(10, base_lr=1, warmup_steps=4, warmup_begin_lr=0.2), [0.2, 0.4, 0.6, 0.8, 1, 1]),
    (FactorScheduler(10, base_lr=1, warmup_steps=2, warmup_begin_lr=0.2, warmup_mode="constant"), [0.2, 0.2, 1, 1]),
]


def name(value: Any) -> str:
    return type(value).__name__ if isinstance(value, LRScheduler) else ""


@pytest.mark.parametrize(("scheduler", "expected"), TRACES, ids=name)
def test_trace(scheduler: LRScheduler, expected: list[float]) -> None:
    assert [scheduler(u) for u in range(len(expected))] == pytest.approx(expected, rel=1e-14, abs=1e-16)


@pytest.mark.parametrize(("scheduler", "expected"), TRACES, ids=name)
def test_no_state_is_kept_between_calls(scheduler: LRScheduler, expected: list[float]) -> None:
    backwards = [scheduler(u) for u in reversed(range(len(expected)))]
    assert backwards[::-1] == [scheduler(u) for u in range(len(expected))]


@pytest.mark.parametrize(("scheduler", "expected"), TRACES, ids=name)
def test_it_travels(scheduler: LRScheduler, expected: list[float]) -> None:
    wire = json.loads(json.dumps(scheduler.to_wire()))
    copy = LRScheduler.from_wire(wire)
    assert type(copy) is type(scheduler) and copy.to_wire() == scheduler.to_wire()
    assert [copy(u) for u in range(len(expected))] == [scheduler(u) for u in range(len(expected))]


def test_the_optimizers_rate_replaces_the_schedulers() -> None:
    updater = Updater(SGD(learning_rate=1, lr_scheduler=FactorScheduler(step=2, factor=0.5)))
    weight = np.zeros(1)
    seen = []
    for _ in range(6):
        updater(0, np.ones(1), weight)
        seen.append(weight[0])
    assert seen == [-1, -2, -2.5, -3, -3.25, -3.5]


def test_each_key_has_its_own_count() -> None:
    updater = Updater(SGD(learning_rate=1, lr_scheduler=FactorScheduler(step=1, factor=0.5)))
    weights = {"a": np.zeros(1), "b": np.zeros(1)}
    for key in "aaab":
        updater(key, np.ones(1), weights[key])
    assert weights["a"][0] == -1.75 and weights["b"][0] == -1


def test_counting_may_begin_later() -> None:
    updater = Updater(SGD(learning_rate=1, lr_scheduler=FactorScheduler(step=2, factor=0.5), begin_num_update=2))
    weight = np.zeros(1)
    updater(0, np.ones(1), weight)
    assert weight[0] == -0.5


def test_a_scheduler_without_a_rate_beside_it_keeps_its_own() -> None:
    optimizer = SGD(lr_scheduler=PolyScheduler(10, base_lr=0.4))
    assert optimizer.learning_rate == 0.4
    with pytest.raises(ConfigError, match="scheduler"):
        optimizer.set_learning_rate(0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FactorScheduler(step=0),
        lambda: FactorScheduler(step=1.5),  # type: ignore[arg-type]
        lambda: FactorScheduler(step=1, factor=1.1),
        lambda: MultiFactorScheduler([3, 3], 0.5),
        lambda: MultiFactorScheduler([5, 3], 0.5),
        lambda: MultiFactorScheduler([0, 3], 0.5),
        lambda: MultiFactorScheduler([], 0.5),
        lambda: MultiFactorScheduler(3, 0.5),  # type: ignore[arg-type]
        lambda: MultiFactorScheduler([3], 2),
        lambda: PolyScheduler(max_update=0),
        lambda: CosineScheduler(max_update=2, warmup_steps=2),
        lambda: FactorScheduler(step=1, base_lr=0.1, warmup_begin_lr=0.2),
        lambda: FactorScheduler(step=1, warmup_mode="square"),
        lambda: FactorScheduler(step=1, base_lr="fast"),
    ],
)
def test_arguments_out_of_range_are_errors(make: Any) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert isinstance(caught.value, ConfigError)


def test_a_users_scheduler_travels() -> None:
    class Halving(LRScheduler):
        def __init__(self, every: int, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.every = every

        def schedule(self, num_update: int) -> float:
            return float(self.base_lr * 0.5 ** (num_update // self.every))

    scheduler = Halving(3, base_lr=8)
    scheduler.every = 2
    copy = LRScheduler.from_wire(scheduler.to_wire())
    assert isinstance(copy, Halving) and [copy(u) for u in range(5)] == [8, 8, 4, 4, 2]


@pytest.mark.parametrize(
    "wire",
    [
        None,
        "FactorScheduler",
        ["FactorScheduler"],
        ["os.system", {}],
        [7, {}],
        ["FactorScheduler", {}],
        ["PolyScheduler", {**PolyScheduler(5).to_wire()[1], "cmd": "rm"}],
        ["PolyScheduler", {**PolyScheduler(5).to_wire()[1], "pwr": "2"}],
        ["PolyScheduler", {**PolyScheduler(5).to_wire()[1], "pwr": {"__import__": "os"}}],
    ],
)
def test_anything_else_on_the_wire_is_an_error(wire: Any) -> None:
    with pytest.raises(ConfigError):
        LRScheduler.from_wire(wire)

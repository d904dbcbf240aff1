"""How optimizers travel to the servers: by name and current values, once and after every change."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.arguments import parameters
from kvstore.optimizer import NAG, SGD, Adam, CosineScheduler, FactorScheduler, Optimizer, Updater, create, registered
from pslite.errors import ConfigError

BASE = set(parameters(Optimizer))


def travelled(optimizer: Optimizer) -> Optimizer:
    return Optimizer.from_wire(msgpack.unpackb(msgpack.packb(optimizer.to_wire())))


def own_arguments(name: str) -> dict[str, Any]:
    """Values unlike the defaults for the arguments that are the optimizer's own."""
    optimizer = create(name)
    values: dict[str, Any] = {}
    for argument in parameters(type(optimizer)):
        default = getattr(optimizer, argument)
        if argument == "warmup_strategy":
            values[argument] = "sqrt"
        elif argument not in BASE:
            values[argument] = not default if isinstance(default, bool) else 0.5 if isinstance(default, float) else 2
    return values


def trained(optimizer: Optimizer) -> bytes:
    """The bits of a few keys after a few updates."""
    updater, random = Updater(optimizer), np.random.default_rng(1)
    weights = {key: np.ones((4, 3)) for key in (0, 1, 2)}
    for _ in range(3):
        for key, weight in weights.items():
            updater(key, random.normal(size=weight.shape), weight)
    return b"".join(weight.tobytes() for weight in weights.values())


@pytest.mark.parametrize("name", registered())
def test_every_optimizer_travels(name: str) -> None:
    optimizer = create(
        name,
        learning_rate=0.3,
        rescale_grad=0.5,
        wd=0 if name == "groupadagrad" else 0.1,
        clip_gradient=0.6,
        lr_scheduler=CosineScheduler(20, warmup_steps=2),
        param_idx2name={0: "a_bias", 1: "b_weight"},
        begin_num_update=4,
        multi_precision=True,
        param_dict={2: {"lr_mult": 0.5}},
        **{argument: value for argument, value in own_arguments(name).items() if argument not in BASE},
    )
    optimizer.set_lr_mult({1: 0.5, "a_bias": 2})
    copy = travelled(optimizer)
    assert type(copy) is type(optimizer) and copy.to_wire() == optimizer.to_wire() and copy.multi_precision
    assert trained(copy) == trained(optimizer)


def test_current_values_travel() -> None:
    optimizer = SGD(momentum=0.9)
    optimizer.lr, optimizer.momentum, optimizer.clip_gradient = 0.5, 0.0, 0.25
    optimizer.set_wd_mult({"w": 2})
    copy = travelled(optimizer)
    assert isinstance(copy, SGD) and (copy.lr, copy.momentum, copy.clip_gradient) == (0.5, 0, 0.25)
    assert copy.wd_mult == {"w": 2}


def test_equal_optimizers_are_equal_on_the_wire() -> None:
    one, other = SGD(learning_rate=1, momentum=0), SGD(learning_rate=1.0)
    one.set_lr_mult({"a": 1, "b": 2})
    other.set_lr_mult({"b": 2, "a": 1})
    assert one.to_wire() == other.to_wire() != NAG(learning_rate=1).to_wire()
    other.lr = 2
    assert one.to_wire() != other.to_wire()


@given(
    st.dictionaries(st.integers(-5, 5) | st.text(max_size=3), st.floats(0, 10), max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.floats(allow_nan=False),
)
def test_any_numbers_travel(multipliers: dict[int | str, float], wd: float, clip_gradient: float | None) -> None:
    optimizer = Adam(wd=wd, clip_gradient=clip_gradient)
    optimizer.set_lr_mult(multipliers)
    copy = travelled(optimizer)
    assert copy.lr_mult == multipliers and (copy.wd, copy.clip_gradient) == (wd, clip_gradient)


def changed(**values: Any) -> list[Any]:
    return ["sgd", {**SGD().to_wire()[1], **values}]


@pytest.mark.parametrize(
    "wire",
    [
        None,
        "sgd",
        ["sgd"],
        ["sgd", []],
        ["sgd", {}],
        ["sgd", {"momentum": 0.0}],
        ["__import__('os')", {}],
        ["kvstore.optimizer.SGD", SGD().to_wire()[1]],
        [["sgd"], SGD().to_wire()[1]],
        changed(unknown=1),
        changed(momentum="0.9"),
        changed(momentum={"map": []}),
        changed(learning_rate=[0.1]),
        changed(lr_mult=[["w", 1]]),
        changed(lr_mult={"map": [["w", "2"]]}),
        changed(lr_mult={"map": [["w"]]}),
        changed(lr_mult={"map": [["w", [1]]]}),
        changed(lr_mult={"w": 1}),
        changed(param_dict=[["w", 1]]),
        changed(param_dict=[["w", 1, "2"]]),
        changed(param_dict=[[None, 1, 2]]),
        changed(param_dict={"map": []}),
        changed(param_dict=None),
        changed(param_idx2name={"map": [[0, 1]]}),
        changed(lr_scheduler="FactorScheduler"),
        changed(lr_scheduler=["os.system", {"command": "true"}]),
        changed(lr_scheduler=["LRScheduler", {}]),
    ],
)
def test_anything_else_on_the_wire_is_an_error(wire: Any) -> None:
    with pytest.raises(ConfigError):
        Optimizer.from_wire(wire)


# -- changes during the job -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", registered())
def test_every_change_of_an_attribute_shows_and_is_adopted(name: str) -> None:
    optimizer, other = create(name), create(name)
    seen = [optimizer.to_wire()]
    common = {"lr": 0.25, "rescale_grad": 0.5, "clip_gradient": 0.75, "begin_num_update": 3, "multi_precision": True}
    for attribute, value in {**common, **own_arguments(name), "wd": 0.125}.items():
        setattr(optimizer, attribute, value)
        assert optimizer.to_wire() not in seen, attribute
        seen.append(optimizer.to_wire())
        other.adopt(msgpack.unpackb(msgpack.packb(seen[-1])))
        assert getattr(other, attribute) == value and other.to_wire() == seen[-1]
    other.wd = optimizer.wd = 0  # GroupAdaGrad has none
    assert trained(other) == trained(optimizer)


def test_changes_within_multipliers_names_and_schedulers_show() -> None:
    scheduler = FactorScheduler(2, 0.5, base_lr=1)
    optimizer = SGD(lr_scheduler=scheduler, param_idx2name={0: "w"}, param_dict={0: {"lr_mult": 1}})
    optimizer.set_lr_mult({"w": 1})
    seen = [optimizer.to_wire()]

    def shows() -> bool:
        seen.append(optimizer.to_wire())
        return seen[-1] not in seen[:-1] and travelled(optimizer).to_wire() == seen[-1]

    optimizer.lr_mult["w"] = 2
    assert shows()
    optimizer.wd_mult["w"] = 0.5
    assert shows()
    optimizer.param_idx2name[1] = "v"
    assert shows()
    optimizer.param_dict[0]["lr_mult"] = 3
    assert shows()
    optimizer.set_lr_mult({})
    assert shows()
    scheduler.base_lr = 2
    assert shows()
    scheduler.step = 3
    assert shows()
    optimizer.lr_scheduler = CosineScheduler(9)
    assert shows()
    optimizer.lr_scheduler = None
    assert shows()


def test_an_earlier_wire_stays_as_it_was() -> None:
    optimizer = SGD()
    optimizer.set_lr_mult({"w": 1})
    before = optimizer.to_wire()
    optimizer.lr_mult["w"] = 2
    optimizer.lr = 5
    assert before[1]["lr_mult"] == {"map": [["w", 1]]} and before[1]["learning_rate"] == 0.01


def test_parameters_travel_as_plain_numbers() -> None:
    class Parameter:
        lr_mult, wd_mult, data = 0.5, 2, object()

    optimizer = SGD(param_dict={"b": {}, 1: Parameter()})
    assert optimizer.to_wire()[1]["param_dict"] == [[1, 0.5, 2], ["b", 1, 1]]
    assert travelled(optimizer).param_dict == {1: {"lr_mult": 0.5, "wd_mult": 2}, "b": {"lr_mult": 1, "wd_mult": 1}}


def test_only_the_same_class_is_adopted() -> None:
    optimizer = SGD(momentum=0.9)
    before = optimizer.to_wire()
    with pytest.raises(ConfigError, match=r"'nag'.*'sgd'"):
        optimizer.adopt(NAG().to_wire())
    with pytest.raises(ConfigError, match="learning_rate"):
        optimizer.adopt(["sgd", {**before[1], "momentum": 0.5, "learning_rate": "fast"}])
    assert optimizer.to_wire() == before

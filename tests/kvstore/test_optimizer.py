"""What holds for every optimizer: names, arguments, multipliers, how one travels, and the updater."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore.optimizer.base as base
from kvstore.optimizer import (
    NAG,
    SGD,
    Adam,
    CosineScheduler,
    Ftrl,
    Optimizer,
    RMSProp,
    Updater,
    create,
    register,
    registered,
)
from pslite.errors import ConfigError, DTypeError, ShapeError

NAMES = ["adagrad", "adam", "ftrl", "nag", "rmsprop", "sgd", "test"]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


def travelled(optimizer: Optimizer) -> Optimizer:
    return Optimizer.from_wire(msgpack.unpackb(msgpack.packb(optimizer.to_wire())))


def one_step(optimizer: Optimizer, key: int | str = 0) -> float:
    weight = np.ones(1)
    Updater(optimizer)(key, np.ones(1), weight)
    return float(weight[0])


# -- names and arguments ----------------------------------------------------------------------------------------------


def test_the_default_step_of_sgd_is_a_hundredth() -> None:
    weight = np.zeros((2, 3), np.float32)
    Updater(SGD())(3, np.ones((2, 3), np.float32), weight)
    np.testing.assert_array_equal(weight, np.full((2, 3), -0.01, np.float32))


def test_names_in_any_case() -> None:
    assert registered() == NAMES
    assert type(create("Sgd")) is SGD and type(create("RMSProp")) is RMSProp and type(create("ADAM")) is Adam


@pytest.mark.parametrize("name", ["sdg", "", None, 3])
def test_an_unknown_name_is_an_error_that_lists_the_known(name: Any) -> None:
    with pytest.raises(ConfigError, match="adagrad, adam, ftrl, nag, rmsprop, sgd, test"):
        create(name)


def test_an_unknown_argument_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"momentun.*momentum.*learning_rate.*clip_gradient"):
        create("sgd", momentun=0.9)


@pytest.mark.parametrize("argument", ["momentum", "learning_rate", "rescale_grad", "wd", "clip_gradient"])
@pytest.mark.parametrize("value", ["0.9", [1], True])
def test_arguments_are_numbers(argument: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{argument}=.*number"):
        SGD(**{argument: value})


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_scheduler": lambda u: 0.1},
        {"param_idx2name": ["a"]},
        {"param_idx2name": {0: 1}},
        {"begin_num_update": -1},
        {"begin_num_update": 1.5},
    ],
)
def test_other_arguments_of_the_wrong_kind(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SGD(**arguments)


def test_defaults() -> None:
    assert [create(name).learning_rate for name in NAMES] == [0.01, 0.001, 0.1, 0.01, 0.001, 0.01, 0.01]
    assert (NAG().momentum, Adam().epsilon, Ftrl().lamda1, RMSProp().gamma2) == (0, 1e-8, 0.01, 0.9)


def test_numpy_numbers_are_numbers() -> None:
    weight = np.ones(2, np.float32)
    Updater(SGD(learning_rate=np.float64(0.5), momentum=np.float32(0.5)))(0, weight.copy(), weight)
    assert weight.dtype == np.float32 and weight.tolist() == [0.5, 0.5]


def test_the_learning_rate_may_be_changed() -> None:
    optimizer = SGD()
    optimizer.set_learning_rate(0.5)
    assert optimizer.learning_rate == 0.5 and one_step(optimizer) == 0.5
    optimizer.lr = 0.25
    assert optimizer.learning_rate == 0.25 and one_step(optimizer) == 0.75


def test_zero_and_negative_limits_do_not_clip() -> None:
    assert one_step(SGD(learning_rate=0.5, clip_gradient=0)) == 0.5
    assert one_step(SGD(learning_rate=0.5, clip_gradient=-1)) == 0.5


# -- multipliers ------------------------------------------------------------------------------------------------------


def test_learning_rate_multipliers_by_key_and_by_name() -> None:
    optimizer = SGD(learning_rate=0.5, param_idx2name={0: "a_weight", 1: "b_weight"})
    optimizer.set_lr_mult({"a_weight": 0.5, 1: 0, "c": 0.25})
    assert [one_step(optimizer, key) for key in (0, 1, 2, "c", "a_weight")] == [0.75, 1, 0.5, 0.875, 0.75]


def test_the_key_goes_before_its_name() -> None:
    optimizer = SGD(learning_rate=0.5, param_idx2name={0: "a_weight"})
    optimizer.set_lr_mult({"a_weight": 0.5, 0: 2})
    assert one_step(optimizer) == 0


def test_weight_decay_is_off_for_other_names_than_weight_and_gamma() -> None:
    names = {0: "a_weight", 1: "a_bias", 2: "b_gamma", 3: "b_beta"}
    optimizer = SGD(learning_rate=1, wd=0.5, rescale_grad=0, param_idx2name=names)
    assert [one_step(optimizer, key) for key in (0, 1, 2, 3, "a_bias", 9)] == [0.5, 1, 0.5, 1, 1, 0.5]
    optimizer.set_wd_mult({"a_bias": 1, 0: 2})
    assert [one_step(optimizer, key) for key in (0, 1, 2, 3)] == [0, 0.5, 0.5, 1]


def test_without_names_every_key_decays() -> None:
    optimizer = SGD(learning_rate=1, wd=0.5, rescale_grad=0)
    assert [one_step(optimizer, key) for key in (0, "a_bias")] == [0.5, 0.5]


@pytest.mark.parametrize("multipliers", [None, [1], {"a": "2"}, {"a": None}])
def test_multipliers_are_dicts_of_numbers(multipliers: Any) -> None:
    with pytest.raises(ConfigError, match="lr_mult"):
        SGD().set_lr_mult(multipliers)
    with pytest.raises(ConfigError, match="wd_mult"):
        SGD().set_wd_mult(multipliers)


# -- travelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_travels(name: str) -> None:
    optimizer = create(
        name,
        learning_rate=0.3,
        rescale_grad=0.5,
        wd=0.1,
        clip_gradient=0.6,
        lr_scheduler=CosineScheduler(20, warmup_steps=2),
        param_idx2name={0: "a_bias", 1: "b_weight"},
        begin_num_update=4,
    )
    optimizer.set_lr_mult({1: 0.5, "a_bias": 2})
    copy = travelled(optimizer)
    assert type(copy) is type(optimizer) and copy.to_wire() == optimizer.to_wire()
    for key in (0, 1, 2):
        assert one_step(copy, key) == one_step(optimizer, key)


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
        changed(param_idx2name={"map": [[0, 1]]}),
        changed(lr_scheduler="FactorScheduler"),
        changed(lr_scheduler=["os.system", {"command": "true"}]),
        changed(lr_scheduler=["LRScheduler", {}]),
    ],
)
def test_anything_else_on_the_wire_is_an_error(wire: Any) -> None:
    with pytest.raises(ConfigError):
        Optimizer.from_wire(wire)


# -- optimizers of users ----------------------------------------------------------------------------------------------


class Signs(Optimizer):
    """A user's own: an argument with and one without a default, and the rest by keyword."""

    def __init__(self, size: float, scale: Any = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.scale = size, scale

    def update(self, key: Any, weight: Any, grad: Any, state: dict[str, Any], count: int) -> None:
        weight -= self._lr(key, count) * self.size * np.sign(grad)


@pytest.mark.usefixtures("registry")
def test_a_users_class_travels_without_any_code_for_it() -> None:
    assert register(Signs) is Signs
    optimizer = create("signs", size=2, scale=[1, np.float32(2)], learning_rate=0.5)
    assert isinstance(optimizer, Signs) and not optimizer.elementwise
    optimizer.size = 3
    copy = travelled(optimizer)
    assert isinstance(copy, Signs) and (copy.size, copy.scale, copy.lr) == (3, [1, 2], 0.5)
    assert one_step(copy) == one_step(optimizer) == -0.5


@pytest.mark.usefixtures("registry")
def test_what_a_users_constructor_hides_travels_too() -> None:
    @register
    class Fixed(SGD):
        def __init__(self, boost: float = 2.0) -> None:
            super().__init__(momentum=0.5, wd=0.25)
            self.boost = boost

    optimizer = Fixed(boost=3)
    optimizer.lr = 0.125
    optimizer.lr_scheduler = CosineScheduler(10)
    copy = travelled(optimizer)
    assert isinstance(copy, Fixed) and copy.to_wire() == optimizer.to_wire()
    assert (copy.boost, copy.momentum, copy.wd) == (3, 0.5, 0.25)
    assert one_step(copy) == one_step(optimizer)


@pytest.mark.usefixtures("registry")
def test_an_argument_that_is_not_kept_is_an_error_that_says_so() -> None:
    @register
    class Forgets(SGD):
        def __init__(self, size: float = 1.0, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    with pytest.raises(ConfigError, match=r"Forgets.size.*self.size"):
        Forgets().to_wire()


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("value", [object(), np.zeros(2), [[1]], {"a": [1]}, {"a": None, "b": object()}])
def test_only_plain_data_travels(value: Any) -> None:
    register(Signs)
    with pytest.raises(ConfigError, match=r"scale=.*number"):
        Signs(1, scale=value).to_wire()


def test_a_class_that_is_not_registered_does_not_travel() -> None:
    with pytest.raises(ConfigError, match=r"Signs.*kvstore\.optimizer\.register"):
        Signs(1).to_wire()


@pytest.mark.usefixtures("registry")
def test_registering_a_name_again_warns_and_overrides() -> None:
    class Mine(SGD):
        pass

    Mine.__name__ = "SGD"
    with pytest.warns(UserWarning, match="'sgd'"):
        register(Mine)
    assert type(create("sgd")) is Mine
    with pytest.raises(ConfigError, match="register"):
        SGD().to_wire()


def test_only_optimizers_can_be_registered() -> None:
    with pytest.raises(ConfigError, match="subclass of Optimizer"):
        register(dict)  # type: ignore[type-var]


# -- updating ---------------------------------------------------------------------------------------------------------


def test_each_key_has_its_own_state_and_count() -> None:
    updater = Updater(Adam())
    weights = {"a": np.ones(2), "b": np.ones(3)}
    for key in ("a", "a", "b"):
        updater(key, np.ones_like(weights[key]), weights[key])
    assert updater.counts == {"a": 2, "b": 1}
    assert updater.states["a"]["mean"].shape == (2,) and updater.states["b"]["mean"].shape == (3,)
    assert weights["b"][0] == one_step(Adam())


def test_momentum_that_is_raised_from_zero_leaves_keys_without_state_alone() -> None:
    updater = Updater(SGD(learning_rate=0.5))
    weight = np.ones(1)
    updater("a", np.ones(1), weight)
    updater.optimizer.momentum = 0.9  # type: ignore[attr-defined]
    updater("a", np.ones(1), weight)
    assert weight[0] == 0


@pytest.mark.parametrize("shape", [(), (0,), (1, 1, 1)])
def test_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    for name in NAMES:
        weight = np.ones(shape)
        Updater(create(name))(0, np.ones(shape), weight)
        assert weight.shape == shape and (weight != 1).all()


def test_a_gradient_of_another_shape_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"'w'.*\(3, 2\).*\(2, 3\)"):
        Updater(SGD())("w", np.ones((3, 2)), np.ones((2, 3)))


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "uint16"])
def test_integers_cannot_be_optimized(dtype: str) -> None:
    with pytest.raises(DTypeError, match=f"'w'.*{dtype}.*float16, bfloat16, float32, float64"):
        Updater(SGD())("w", np.ones(2, dtype), np.ones(2, dtype))

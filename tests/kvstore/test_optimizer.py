"""What holds for every optimizer: names, arguments, multipliers, how one travels, and the updater."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore.optimizer.base as base
from kvstore.arguments import parameters
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

from .test_optimizer_wire import travelled

NAMES = [
    *("adabelief", "adadelta", "adagrad", "adam", "adamax", "adamw", "ccsgd", "dcasgd", "ftml", "ftrl", "groupadagrad"),
    *("lamb", "lans", "lars", "lbsgd", "nadam", "nag", "rmsprop", "sgd", "sgld", "signum", "test"),
]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))


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
    with pytest.raises(ConfigError, match=", ".join(NAMES) + r".* above create\(\) and serve\(\)"):
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
    thousandth = ("adabelief", "adam", "adamw", "lamb", "lans", "nadam", "rmsprop")
    expected = {**dict.fromkeys(NAMES, 0.01), **dict.fromkeys(thousandth, 0.001), "adamax": 0.002, "ftrl": 0.1}
    assert {name: create(name).learning_rate for name in NAMES} == expected
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


class Parameter:
    """As gluon's: of what it has, only the multipliers are of interest."""

    def __init__(self, lr_mult: float, wd_mult: float) -> None:
        self.lr_mult, self.wd_mult = lr_mult, wd_mult


def test_multipliers_of_parameters_go_before_all_others() -> None:
    given = {0: Parameter(0.5, 2), "b": {"lr_mult": 0.25}, 2: {"wd_mult": 0}}
    optimizer = SGD(learning_rate=0.5, wd=0.5, param_dict=given, param_idx2name={0: "a_bias"})
    optimizer.set_lr_mult({0: 9, "b": 9, 1: 0})
    optimizer.set_wd_mult({0: 9, "b": 9})
    assert [one_step(optimizer, key) for key in (0, "b", 2, 1)] == [0.5, 0.8125, 0.5, 1]
    given[0].lr_mult = 0  # type: ignore[union-attr]
    assert one_step(optimizer, 0) == 1


@pytest.mark.parametrize("given", [[1], "w", 3])
def test_parameters_are_a_dict(given: Any) -> None:
    with pytest.raises(ConfigError, match="param_dict"):
        SGD(param_dict=given)


@pytest.mark.parametrize("multipliers", [None, [1], {"a": "2"}, {"a": None}])
def test_multipliers_are_dicts_of_numbers(multipliers: Any) -> None:
    with pytest.raises(ConfigError, match="lr_mult"):
        SGD().set_lr_mult(multipliers)
    with pytest.raises(ConfigError, match="wd_mult"):
        SGD().set_wd_mult(multipliers)


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


# -- what stores ask ---------------------------------------------------------------------------------------------------


def test_which_update_only_the_rows_of_a_sparse_gradient() -> None:
    lazy = ("adagrad", "adam", "ccsgd", "ftrl", "groupadagrad", "lars", "sgd")
    assert {name: create(name).lazy_update for name in NAMES} == {name: name in lazy for name in NAMES}
    for name in ("adam", "lars", "sgd"):
        assert not create(name, lazy_update=False).lazy_update
    with pytest.raises(ConfigError, match=r"lazy_update.*NAG takes momentum, learning_rate"):
        create("nag", lazy_update=True)


@pytest.mark.parametrize("name", NAMES)
def test_slots_of_lazy_optimizers_have_the_weights_rows(name: str) -> None:
    arguments = {"momentum": 0.9} if "momentum" in parameters(type(create(name))) else {}
    optimizer = create(name, **arguments)
    for slot in optimizer.create_state("w", np.ones((5, 2, 3))).values():
        assert slot.shape == (5, 2, 3) or (optimizer.lazy_update and slot.shape == (5, 1, 1))


def test_which_keys_may_be_split() -> None:
    whole = {"groupadagrad", "lamb", "lans", "lars", "lbsgd", "sgld"}
    assert {name for name in NAMES if not create(name).elementwise} == whole


@pytest.mark.parametrize("name", NAMES)
def test_slots_of_workers_are_slots(name: str) -> None:
    optimizer = create(name)
    assert set(optimizer.worker_slots) <= set(optimizer.create_state("w", np.ones(2)))
    assert bool(optimizer.worker_slots) == (name == "dcasgd")


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

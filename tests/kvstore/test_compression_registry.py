"""Codecs by name: the dict of set_gradient_compression, what travels, salts, and a user's own codec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import kvstore.compression
from kvstore.arrays import Array
from kvstore.compression import (
    QSGD,
    Codec,
    Feedback,
    Float16,
    RandomK,
    Sign,
    TernGrad,
    TwoBit,
    base,
    cached,
    check,
    create,
    register,
    registered,
    salt,
)
from pslite.errors import ConfigError, ProtocolError


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    monkeypatch.setattr(base, "_CACHE", {})


# -- the dict ---------------------------------------------------------------------------------------------------------


def wire(params: dict[str, Any]) -> Any:
    codec, _ = create(params)
    assert codec is not None
    return codec.to_wire()


def test_the_defaults() -> None:
    assert {name: wire({"type": name})[1] for name in registered()} == {
        "1bit": {"threshold": 0.5},
        "2bit": {"threshold": 0.5},
        "bf16": {},
        "bfloat16": {},
        "float16": {},
        "fp16": {},
        "int4": {"block": 256},
        "int8": {"block": 256},
        "onebit": {},
        "qsgd": {"levels": 7, "block": 256, "seed": 0},
        "randomk": {"ratio": 0.01, "seed": 0},
        "sign": {},
        "terngrad": {"block": 256, "seed": 0},
        "topk": {"ratio": 0.01},
    }


def test_aliases_travel_by_the_first_name() -> None:
    assert wire({"type": "OneBit"}) == ["sign", {}] and wire({"type": "bfloat16"}) == ["bf16", {}]


def test_directions() -> None:
    assert create({"type": "2bit"})[1] == create({"type": "fp16"})[1] == "push"
    assert {name for name in registered() if base._REGISTRY[name].pulls} == {
        "fp16", "float16", "bf16", "bfloat16", "int8", "int4",
    }  # fmt: skip
    assert create({"type": "int8", "direction": "both"})[1] == "both"
    with pytest.raises(ConfigError, match=r"2bit is for pushes only; both ways go bf16, .*int8"):
        create({"type": "2bit", "direction": "both"})
    with pytest.raises(ConfigError, match="direction='pull' is not allowed; one of push, both"):
        create({"type": "int8", "direction": "pull"})


def test_none_switches_off() -> None:
    assert create({"type": "none"}) == (None, "push")
    assert create({"type": "None", "direction": "both"}) == (None, "both")
    with pytest.raises(ConfigError, match="type 'none' takes direction"):
        create({"type": "none", "threshold": 0.5})


def test_numbers_may_be_strings() -> None:
    assert wire({"type": "2bit", "threshold": "1e-7"}) == ["2bit", {"threshold": 1e-7}]
    assert wire({"type": "qsgd", "levels": " 15", "seed": "3"}) == wire({"type": "qsgd", "levels": 15, "seed": 3})
    assert wire({"type": "1bit", "threshold": np.float32(-2)}) == ["1bit", {"threshold": -2.0}]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (None, "give a dict"),
        ("2bit", "give a dict"),
        ([("type", "2bit")], "give a dict"),
        ({}, "type is not set"),
        ({"threshold": 0.5}, "type is not set"),
        ({"type": "3bit"}, r"'3bit' is not allowed; one of 1bit, 2bit, bf16, .*none.* above create\(\) and serve\(\)"),
        ({"type": 2}, "one of 1bit"),
        ({"type": ["2bit"]}, "one of 1bit"),
        ({"type": "2bit", "treshold": 1}, "treshold=.*type '2bit' takes direction, threshold"),
        ({"type": "2bit", 3: 1}, "3=.*type '2bit' takes direction, threshold"),
        ({"type": "fp16", "threshold": 1}, "type 'fp16' takes direction"),
        ({"type": "2bit", "threshold": 0}, "greater than 0"),
        ({"type": "2bit", "threshold": -1}, "greater than 0"),
        ({"type": "2bit", "threshold": "1e-60"}, "greater than 0"),
        ({"type": "2bit", "threshold": "nan"}, "finite"),
        ({"type": "2bit", "threshold": 1e39}, "finite"),
        ({"type": "1bit", "threshold": "inf"}, "finite"),
        ({"type": "2bit", "threshold": "half"}, "threshold='half'.*number"),
        ({"type": "2bit", "threshold": None}, "number"),
        ({"type": "2bit", "threshold": True}, "number"),
        ({"type": "topk", "ratio": 0}, "above 0"),
        ({"type": "randomk", "ratio": 1.5}, "at most 1"),
        ({"type": "topk", "ratio": "nan"}, "above 0"),
        ({"type": "int8", "block": 0}, "integer >= 1"),
        ({"type": "int8", "block": 2.5}, "integer >= 1"),
        ({"type": "qsgd", "levels": 128}, "from 1 to 127"),
        ({"type": "terngrad", "seed": -1}, "integer >= 0"),
    ],
)
def test_mistakes_name_what_is_allowed(params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        create(params)
    assert isinstance(caught.value, ConfigError)


# -- from the wire ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        None,
        "2bit",
        ["2bit"],
        ["2bit", None],
        ["2bit", {}],
        ["2bit", {"threshold": 0.5, "x": 1}],
        ["2bit", {"threshold": 0}],
        ["2bit", {"threshold": [1]}],
        ["2bit", {"threshold": {"map": 1}}],
        ["none", {}],
        [None, {}],
        [["2bit"], {}],
        ["int8", {"block": 1e3}],
        ["2bit", {"threshold": 0.5}, 1],
    ],
)
def test_malformed_forms_are_errors(form: Any) -> None:
    for read in (Codec.from_wire, cached):
        with pytest.raises(ConfigError):
            read(form)


def test_the_cache_gives_one_codec_for_one_form_and_stays_small() -> None:
    assert cached(["2bit", {"threshold": 0.5}]) is cached(["2bit", {"threshold": 0.5}])
    for number in range(1000):
        codec = cached(["2bit", {"threshold": number + 0.5}])
        assert isinstance(codec, TwoBit) and codec.threshold == number + 0.5
    assert len(base._CACHE) <= 64


def test_codecs_are_equal_by_class_and_arguments() -> None:
    assert TwoBit(0.5) == TwoBit(0.5) != TwoBit(1.0)
    assert hash(RandomK(0.1, seed=3)) == hash(RandomK(0.1, seed=3))
    assert RandomK(0.1, seed=3) != RandomK(0.1, seed=4)
    assert Float16() != Sign()


# -- salts ------------------------------------------------------------------------------------------------------------


def test_salts_are_the_same_in_every_process() -> None:
    assert salt(0, 1, 1) == 8651100246308887569
    assert salt(0, "1", 1) == 2887126505805606214
    assert salt(3, "w", 5, 2) == 13185585331999416824


def test_salts_differ() -> None:
    keys = [0, 1, -1, "", "0", "1", "0 1", "é", "\ud800"]
    salts = {salt(s, key, n, r) for s in (0, 1, 10) for key in keys for n in (0, 1, 10) for r in (0, 1, 10)}
    assert len(salts) == 27 * len(keys) and all(0 <= value < 2**64 for value in salts)


def test_workers_draw_alike_only_where_both_ends_must_know() -> None:
    assert RandomK(seed=2).salt_of("w", 3, rank=1) == RandomK(seed=2).salt_of("w", 3, rank=0) == salt(2, "w", 3)
    assert TernGrad(seed=2).salt_of("w", 3, rank=1) == salt(2, "w", 3, 1) != salt(2, "w", 3)
    assert Sign().salt_of("w", 3, rank=1) == salt(0, "w", 3, 1)


@pytest.mark.parametrize("codec", [TernGrad(), QSGD(), RandomK(0.5)], ids=lambda codec: type(codec).__name__)
def test_randomness_comes_from_the_salt_only(codec: Codec) -> None:
    values = np.random.default_rng(0).standard_normal(1000, np.float32)

    def code(number: int) -> list[bytes]:
        return [array.tobytes() for array in codec.encode(values, number)]

    np.random.seed(1)
    first = code(5)
    np.random.seed(2)
    assert code(5) == first != code(6)


# -- a user's codec ---------------------------------------------------------------------------------------------------


def test_a_codec_of_twenty_lines() -> None:
    @kvstore.compression.register("coarse")
    class Coarse(Codec):
        """Multiples of ``step`` within +-127 steps, in a byte each."""

        elementwise = True

        def __init__(self, step: float = 0.1) -> None:
            self.step = float(step)

        def encode(self, values: Array, salt: int) -> list[Array]:
            return [np.clip(np.rint(values / self.step), -127, 127).astype(np.int8)]

        def decode(self, code: Sequence[Array], size: int, salt: int) -> Array:
            check(self, code, [(np.dtype(np.int8), size)])
            return code[0] * np.float32(self.step)

    codec, direction = create({"type": "Coarse", "step": "0.5"})
    assert codec is not None and direction == "push" and codec.to_wire() == ["coarse", {"step": 0.5}]
    feedback = Feedback((3,))
    far_end = cached(codec.to_wire())
    arrived = [
        far_end.decode(feedback.encode(codec, np.array([0.2, 1, 100], np.float32), None, 0)[0], 3, 0) for _ in range(2)
    ]
    np.testing.assert_array_equal(arrived, np.array([[0, 1, 63.5], [0.5, 1, 63.5]], np.float32))
    np.testing.assert_allclose(feedback.residual, [-0.1, 0, 73], rtol=1e-6)
    with pytest.raises(ProtocolError, match=r"Coarse: expected int8\[4\], got int8\[3\]"):
        far_end.decode([np.zeros(3, np.int8)], 4, 0)
    with pytest.raises(ConfigError, match="could not convert"):
        create({"type": "coarse", "step": "small"})
    with pytest.raises(ConfigError, match=r"coarse=.*takes"):
        Codec.from_wire(["coarse", {}])


def test_registering_again_replaces() -> None:
    before = cached(["fp16", {}])

    @register("fp16")
    class Mine(Float16):
        pass

    assert type(cached(["fp16", {}])) is Mine and type(before) is Float16


def test_mistakes_in_registering() -> None:
    for wrong in ("", None, 3, "none"):
        with pytest.raises(ConfigError, match="register"):
            register(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="decorate a subclass of Codec"):
        register("x")(int)  # type: ignore[type-var]

    class Unknown(Float16):
        pass

    with pytest.raises(ConfigError, match=r"Unknown.*register"):
        Unknown().to_wire()

    @register("forgetful")
    class Forgetful(Float16):
        def __init__(self, step: int = 1) -> None:
            pass

    with pytest.raises(ConfigError, match=r"Forgetful.step.*set self.step"):
        Forgetful().to_wire()

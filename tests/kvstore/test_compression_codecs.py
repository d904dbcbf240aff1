"""Each codec: what its bytes are, and what arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvstore.arrays import BLOCK, Array
from kvstore.bfloat16 import to_float32
from kvstore.compression import (
    QSGD,
    BFloat16,
    Codec,
    Feedback,
    Float16,
    Int4,
    Int8,
    OneBit,
    RandomK,
    Sign,
    TernGrad,
    TopK,
    TwoBit,
)

MAX = float(np.finfo(np.float32).max)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = hnp.arrays(np.float32, st.integers(1, 70), elements=FLOATS)


def array(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def signs(pattern: str) -> Array:
    return array(*({"+": 1, "-": -1, "0": 0}[sign] for sign in pattern))


def there_and_back(codec: Codec, values: Array, salt: int = 1) -> Array:
    return codec.decode(codec.encode(values, salt), values.size, salt)


def pushes(codec: Codec, *gradients: float) -> list[float]:
    """What arrives of each push of one element."""
    feedback = Feedback((1,))
    codes = [feedback.encode(codec, array(gradient), None, 0)[0] for gradient in gradients]
    return [float(codec.decode(code, 1, 0)[0]) for code in codes]


# -- 2bit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("", ""),
        ("+", "c0000000"),
        ("+-0+", "e3000000"),
        ("+-0+-", "e3800000"),
        ("+" * 15, "fffffffc"),
        ("-" * 16, "aaaaaaaa"),
        ("-" * 16 + "+", "aaaaaaaac0000000"),
        ("0" * 32 + "-", "000000000000000080000000"),
    ],
)
def test_2bit_words(values: str, words: str) -> None:
    [code] = TwoBit().encode(signs(values), 0)
    assert code.tobytes().hex() == words
    assert TwoBit().decode([code], len(values), 0).tolist() == (signs(values) / 2).tolist()


def test_2bit_compares_inclusively() -> None:
    below, above = np.nextafter(np.float32(0.3), array(0, 1))
    values = array(0.3, -0.3, below, -below, above, -above)
    assert there_and_back(TwoBit(0.3), values).tolist() == array(0.3, -0.3, 0, 0, 0.3, -0.3).tolist()


def test_2bit_code_01_and_unused_bits_are_ignored() -> None:
    code = np.frombuffer(bytes([0b01_11_01_10, 0xFF, 0xFF, 0xFF]), np.uint8)
    assert TwoBit(2).decode([code], 4, 0).tolist() == [0, 2, 0, -2]


def test_2bit_trace_of_one_stream() -> None:
    """Verified with MXNet 1.9.1, as is the next one."""
    assert pushes(TwoBit(0.5), 0.4, 0.2, -0.1, -0.6, -1.5, 0, 3.0, 0, 0, 0, 0) == [
        0, 0.5, 0, -0.5, -0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0,
    ]  # fmt: skip


def test_2bit_trace_of_three_devices() -> None:
    codec, devices = TwoBit(0.5), [Feedback((1,)) for _ in range(3)]

    def push(*gradients: float) -> list[float]:
        codes = [f.encode(codec, array(g), None, 0)[0] for f, g in zip(devices, gradients, strict=True)]
        return [float(codec.decode(code, 1, 0)[0]) for code in codes]

    assert push(0.3, 0.6, -0.7) == [0, 0.5, -0.5]
    assert push(0.3, 0.4, -0.3) == [0.5, 0.5, -0.5]


@pytest.mark.parametrize("threshold", [1e-7, 1e-30, 0.1, 3, np.float32(0.7), 1e30])
def test_2bit_threshold_is_exact(threshold: float) -> None:
    codec = Codec.from_wire(TwoBit(threshold).to_wire())
    assert there_and_back(codec, array(threshold)).tolist() == [np.float32(threshold)]
    assert there_and_back(codec, array(-threshold)).tolist() == [-np.float32(threshold)]


def test_2bit_over_several_blocks_is_the_rule_of_each_element() -> None:
    values = np.random.default_rng(0).standard_normal(2 * BLOCK + 37, np.float32)
    expected = np.where(values >= 0.5, 0.5, np.where(values <= -0.5, -0.5, 0))
    np.testing.assert_array_equal(there_and_back(TwoBit(), values), expected)


# -- 1bit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("", ""),
        ("+", "80000000"),
        ("+-+-+-+-+", "aa800000"),
        ("-" * 32, "00000000"),
        ("+" * 32, "ffffffff"),
        ("+" * 33, "ffffffff80000000"),
    ],
)
def test_1bit_words(values: str, words: str) -> None:
    [code] = OneBit().encode(signs(values), 0)
    assert code.tobytes().hex() == words
    assert OneBit().decode([code], len(values), 0).tolist() == signs(values).tolist()


def test_1bit_compares_strictly() -> None:
    assert there_and_back(OneBit(0.5), array(0.5, 0.5001, 0.4999, 0)).tolist() == [-1, 1, -1, -1]


def test_1bit_traces() -> None:
    assert pushes(OneBit(0.5), 0.4, 0, 0, 0.1) == [-1, 1, -1, 1]  # residuals 1.4, 0.4, 1.4, 0.5
    assert pushes(OneBit(0.0), 0, 0, 0, 0) == [-1, 1, -1, 1]  # a zero gradient is not silent
    assert pushes(OneBit(-2), 0, 0, 0, 0) == [1, 1, -1, 1]  # residuals -1, -2, -1, -2
    assert pushes(OneBit(0.5), 2.5, 0, 0, 0) == [1, 1, -1, 1]  # residuals 1.5, 0.5, 1.5, 0.5


# -- 16 bits ----------------------------------------------------------------------------------------------------------


@given(VALUES)
def test_fp16_is_nearest_and_finite(values: Array) -> None:
    expected = np.clip(values, -65504, 65504).astype(np.float16)
    [code] = Float16().encode(values, 0)
    assert code.dtype == np.float16 and code.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(Float16().decode([code], values.size, 0), expected)


@given(VALUES)
def test_bf16_is_nearest_and_finite(values: Array) -> None:
    [code] = BFloat16().encode(values, 0)
    arrived = BFloat16().decode([code], values.size, 0)
    assert code.dtype == np.uint16 and np.isfinite(arrived).all()
    np.testing.assert_array_equal(arrived, to_float32(code))
    error = np.abs(arrived.astype(float) - values)
    assert (error <= np.maximum(np.abs(values.astype(float)) * 2.0**-8, 2.0**-134)).all()


def test_the_largest_number_does_not_overflow() -> None:
    assert there_and_back(BFloat16(), array(MAX, -MAX)).view(np.uint32).tolist() == [0x7F7F0000, 0xFF7F0000]
    assert there_and_back(Float16(), array(MAX, -70000, 65504)).tolist() == [65504, -65504, 65504]
    assert there_and_back(Float16(), array(70000, float("nan")))[0] == 65504


# -- levels -----------------------------------------------------------------------------------------------------------


def test_int8_bytes() -> None:
    scales, levels = Int8(block=3).encode(array(127, -63.4, 0, -2, 1, 0.001, 0), 0)
    assert scales.tolist() == array(1, 2 / 127, 0).tolist()
    assert levels.dtype == np.int8 and levels.tolist() == [127, -63, 0, -127, 64, 0, 0]


def test_int4_bytes() -> None:
    scales, levels = Int4(block=4).encode(array(7, -7, 0, 1, -3.5), 0)
    assert scales.tolist() == [1, 0.5]
    assert levels.tobytes().hex() == "e078" + "00"
    assert Int4(block=4).decode([scales, levels], 5, 0).tolist() == [7, -7, 0, 1, -3.5]


@given(VALUES, st.sampled_from([(Int8, 127), (Int4, 7)]), st.integers(1, 80))
def test_rounding_is_within_half_a_level(values: Array, kind: tuple[Any, int], block: int) -> None:
    cls, limit = kind
    arrived = there_and_back(cls(block=block), values).astype(float)
    for low in range(0, values.size, block):
        part = slice(low, low + block)
        level = np.abs(values[part].astype(float)).max() / limit
        assert np.abs(arrived[part] - values[part]).max() <= level * 0.50001 + 2e-38 * limit


@given(VALUES, st.integers(1, 80), st.integers(0, 2**64 - 1))
def test_terngrad_has_three_values_in_a_block(values: Array, block: int, salt: int) -> None:
    arrived = there_and_back(TernGrad(block), values, salt)
    for low in range(0, values.size, block):
        part, whole = arrived[low : low + block], values[low : low + block]
        assert len(set(np.abs(part)) - {0}) <= 1
        assert np.abs(part).max() * 0.999 <= np.abs(whole).max()
        assert (part * np.sign(whole) >= 0).all()


@given(VALUES, st.sampled_from([1, 2, 7, 8, 127]), st.integers(1, 80), st.integers(0, 2**64 - 1))
def test_qsgd_goes_to_a_neighbouring_level(values: Array, levels: int, block: int, salt: int) -> None:
    codec = QSGD(levels, block)
    code = codec.encode(values, salt)
    ones = codec.decode([np.ones_like(code[0]), code[1]], values.size, salt).astype(float)
    for low in range(0, values.size, block):
        part, whole = ones[low : low + block], values[low : low + block].astype(float)
        step = np.abs(whole).max() / levels
        if step > 2e-38:
            assert np.abs(part - whole / step).max() < 1.0001
            assert (part * whole >= 0).all()


def test_stochastic_levels_are_right_on_average() -> None:
    values = np.tile(np.linspace(-1, 1, 32, dtype=np.float32), 8)
    means = {}
    for codec in (TernGrad(), QSGD(levels=4)):
        drawn = [codec.decode(codec.encode(values, salt), values.size, salt) for salt in range(400)]
        means[type(codec)] = np.mean(drawn, axis=0).reshape(8, 32).mean(axis=0)
    slope = means[TernGrad][-1] / values[31]  # the scale is that of least squares, so all elements shrink alike
    np.testing.assert_allclose(means[TernGrad], slope * values[:32], atol=0.03)
    np.testing.assert_allclose(means[QSGD], values[:32] * means[QSGD][-1], atol=0.01)


def test_levels_are_packed_by_their_number() -> None:
    values = np.ones(256, np.float32)
    sizes = [QSGD(levels=n).encode(values, 0)[1].size for n in (1, 2, 7, 8, 127)]
    assert sizes == [64, 128, 128, 256, 256] and TernGrad().encode(values, 0)[1].size == 64


# -- sign -------------------------------------------------------------------------------------------------------------


def test_sign_bytes() -> None:
    mean, bits = Sign().encode(array(1, -2, 0, 3, -4, -5, 6, -7, 8), 0)
    assert mean.tolist() == [4] and bits.tobytes() == bytes([0b10110010, 0b10000000])
    assert Sign().decode([mean, bits], 9, 0).tolist() == [4, -4, 4, 4, -4, -4, 4, -4, 4]


def test_sign_over_several_blocks() -> None:
    values = np.random.default_rng(0).standard_normal(2 * BLOCK + 3, np.float32)
    mean = np.float32(np.abs(values).mean(dtype=np.float64))
    np.testing.assert_array_equal(there_and_back(Sign(), values), np.where(values >= 0, mean, -mean))


# -- selections -------------------------------------------------------------------------------------------------------


@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=st.one_of(st.integers(-3, 3), FLOATS)),
    st.floats(0.001, 1),
)
def test_topk_is_the_largest_and_of_equals_the_first(values: Array, ratio: float) -> None:
    indices, sent = TopK(ratio).encode(values, 0)
    count = max(1, round(ratio * values.size))
    expected = np.sort(np.lexsort((np.arange(values.size), -np.abs(values)))[:count])
    assert indices.dtype == np.uint32 and indices.tolist() == expected.tolist()
    np.testing.assert_array_equal(sent, values[expected])


@pytest.mark.parametrize("levels", [2, 50, 10**9], ids=["many-equal", "some-equal", "all-different"])
def test_topk_of_a_large_array(levels: int) -> None:
    values = np.random.default_rng(0).integers(-levels, levels, 3 * BLOCK + 5).astype(np.float32)
    expected = np.sort(np.argsort(-np.abs(values), kind="stable")[: round(0.01 * values.size)])
    np.testing.assert_array_equal(TopK(0.01).encode(values, 0)[0], expected)


def test_topk_when_all_large_elements_are_outside_the_sample() -> None:
    values = np.ones(4 * BLOCK, np.float32)
    values[1::16] = 0  # 16 is the distance of the sample's elements
    values[3::1000] = 5
    indices, sent = TopK(0.001).encode(values, 0)
    assert indices.tolist() == list(range(3, values.size, 1000))[: len(indices)] and set(sent) == {5}


def test_randomk_indices_are_known_to_both_ends() -> None:
    values = np.arange(100, dtype=np.float32)
    [sent] = RandomK(0.1).encode(values, 7)
    assert sent.tolist() == [9, 19, 20, 35, 40, 56, 62, 79, 86, 96]  # the same in all versions of numpy
    arrived = RandomK(0.1).decode([sent], 100, 7)
    assert np.flatnonzero(arrived).tolist() == sent.tolist()
    assert RandomK(0.1).encode(values, 8)[0].tolist() != sent.tolist()


@given(st.integers(1, 300), st.floats(0.001, 1), st.integers(0, 2**64 - 1))
def test_randomk_sends_different_elements(size: int, ratio: float, salt: int) -> None:
    [sent] = RandomK(ratio).encode(np.arange(size, dtype=np.float32), salt)
    assert sent.size == max(1, round(ratio * size)) and (np.diff(sent) > 0).all()


def test_randomk_reaches_every_element() -> None:
    values = np.arange(37, dtype=np.float32)
    seen = {value for salt in range(300) for value in RandomK(0.2).encode(values, salt)[0]}
    assert seen == set(values)


def test_at_least_one_element_is_sent() -> None:
    for codec in (TopK(), RandomK()):
        assert there_and_back(codec, array(2.5)).tolist() == [2.5]
        assert there_and_back(codec, array()).tolist() == []

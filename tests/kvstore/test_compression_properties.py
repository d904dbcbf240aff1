"""What holds for every codec: nothing is lost, nothing from the network crashes, bad numbers pass on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvstore.arrays import BLOCK, Array
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
from pslite.dtypes import code_of
from pslite.errors import ProtocolError

CODECS: list[Codec] = [
    OneBit(),
    TwoBit(),
    Float16(),
    BFloat16(),
    Int8(block=5),
    Int4(block=5),
    TopK(ratio=0.3),
    RandomK(ratio=0.3),
    Sign(),
    TernGrad(block=5),
    QSGD(levels=1, block=5),
    QSGD(levels=7, block=5),
    QSGD(levels=100, block=5),
]
INF, NAN = float("inf"), float("nan")
SALTS = st.integers(0, 2**64 - 1)


def name(codec: Codec) -> str:
    kind, arguments = codec.to_wire()
    return "-".join([kind, *(f"{key}={value}" for key, value in arguments.items())])


few = settings(max_examples=30)  # for each codec
each = pytest.mark.parametrize("codec", CODECS, ids=name)


def floats(bound: float | None = None, **options: Any) -> st.SearchStrategy[float]:
    bound = None if bound is None else float(np.float32(bound))
    return st.floats(None if bound is None else -bound, bound, width=32, **options)


def arrays(elements: st.SearchStrategy[float], least: int = 0) -> st.SearchStrategy[Array]:
    return hnp.arrays(np.float32, st.integers(least, 70), elements=elements)


@st.composite
def streams(draw: st.DrawFn) -> list[Array]:
    """Gradients of one key, push after push."""
    size, scale = draw(st.integers(1, 40)), draw(st.sampled_from([1.0, 1e-3, 1e30, 1e-42]))
    gradient = hnp.arrays(np.float32, size, elements=floats(2 * scale))
    return draw(st.lists(gradient, min_size=1, max_size=6))


# -- error feedback ---------------------------------------------------------------------------------------------------


@each
@few
@given(streams(), SALTS)
def test_what_arrived_and_the_residual_are_the_sum_of_the_gradients(
    codec: Codec, gradients: list[Array], salt: int
) -> None:
    feedback = Feedback(gradients[0].shape)
    arrived = np.zeros(gradients[0].shape, np.float64)
    rounding = np.zeros_like(arrived)  # each push adds, then subtracts, in float32
    for number, gradient in enumerate(gradients):
        before = feedback.residual.astype(np.float64)
        [code] = feedback.encode(codec, gradient, None, salt + number)
        emitted = codec.decode(code, gradient.size, salt + number)
        arrived += emitted
        rounding += np.spacing(np.abs(before).max() + np.abs(gradient).max() + np.abs(emitted).max(), dtype=np.float32)
    total = np.sum(gradients, axis=0, dtype=np.float64)
    assert (np.abs(arrived + feedback.residual - total) <= rounding).all()


@each
@few
@given(streams(), SALTS)
def test_the_fast_path_is_encode_and_decode(codec: Codec, gradients: list[Array], salt: int) -> None:
    check_feed(codec, gradients, salt)


@each
def test_the_fast_path_is_encode_and_decode_over_several_blocks(codec: Codec) -> None:
    gradients = np.random.default_rng(0).standard_normal((2, 2 * BLOCK + 37), np.float32)
    check_feed(codec, list(gradients), 5)


def check_feed(codec: Codec, gradients: list[Array], salt: int) -> None:
    fast, plain = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    for gradient in gradients:
        sent, expected = codec.feed(fast, gradient, salt), Codec.feed(codec, plain, gradient, salt)
        assert [a.tobytes() for a in sent] == [a.tobytes() for a in expected]
        assert fast.tobytes() == plain.tobytes()


@pytest.mark.parametrize("codec", [c for c in CODECS if not isinstance(c, OneBit)], ids=name)
@few
@given(values=arrays(floats(allow_nan=False, allow_infinity=False), least=1), salt=SALTS)
def test_the_error_is_not_larger_than_what_was_coded(codec: Codec, values: Array, salt: int) -> None:
    """Else residuals could grow without end. (1bit emits +-1 whatever the gradient is.)"""
    arrived = codec.decode(codec.encode(values, salt), values.size, salt)
    scale = max(np.abs(values).max().astype(float), 1e-300)
    error = np.linalg.norm((arrived.astype(float) - values) / scale)
    assert error <= np.linalg.norm(values.astype(float) / scale) * 1.0001


@pytest.mark.parametrize("codec", [TopK(), RandomK(), Sign(), TernGrad(), QSGD(1), QSGD(), Int4(), Int8()], ids=name)
def test_the_residual_stays_bounded(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    feedback = Feedback((2000,))
    sizes = []
    for number in range(600):
        feedback.encode(codec, rng.standard_normal(2000, np.float32), None, number)
        sizes.append(float(np.linalg.norm(feedback.residual)))
    assert np.mean(sizes[400:]) < 1.5 * np.mean(sizes[200:400])


@each
def test_the_gradient_and_the_values_are_not_changed(codec: Codec) -> None:
    gradient = np.random.default_rng(0).standard_normal((7, 9), np.float32)
    gradient.flags.writeable = False
    feedback = Feedback(gradient.shape)
    [first] = feedback.encode(codec, gradient, None, 1)
    copies = [array.copy() for array in first]
    feedback.encode(codec, gradient, None, 2)
    feedback.residual[...] = 0
    for array, copy in zip(first, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    codec.encode(gradient.ravel(), 3)


@each
def test_codes_travel(codec: Codec) -> None:
    for array in codec.encode(np.ones(100, np.float32), 1):
        assert array.ndim == 1 and array.flags.c_contiguous and code_of(array.dtype) >= 0


@each
@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (3, 0), (2, 3, 4)], ids=str)
def test_arrays_of_any_shape(codec: Codec, shape: tuple[int, ...]) -> None:
    feedback = Feedback(shape)
    [code] = feedback.encode(codec, np.ones(shape, np.float32), None, 1)
    arrived = codec.decode(code, feedback.residual.size, 1)
    np.testing.assert_allclose(arrived.reshape(shape) + feedback.residual, np.ones(shape), rtol=1e-6)


def test_a_gradient_of_any_strides() -> None:
    gradient = np.arange(12, dtype=np.float32).reshape(3, 4).T
    [code] = Feedback((4, 3)).encode(Float16(), gradient, None, 0)
    assert Float16().decode(code, 12, 0).tolist() == gradient.ravel().tolist()


@pytest.mark.parametrize("codec", [c for c in CODECS if c.elementwise], ids=name)
@few
@given(data=st.data())
def test_pieces_give_the_values_of_the_whole(codec: Codec, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    inner = data.draw(st.sets(st.integers(1, rows - 1), max_size=4)) if rows > 1 else set()
    ends = [*sorted(inner), rows]
    cuts = list(zip([0, *ends], ends, strict=False))
    whole, cut = Feedback((rows, columns)), Feedback((rows, columns))
    for salt in range(3):
        gradient = data.draw(hnp.arrays(np.float32, (rows, columns), elements=floats(3)))
        [code] = whole.encode(codec, gradient, None, salt)
        pieces = cut.encode(codec, gradient, cuts, salt)
        arrived = [
            codec.decode(piece, (end - first) * columns, salt) for piece, (first, end) in zip(pieces, cuts, strict=True)
        ]
        assert np.concatenate(arrived).tobytes() == codec.decode(code, gradient.size, salt).tobytes()
        assert cut.residual.tobytes() == whole.residual.tobytes()


# -- numbers that are not finite --------------------------------------------------------------------------------------


@each
@few
@given(arrays(floats(allow_nan=True, allow_infinity=True)), SALTS)
def test_bad_numbers_do_harm_to_one_push_only(codec: Codec, gradient: Array, salt: int) -> None:
    feedback = Feedback(gradient.shape)
    [code] = feedback.encode(codec, gradient, None, salt)
    assert codec.decode(code, gradient.size, salt).shape == gradient.shape
    assert np.isfinite(feedback.residual).all()


@pytest.mark.parametrize(
    ("codec", "arrives"),
    [
        (TwoBit(1), [1, 0, 1, -1]),
        (OneBit(1), [1, -1, 1, -1]),
        (Float16(), [2, NAN, INF, -INF]),
        (BFloat16(), [2, NAN, INF, -INF]),
        (Int8(block=1), [2, NAN, NAN, NAN]),
        (Int8(block=2), [NAN, NAN, NAN, NAN]),
        (Int4(block=1), [2, NAN, NAN, NAN]),
        (TernGrad(block=1), [2, NAN, NAN, NAN]),
        (QSGD(block=1), [2, NAN, NAN, NAN]),
        (TopK(0.75), [0, NAN, INF, -INF]),
        (RandomK(1), [2, NAN, INF, -INF]),
        (Sign(), [NAN, NAN, NAN, NAN]),
    ],
    ids=lambda value: name(value) if isinstance(value, Codec) else "",
)
def test_how_bad_numbers_arrive(codec: Codec, arrives: list[float]) -> None:
    code = codec.encode(np.array([2, NAN, INF, -INF], np.float32), 1)
    np.testing.assert_allclose(codec.decode(code, 4, 1), arrives, rtol=1e-6)


@each
def test_a_sum_that_overflows_raises_no_warning(codec: Codec) -> None:
    feedback = Feedback((3,))
    for salt in range(4):
        feedback.encode(codec, np.full(3, 3e38, np.float32), None, salt)
    assert np.isfinite(feedback.residual).all()


# -- from the network -------------------------------------------------------------------------------------------------

ANY_ARRAY = hnp.arrays(
    st.sampled_from([np.dtype(d) for d in ("f4", "f8", "f2", "u1", "i1", "u2", "u4", "i8", "?")]),
    hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=20),
)
ANY_CODE = st.lists(st.one_of(ANY_ARRAY, st.none(), st.integers()), max_size=3)


@each
@few
@given(ANY_CODE, st.integers(0, 70), SALTS)
def test_any_arrays_are_decoded_or_refused(codec: Codec, code: list[Any], size: int, salt: int) -> None:
    try:
        arrived = codec.decode(code, size, salt)
    except ProtocolError:
        return
    assert arrived.shape == (size,) and arrived.dtype == np.float32


@each
@few
@given(st.integers(0, 70), st.randoms(use_true_random=False))
def test_any_bytes_of_the_right_length_are_decoded_or_refused(codec: Codec, size: int, random: Any) -> None:
    code = codec.encode(np.zeros(size, np.float32), 1)
    hostile = [np.frombuffer(random.randbytes(array.nbytes), array.dtype) for array in code]
    try:
        assert codec.decode(hostile, size, 1).shape == (size,)
    except ProtocolError:
        assert isinstance(codec, TopK)


@each
def test_signalling_nans_are_decoded_without_a_warning(codec: Codec) -> None:
    code = [np.full_like(array, 0) for array in codec.encode(np.ones(50, np.float32), 1)]
    for array in code:
        if array.dtype == np.float32:
            array.view(np.uint32)[...] = 0x7F800001
    try:
        codec.decode(code, 50, 1)
    except ProtocolError:
        assert isinstance(codec, TopK)  # whose indices do not ascend


@each
def test_a_malformed_code_is_a_protocol_error(codec: Codec) -> None:
    code = codec.encode(np.ones(50, np.float32), 1)
    bad: list[Any] = [None, b"", [], code[1:], [*code, code[0]], [None] * len(code), "x" * len(code)]
    for index, array in enumerate(code):
        wide = np.dtype(np.float64 if array.dtype != np.float64 else np.float32)
        others = (array[:-1], np.append(array, array[:1]), array.astype(wide), array[None], array[0])
        bad += [[*code[:index], other, *code[index + 1 :]] for other in others]
    for malformed in bad:
        with pytest.raises(ProtocolError, match=type(codec).__name__):
            codec.decode(malformed, 50, 1)
    for size in (0, 500):
        with pytest.raises(ProtocolError):
            codec.decode(code, size, 1)


@pytest.mark.parametrize("indices", [[0, 50], [0, 2**32 - 1], [1, 1], [2, 1]])
def test_indices_must_ascend_within_the_array(indices: Sequence[int]) -> None:
    values = np.ones(2, np.float32)
    with pytest.raises(ProtocolError, match="ascend"):
        TopK(ratio=0.04).decode([np.array(indices, np.uint32), values], 50, 0)


@each
def test_a_codec_travels(codec: Codec) -> None:
    wire = msgpack.unpackb(msgpack.packb(codec.to_wire()))
    other = Codec.from_wire(wire)
    assert type(other) is type(codec) and other.to_wire() == codec.to_wire()
    values = np.random.default_rng(0).standard_normal(100, np.float32)
    for array, again in zip(codec.encode(values, 9), other.encode(values, 9), strict=True):
        assert array.tobytes() == again.tobytes()

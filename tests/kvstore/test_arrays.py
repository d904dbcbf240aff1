"""The adapter between users' arrays and numpy, bfloat16, and sums."""

from __future__ import annotations

import array
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.arrays import BLOCK, accumulate, is_array, read, write
from kvstore.bfloat16 import bfloat16, from_float32, to_float32
from pslite.dtypes import BFLOAT16, CODES, NAMES, storage
from pslite.errors import ConfigError, DTypeError, ShapeError

NUMPY_NAMES = [name for name in NAMES if name != "bfloat16"]


class Exporter:
    """An array of another framework: nothing but DLPack."""

    def __init__(self, data: np.ndarray[Any, Any], device: tuple[int, int] = (1, 0)) -> None:
        self.data, self.device = data, device

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


# -- read -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NUMPY_NAMES)
def test_a_contiguous_numpy_array_is_read_without_a_copy(name: str) -> None:
    value = np.ones((2, 3), name)
    tensor = read(value)
    assert tensor.code == CODES[name] and tensor.shape == (2, 3) and tensor.nbytes == value.nbytes
    assert np.shares_memory(tensor.data, value)


def test_a_strided_array_is_read_as_a_contiguous_copy() -> None:
    value = np.arange(12.0).reshape(3, 4)[:, ::2]
    tensor = read(value)
    assert tensor.data.flags.c_contiguous
    np.testing.assert_array_equal(tensor.data, [[0, 2], [4, 6], [8, 10]])


def test_big_endian_numbers_are_read_as_little_endian() -> None:
    tensor = read(np.array([1, 2, 258], ">i4"))
    assert tensor.data.dtype == storage(CODES["int32"])
    assert tensor.data.tobytes() == struct.pack("<3i", 1, 2, 258)


def test_numpy_scalars_are_arrays_without_dimensions() -> None:
    tensor = read(np.float32(1.5))
    assert tensor.shape == () and tensor.code == CODES["float32"] and tensor.data[()] == 1.5


def test_the_buffer_protocol_is_read_without_a_copy() -> None:
    value = array.array("d", [1, 2, 3])
    tensor = read(value)
    assert tensor.code == CODES["float64"]
    value[0] = 7
    assert tensor.data.tolist() == [7, 2, 3]


def test_dlpack_is_read_without_a_copy() -> None:
    value = np.arange(4, dtype=np.float32)
    tensor = read(Exporter(value))
    assert np.shares_memory(tensor.data, value) and tensor.code == CODES["float32"]


def test_marked_uint16_is_read_as_bfloat16() -> None:
    bits = np.array([0x3F80], np.uint16)
    tensor = read(bfloat16(bits))
    assert tensor.code == BFLOAT16 and np.shares_memory(tensor.data, bits)


@pytest.mark.parametrize("value", [1.5, 3, True, None, "text", {}, [np.zeros(2)], object()])
def test_what_is_not_an_array_is_refused(value: object) -> None:
    with pytest.raises(DTypeError, match="'w'"):
        read(value, "w")


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]", "O", "longdouble", "f4,i4"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(DTypeError, match="'w'"):
        read(np.zeros(2, dtype), "w")


def test_lists_and_tuples_hold_arrays_and_are_none() -> None:
    assert is_array(np.zeros(2)) and is_array(np.float32(1)) and is_array(bfloat16(np.zeros(2, np.uint16)))
    assert is_array(array.array("d")) and is_array(Exporter(np.zeros(2)))
    assert not is_array([np.zeros(2)]) and not is_array((np.zeros(2),))


# -- write ------------------------------------------------------------------------------------------------------------


def test_write_fills_a_strided_array() -> None:
    out = np.zeros((2, 6), np.float32)
    write(out[:, ::3], np.array([[1, 2], [3, 4]], np.float32), CODES["float32"])
    np.testing.assert_array_equal(out, [[1, 0, 0, 2, 0, 0], [3, 0, 0, 4, 0, 0]])


@pytest.mark.parametrize("name", NUMPY_NAMES)
def test_write_casts_to_the_dtype_of_out(name: str) -> None:
    out = np.zeros(3, name)
    write(out, np.array([0.0, 1.0, 1.0], np.float32), CODES["float32"])
    assert out.tolist() == [0, 1, 1]


def test_write_casts_from_and_to_bfloat16_to_nearest_even() -> None:
    bits = np.zeros(3, np.uint16)
    write(bfloat16(bits), np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8], np.float64), CODES["float64"])
    assert bits.tolist() == [0x3F80, 0x3F80, 0x3F82]
    out = np.zeros(3, np.float64)
    write(out, bits, BFLOAT16)
    assert out.tolist() == [1.0, 1.0, 1.015625]


def test_write_to_buffers_and_scalars_of_no_dimension() -> None:
    buffer = array.array("f", [0, 0])
    write(buffer, np.array([1, 2], np.float32), CODES["float32"])
    assert buffer.tolist() == [1, 2]
    out = np.zeros((), np.int64)
    write(out, np.array(3, np.int32), CODES["int32"])
    assert out == 3


@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 2, 3), ()])
def test_write_wants_the_same_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"'w'.*\(2, 3\)"):
        write(np.zeros(shape, np.float32), np.zeros((2, 3), np.float32), CODES["float32"], "w")


def test_write_refuses_what_cannot_be_written() -> None:
    frozen = np.zeros(2, np.float32)
    frozen.flags.writeable = False
    for out in (frozen, bytes(2), memoryview(np.zeros(2)).toreadonly()):
        with pytest.raises(ConfigError, match="writable"):
            write(out, np.zeros(2, np.float32), CODES["float32"])


# -- bfloat16 ---------------------------------------------------------------------------------------------------------

# float32 bits -> bfloat16 bits, by hand: the upper half, plus one if the lower half is above half, or half and odd.
ROUNDING = [
    (0x00000000, 0x0000),
    (0x80000000, 0x8000),  # -0
    (0x3F800000, 0x3F80),  # 1
    (0x3F807FFF, 0x3F80),  # just below half
    (0x3F808000, 0x3F80),  # half, even
    (0x3F808001, 0x3F81),  # just above half
    (0x3F818000, 0x3F82),  # half, odd
    (0xBF818000, 0xBF82),
    (0x3FFFFFFF, 0x4000),  # carries into the exponent
    (0x00000001, 0x0000),  # smallest subnormal
    (0x00018000, 0x0002),  # subnormals round alike
    (0x7F7F7FFF, 0x7F7F),  # largest finite result
    (0x7F7FFFFF, 0x7F80),  # too large: infinite
    (0xFF7FFFFF, 0xFF80),
    (0x7F800000, 0x7F80),  # inf
    (0xFF800000, 0xFF80),
    (0x7FC00000, 0x7FC0),  # NaN
    (0xFFC00000, 0xFFC0),
    (0x7F800001, 0x7FC0),  # a NaN whose payload is lost
    (0xFFFFFFFF, 0xFFFF),  # a NaN that must not wrap around to 0
]


def test_rounding_to_bfloat16() -> None:
    wide, narrow = np.array(ROUNDING, np.uint32).T
    assert [f"{bits:04x}" for bits in from_float32(wide.copy().view(np.float32))] == [f"{b:04x}" for b in narrow]
    for one, expected in ROUNDING:  # without dimensions, too
        bits = from_float32(np.array(one, np.uint32).view(np.float32))
        assert bits.shape == () and bits == expected


def test_every_bfloat16_number_survives_the_way_through_float32() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    values = to_float32(bits)
    back = from_float32(values)
    np.testing.assert_array_equal(back[~np.isnan(values)], bits[~np.isnan(values)])
    assert np.isnan(to_float32(back[np.isnan(values)])).all()


def test_conversion_takes_strided_arrays_and_keeps_the_shape() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    assert to_float32(from_float32(values)).tolist() == values.tolist()
    assert to_float32(from_float32(values)[::2]).tolist() == values[::2].tolist()


def test_only_uint16_can_be_marked() -> None:
    with pytest.raises(DTypeError, match="uint16"):
        bfloat16(np.zeros(2, np.int16))
    assert bfloat16(np.zeros((2, 3), np.uint16)).shape == (2, 3)
    assert repr(bfloat16(np.array([0x3FC0], np.uint16))) == "bfloat16([1.5])"


# -- accumulate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 3 * BLOCK + 5])
@pytest.mark.parametrize("name", ["float32", "float64"])
def test_floats_are_summed_from_left_to_right(name: str, size: int) -> None:
    random = np.random.default_rng(0)
    terms = [random.normal(size=size).astype(name) * np.dtype(name).type(10**k) for k in range(4)]
    expected = ((terms[0] + terms[1]) + terms[2]) + terms[3]
    assert accumulate(terms, CODES[name]).tobytes() == expected.tobytes()


def test_float16_is_summed_in_float32_and_rounded_once() -> None:
    terms = [np.array([2048], np.float16)] + [np.array([1], np.float16)] * 3  # 2048 + 1 is 2048 in float16
    assert accumulate(terms, CODES["float16"]).tolist() == [2052]
    large = [np.array([60000, 60000], np.float16), np.array([60000, -60000], np.float16)]
    total = accumulate([*large, np.array([-60000, 1], np.float16)], CODES["float16"])
    assert total.dtype == np.float16 and total.tolist() == [60000, 1]


def test_float16_overflow_is_infinite_and_no_warning() -> None:
    assert accumulate([np.array([60000], np.float16)] * 2, CODES["float16"]).tolist() == [np.inf]


def test_bfloat16_is_summed_in_float32_and_rounded_once() -> None:
    terms = [from_float32(np.array([256], np.float32))] + [from_float32(np.array([1], np.float32))] * 3
    assert to_float32(accumulate(terms, BFLOAT16)).tolist() == [260]  # 259 rounds to even; one by one it were 256


@pytest.mark.parametrize("size", [1, BLOCK + 3])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_wide_sum_is_float32_and_not_rounded(name: str, count: int, size: int) -> None:
    random = np.random.default_rng(0)
    values = [random.normal(scale=10**k, size=size).astype(np.float32) for k in range(count)]
    terms = [from_float32(v) if name == "bfloat16" else v.astype(np.float16) for v in values]
    expected = np.zeros(size, np.float32)
    for term in terms:
        expected = expected + (to_float32(term) if name == "bfloat16" else term.astype(np.float32))
    total = accumulate(terms, CODES[name], wide=True)
    assert total.dtype == np.float32 and total.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", [name for name in NUMPY_NAMES if name != "float16"])
def test_sums_of_other_dtypes_are_never_wider(name: str) -> None:
    terms = [np.ones((2, 3), name)] * 3
    for count in (1, 3):
        total = accumulate(terms[:count], CODES[name], wide=True)
        assert total.dtype == name and total.tobytes() == accumulate(terms[:count], CODES[name]).tobytes()
        assert not np.shares_memory(total, terms[0])


def test_integers_wrap_around_and_bools_are_or() -> None:
    assert accumulate([np.array([100], np.uint8)] * 3, CODES["uint8"]).tolist() == [44]
    assert accumulate([np.array(100, np.int8)] * 2, CODES["int8"]).tolist() == -56
    bools = [np.array([False, True, True]), np.array([False, False, True])]
    assert accumulate(bools, CODES["bool"]).tolist() == [False, True, True]


def test_one_array_gives_a_copy_bit_by_bit() -> None:
    for code, value in ((CODES["float32"], np.ones(3, np.float32)), (BFLOAT16, np.array([0x7F81], np.uint16))):
        total = accumulate([value], code)
        assert total.tobytes() == value.tobytes() and not np.shares_memory(total, value)


def test_the_sum_may_go_into_the_first_array() -> None:
    terms = [np.full((3, 2), value, np.float32) for value in (1, 2, 4)]
    assert accumulate(terms, CODES["float32"], out=terms[0]) is terms[0]
    assert (terms[0] == 7).all() and (terms[1] == 2).all() and (terms[2] == 4).all()


@given(st.lists(st.lists(st.integers(0, 255), min_size=3, max_size=3), min_size=1, max_size=6), st.sampled_from(NAMES))
def test_sums_do_not_change_their_terms(rows: list[list[int]], name: str) -> None:
    terms = [np.array(row).astype(storage(CODES[name])) for row in rows]
    before = [term.tobytes() for term in terms]
    total = accumulate(terms, CODES[name])
    assert total.dtype == storage(CODES[name]) and total.shape == (3,)
    assert [term.tobytes() for term in terms] == before


# -- torch and ml_dtypes ----------------------------------------------------------------------------------------------


def test_torch_tensors_share_their_memory(torch: Any) -> None:
    tensor = torch.nn.Parameter(torch.arange(6, dtype=torch.float32).reshape(2, 3))
    result = read(tensor)
    assert result.code == CODES["float32"] and result.data.ctypes.data == tensor.data_ptr()
    assert result.data.tolist() == tensor.tolist()
    assert read(tensor.t()).data.tolist() == tensor.t().tolist()


def test_torch_bfloat16_shares_its_memory(torch: Any) -> None:
    tensor = torch.tensor([[1.0, -2.5]], dtype=torch.bfloat16, requires_grad=True)
    result = read(tensor)
    assert result.code == BFLOAT16 and result.data.ctypes.data == tensor.data_ptr()
    assert to_float32(result.data).tolist() == [[1.0, -2.5]]


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16", "int32", "uint8", "bool"])
def test_torch_tensors_are_written(torch: Any, name: str) -> None:
    out = torch.zeros((3, 2), dtype=getattr(torch, name)).t()
    write(out, np.array([[0, 1, 1], [1, 0, 1]], np.float32), CODES["float32"])
    assert out.tolist() == [[0, 1, 1], [1, 0, 1]]
    parameter = torch.nn.Parameter(torch.zeros(2))
    write(parameter, np.array([1, 2], np.float64), CODES["float64"])
    assert parameter.tolist() == [1, 2]


def test_torch_tensors_that_numpy_cannot_see_are_refused(torch: Any) -> None:
    with pytest.raises(DTypeError, match=r"'w'.*meta.*with values"):
        read(torch.empty(3, device="meta"), "w")
    with pytest.raises(DTypeError, match=r"'w'.*sparse"):
        read(torch.eye(3).to_sparse(), "w")
    with pytest.raises(DTypeError, match=r"'w'.*complex"):
        read(torch.zeros(3, dtype=torch.complex64), "w")


def test_torch_rounds_to_bfloat16_alike(torch: Any) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(from_float32(values), theirs)


def test_ml_dtypes_arrays_are_read_and_written() -> None:
    value = np.array([[1.0, -2.5], [0.0, 3.0]], ml_dtypes.bfloat16)
    result = read(value)
    assert result.code == BFLOAT16 and np.shares_memory(result.data, value)
    assert to_float32(read(value.T).data).tolist() == [[1.0, 0.0], [-2.5, 3.0]]
    assert to_float32(read(value[0, 1]).data) == -2.5
    write(value.T, np.array([[1, 2], [3, 4]], np.float32), CODES["float32"])
    assert value.astype(np.float32).tolist() == [[1, 3], [2, 4]]
    with pytest.raises(DTypeError, match=r"'w'.*float8"):
        read(np.zeros(2, ml_dtypes.float8_e4m3fn), "w")


def test_ml_dtypes_rounds_to_bfloat16_alike() -> None:
    values = np.random.default_rng(1).integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    np.testing.assert_array_equal(from_float32(values), values.astype(ml_dtypes.bfloat16).view(np.uint16))

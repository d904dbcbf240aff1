"""Arrays of torch and jax, on the CPU and on devices: read, written, and summed in their framework."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.arrays import accumulate, check_out, read, write
from kvstore.bfloat16 import bfloat16, from_float32, to_float32
from kvstore.devices import device_sum
from pslite.dtypes import BFLOAT16, CODES, NAMES, storage
from pslite.errors import ConfigError, DTypeError, ShapeError

Make = Callable[[Any, str], Any]  # from an array of the storage dtype and the dtype's name
FRAMEWORKS = ["torch", "jax"]


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Make:
    """Makes arrays of the framework that is the parameter."""
    module = request.getfixturevalue(request.param)
    if request.param == "torch":
        return lambda data, name: torch_tensor(module, data, name)
    return lambda data, name: jax_array(module, data, name)


def torch_tensor(torch: Any, data: Any, name: str) -> Any:
    tensor = torch.from_numpy(data.copy())
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def jax_array(jax: Any, data: Any, name: str) -> Any:
    array = jax.numpy.asarray(data)
    return array.view(name) if name == "bfloat16" else array


def terms(name: str, count: int, shape: tuple[int, ...] = (3, 41)) -> list[Any]:
    """Arrays whose sum depends on the order, on the width of the sum, and wraps around."""
    random = np.random.default_rng(0)
    if name == "bool":
        return [random.random(shape) < 0.3 for _ in range(count)]
    if name.startswith(("int", "uint")):
        info = np.iinfo(name)
        return [random.integers(info.min, info.max, shape, dtype=name, endpoint=True) for _ in range(count)]
    wide = [random.normal(size=shape) * 10.0**k for k in range(count)]
    return [from_float32(w.astype(np.float32)) if name == "bfloat16" else w.astype(name) for w in wide]


# -- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", FRAMEWORKS, indirect=True)
def test_the_sum_in_the_framework_has_the_bits_of_accumulate(make: Make, name: str, count: int, wide: bool) -> None:
    data = terms(name, count)
    arrays = [make(d, name) for d in data]
    total = device_sum(arrays, "w", wide=wide)
    expected = accumulate(data, CODES[name], wide=wide)
    assert total is not None
    assert total.code == (CODES["float32"] if wide and name in ("float16", "bfloat16") else CODES[name])
    assert total.data.dtype == expected.dtype and total.data.tobytes() == expected.tobytes()
    assert total.data.flags.writeable and total.data.flags.c_contiguous
    for array, d in zip(arrays, data, strict=True):
        assert read(array).data.tobytes() == d.tobytes()  # not written to
        assert not np.shares_memory(read(array).data, total.data)


@pytest.mark.parametrize("make", FRAMEWORKS, indirect=True)
def test_infinite_and_nan_are_sums_like_others(make: Make) -> None:
    for name in ("float16", "float32", "float64"):
        big = float(np.finfo(name).max)
        data = [np.array([big, np.inf, np.nan, -0.0], name), np.array([big, -np.inf, 1, -0.0], name)]
        total = device_sum([make(d, name) for d in data])
        assert total is not None
        np.testing.assert_array_equal(total.data, accumulate(data, CODES[name]))
        assert np.signbit(total.data[3])


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
@pytest.mark.parametrize("make", FRAMEWORKS, indirect=True)
def test_sums_of_any_shape(make: Make, shape: tuple[int, ...]) -> None:
    for name in ("float32", "bfloat16", "uint16", "bool"):
        one = 0x3F80 if name == "bfloat16" else 1
        data = [np.full(shape, one, storage(CODES[name]))] * 3
        total = device_sum([make(d, name) for d in data])
        assert total is not None and total.shape == shape
        assert total.data.tobytes() == accumulate(data, CODES[name]).tobytes()


def test_tensors_that_are_strided_or_need_gradients(torch: Any) -> None:
    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    arrays = [whole.t(), torch.nn.Parameter(torch.ones(4, 3)), whole.reshape(4, 3)[:, [2, 1, 0]]]
    total = device_sum(arrays)
    assert total is not None
    np.testing.assert_array_equal(total.data, (arrays[0] + arrays[1] + arrays[2]).detach().numpy())


@pytest.mark.parametrize("make", FRAMEWORKS, indirect=True)
def test_what_is_no_sum_in_a_framework_is_left_to_the_cpu(make: Make) -> None:
    one, numpys = make(np.ones(2, np.float32), "float32"), [np.ones(2, np.float32)] * 2
    other_shape, other_dtype = make(np.ones(3, np.float32), "float32"), make(np.ones(2, np.int32), "int32")
    for arrays in ([], [one], numpys, [numpys[0], one], [one, numpys[0]], [one, other_shape], [one, other_dtype]):
        assert device_sum(arrays, "w") is None
    assert device_sum([bfloat16(np.zeros(2, np.uint16))] * 2) is None
    assert device_sum([3, "text"]) is None


def test_torch_and_jax_in_one_list_are_left_to_the_cpu(torch: Any, jax: Any) -> None:
    assert device_sum([torch.ones(2), jax.numpy.ones(2)]) is None
    assert device_sum([jax.numpy.ones(2), torch.ones(2)]) is None


@pytest.mark.parametrize("make", FRAMEWORKS, indirect=True)
def test_dtypes_that_cannot_travel_are_refused_before_the_sum(make: Make) -> None:
    with pytest.raises(DTypeError, match=r"'w'.*complex64"):
        device_sum([make(np.ones(2, np.complex64), "complex64")] * 2, "w")


# -- jax --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_jax_arrays_are_read_without_a_copy(jax: Any, name: str) -> None:
    data = terms(name, 1)[0]
    value = jax_array(jax, data, name)
    tensor = read(value)
    assert tensor.code == CODES[name] and tensor.data.tobytes() == data.tobytes()
    assert tensor.data.ctypes.data == value.unsafe_buffer_pointer()


def test_jax_arrays_are_no_out(jax: Any) -> None:
    for call in (check_out, lambda out, shape, key: write(out, np.zeros(shape, np.float32), CODES["float32"], key)):
        with pytest.raises(ConfigError, match=r"out='a jax array'.*pull\(key\)"):
            call(jax.numpy.zeros(2), (2,), "w")


def test_jax_arrays_without_values_are_refused(jax: Any) -> None:
    gone = jax.numpy.ones(2) + 1
    gone.delete()
    for arrays in ([gone], [gone, gone], [jax.numpy.ones(2), gone]):
        with pytest.raises(DTypeError, match=r"'w'.*deleted"):
            merged(arrays)

    def traced(array: Any) -> Any:
        merged([array])
        return array

    with pytest.raises(DTypeError, match=r"'w'.*float"):
        jax.jit(traced)(jax.numpy.ones(2))
    with pytest.raises(DTypeError, match=r"'w'.*float"):
        jax.jit(lambda a: merged([a, a]))(jax.numpy.ones(2))


def merged(arrays: list[Any]) -> Any:
    """As the stores do it."""
    total = device_sum(arrays, "w")
    return total.data if total else accumulate([t.data for t in (read(a, "w") for a in arrays)], CODES["float32"])


# -- arrays on devices: tests need no such device, so these arrays only claim to be there -----------------------------


@pytest.fixture
def cuda(torch: Any) -> Callable[[Any], Any]:
    """Makes a tensor that claims to be on cuda:0, and as such refuses what needs the CPU's memory."""

    class OnDevice(torch.Tensor):  # type: ignore[misc, name-defined]
        @property
        def device(self) -> Any:
            return torch.device("cuda", 0)

        def to(self, target: Any) -> Any:
            return self if target == self.device else super().to(target)

        def cpu(self) -> Any:
            return self.as_subclass(torch.Tensor).clone()

        def numpy(self) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

    return lambda data: torch.as_tensor(data).as_subclass(OnDevice)


class OnlyDLPack:
    """An array of another framework (cupy's, say) that speaks DLPack, and claims to be on a CUDA device."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError("not in the CPU's memory")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


@pytest.fixture
def by_torch(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "from_dlpack", lambda array: array.tensor)


def test_tensors_on_a_device_are_read_as_copies(torch: Any, cuda: Any) -> None:
    tensor = read(cuda([[1.0, 2.0]]), "w")
    assert tensor.data.tolist() == [[1, 2]] and tensor.code == CODES["float32"]
    tensor = read(cuda(torch.tensor([1.0, -2.5], dtype=torch.bfloat16)))
    assert tensor.code == BFLOAT16 and to_float32(tensor.data).tolist() == [1, -2.5]


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16", "uint16"])
def test_tensors_on_a_device_are_summed_there(torch: Any, cuda: Any, name: str) -> None:
    data = terms(name, 3)
    total = device_sum([cuda(torch_tensor(torch, d, name)) for d in data])
    assert total is not None and total.data.tobytes() == accumulate(data, CODES[name]).tobytes()


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "int32"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "uint16"])
def test_tensors_on_a_device_are_written(torch: Any, cuda: Any, name: str, stored: str) -> None:
    data = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    data = from_float32(data) if stored == "bfloat16" else data.astype(stored)
    data.flags.writeable = False  # as what has come from a server may be
    out = cuda(torch.zeros((3, 2), dtype=getattr(torch, name)).t())
    check_out(out, (2, 3))
    write(out, data, CODES[stored])
    assert out.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_what_is_checked_of_out_is_checked_on_a_device_too(torch: Any, cuda: Any) -> None:
    out = cuda([0.0, 0.0])
    with pytest.raises(ShapeError, match=r"'w'.*\(2,\).*\(3,\)"):
        write(out, np.ones(3, np.float32), CODES["float32"], "w")
    with pytest.raises(DTypeError, match=r"'w'.*complex64.*cuda:0"):
        check_out(cuda(torch.zeros(2, dtype=torch.complex64)), (2,), "w")
    assert out.tolist() == [0, 0]


@pytest.mark.usefixtures("by_torch")
def test_dlpack_on_a_device_goes_through_torch(cuda: Any) -> None:
    arrays = [OnlyDLPack(cuda([1.0, 2.0])), OnlyDLPack(cuda([10.0, 20.0]))]
    assert read(arrays[0]).data.tolist() == [1, 2]
    total = device_sum(arrays)
    assert total is not None and total.data.tolist() == [11, 22]
    write(arrays[0], total.data, total.code)
    assert read(arrays[0]).data.tolist() == [11, 22]


def test_dlpack_on_a_device_needs_torch(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    array = OnlyDLPack(None)
    with pytest.raises(DTypeError, match=r"'w'.*OnlyDLPack.*\(2, 0\).*torch can take"):
        read(array, "w")  # this torch was built without CUDA
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(DTypeError, match=r"'w'.*OnlyDLPack.*\(2, 0\).*import torch"):
        read(array, "w")
    with pytest.raises(DTypeError, match="import torch"):
        device_sum([array, array], "w")
    with pytest.raises(DTypeError, match="import torch"):
        check_out(array, (2,), "w")


# -- in a store -------------------------------------------------------------------------------------------------------


def train(kv: kvstore.KVStore, make: Make) -> None:
    for name in ("float32", "bfloat16"):
        data = terms(name, 2)
        arrays = [make(d, name) for d in data]
        kv.init(name, arrays[0])
        kv.push(name, arrays)
        out = np.zeros(data[0].shape, np.float32)
        kv.pull(name, out=out)
        total = accumulate(data, CODES[name])
        np.testing.assert_array_equal(out, to_float32(total) if name == "bfloat16" else total)


@pytest.mark.parametrize("make", FRAMEWORKS, indirect=True)
@pytest.mark.parametrize("type", ["local", "device", "dist_sync", "dist_device_sync"])
def test_stores_take_the_arrays_of_frameworks(make: Make, type: str) -> None:
    if type.startswith("dist"):
        kvstore.LocalCluster(type=type).run(lambda kv: train(kv, make))
    else:
        train(kvstore.create(type), make)


@pytest.mark.parametrize("type", ["local", "dist_device_sync"])
def test_a_pushpull_into_jax_arrays_is_refused_before_it_pushes(jax: Any, type: str) -> None:
    def work(kv: kvstore.KVStore) -> None:
        value = jax.numpy.ones(2)
        kv.init("w", jax.numpy.zeros(2))
        with pytest.raises(ConfigError, match=r"out='a jax array'"):
            kv.pushpull("w", value)
        assert kv.pull("w").tolist() == [0, 0]
        out = np.zeros(2)
        kv.pushpull("w", value, out=out)
        assert out.tolist() == [1, 1]

    work(kvstore.create(type)) if type == "local" else kvstore.LocalCluster(type=type).run(work)

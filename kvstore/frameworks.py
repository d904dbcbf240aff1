"""Arrays of torch, of jax, and behind the buffer protocol or DLPack, as numpy's.

Nothing is imported here: whoever has an array of a framework has imported it. Arrays on other devices are copied to
the CPU's memory by their framework; those that only speak DLPack (cupy's) by torch, if it is imported.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from pslite.dtypes import BFLOAT16, CODES, NAMES
from pslite.errors import DTypeError

from .bfloat16 import bfloat16

Array = npt.NDArray[Any]

_CPU_DEVICES = (1, 3, 13)  # DLPack's kDLCPU, kDLCUDAHost, kDLCUDAManaged
_KINDS = "an array: numpy, torch, jax, kvstore.bfloat16(bits), the buffer protocol or __dlpack__"


def named(key: object) -> int | str:
    """The key as an error can carry it."""
    return key if isinstance(key, (int, str)) else str(key)


def to_numpy(value: Any, key: object) -> Array | bfloat16:
    """What is not a numpy array, as one that shares its memory if that is the CPU's, else as a copy.

    Raises DTypeError for what is not an array, or has a dtype or layout that numpy cannot express.
    """
    if isinstance(value, np.generic):
        return np.asarray(value)
    tensor = as_tensor(value, key)
    if tensor is not None:
        return _from_torch(tensor, key)
    if is_jax(value):
        return _from_jax(value, key)
    try:
        return np.asarray(memoryview(value))
    except (TypeError, ValueError, BufferError):
        pass  # no buffer protocol, or a format that numpy does not know
    if not hasattr(value, "__dlpack__"):
        raise DTypeError(key=named(key), got=f"of Python's {type(value).__name__}", expected=_KINDS)
    try:
        return np.from_dlpack(value)
    except (TypeError, RuntimeError, BufferError) as error:
        raise DTypeError(key=named(key), got=str(error), expected="one of " + ", ".join(NAMES)) from error


def is_jax(value: object) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)


def is_elsewhere(value: object, key: object) -> bool:
    """Whether an array of a framework is not in the CPU's memory."""
    if isinstance(value, np.ndarray):
        return False
    if is_jax(value):
        return any(device.platform != "cpu" for device in value.devices())  # type: ignore[attr-defined]
    return tensor_elsewhere(value, key) is not None


def as_tensor(value: Any, key: object) -> Any | None:
    """A detached torch tensor that shares the memory of ``value``, for tensors and for DLPack on another device.

    None for all else. Raises DTypeError for what only torch could reach, if it is not imported.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return value.detach()
    if not hasattr(value, "__dlpack__") or is_jax(value) or isinstance(value, np.ndarray):
        return None
    device = tuple(map(int, value.__dlpack_device__()))
    if device[0] in _CPU_DEVICES:
        return None
    got = f"of {type(value).__name__} on DLPack device {device}"
    if torch is None:
        remedy = "an array in the CPU's memory; copy it there, or import torch, which is then used to copy it"
        raise DTypeError(key=named(key), got=got, expected=remedy)
    try:
        return torch.from_dlpack(value)
    except (TypeError, RuntimeError, BufferError, AssertionError) as error:  # the last if it was built without CUDA
        remedy = f"an array that torch can take ({error}); copy it to the CPU's memory"
        raise DTypeError(key=named(key), got=got, expected=remedy) from error


def fill(tensor: Any, data: Array, code: int) -> None:
    """Copies ``data`` (storage dtype of ``code``) into a torch tensor on any device, cast there to its dtype."""
    torch = sys.modules["torch"]
    source = torch.from_numpy(np.require(data, requirements=["C", "W"]))  # torch warns of arrays that it may not write
    tensor.copy_(source.view(torch.bfloat16) if code == BFLOAT16 else source)


def tensor_elsewhere(out: object, key: object) -> Any | None:
    """``out`` as a torch tensor, if it is not in the CPU's memory."""
    tensor = None if isinstance(out, np.ndarray) else as_tensor(out, key)
    return None if tensor is None or tensor.device.type == "cpu" else tensor


def torch_code(tensor: Any, key: object) -> int:
    """The code of a dense tensor's dtype; raises DTypeError for one that cannot travel."""
    torch = sys.modules["torch"]
    code = CODES.get(str(tensor.dtype).removeprefix("torch."))
    if code is None or tensor.layout != torch.strided:
        raise _refused(tensor, key)
    return code


def _from_torch(tensor: Any, key: object) -> Array | bfloat16:
    torch = sys.modules["torch"]
    try:
        tensor = tensor.cpu()  # itself, if it is there
        if tensor.dtype == torch.bfloat16:
            return bfloat16(tensor.view(torch.int16).numpy().view(np.uint16))
        array: Array = tensor.numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, without data, or a dtype that numpy does not have
        raise _refused(tensor, key) from error
    return array


def _refused(tensor: Any, key: object) -> DTypeError:
    got = f"{tensor.dtype} ({tensor.layout}, device {tensor.device})"
    return DTypeError(key=named(key), got=got, expected="a dense tensor with values, of one of " + ", ".join(NAMES))


def _from_jax(array: Any, key: object) -> Array:
    try:
        return np.asarray(array)
    except (TypeError, RuntimeError) as error:  # inside jit, donated, or on devices of other processes
        reason = str(error).partition("\n")[0]
        raise DTypeError(key=named(key), got=f"{array.dtype} ({reason})", expected="a jax array with values") from error

"""Stores that are not this package's: MXNet's ``KVStoreBase`` and its registry, which ``create`` looks into first."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, TypeVar

from pslite.dtypes import NAMES
from pslite.errors import ConfigError, DTypeError, ShapeError

from .arrays import Tensor, accumulate, check_out, read, write
from .keys import Group, group

_Class = TypeVar("_Class", bound=type)


class KVStoreBase:
    """What a store is to a script that knows nothing about it: MXNet's interface for plugins.

    A plugin derives from it and is registered; ``create('its name')`` then makes one, without arguments. Every method
    raises NotImplementedError here.
    """

    OPTIMIZER: ClassVar[str] = "optimizer"  # a capability: the store runs the optimizer
    kv_registry: ClassVar[dict[str, Any]] = {}  # name -> class; decorators add while modules are imported

    @staticmethod
    def register(cls: _Class) -> _Class:
        """A decorator: ``create`` knows the class by its name in lower case, which may be that of a native type.

        Raises ConfigError for what is not a class; warns if it takes the name from another.
        """
        if not isinstance(cls, type):
            raise ConfigError(name="plugin", value=f"{cls!r:.80}", allowed="register a class")
        name = cls.__name__.lower()
        other = KVStoreBase.kv_registry.get(name)
        if other is not None:
            new, old = (f"{c.__module__}.{c.__name__}" for c in (cls, other))
            warnings.warn(f"WARNING: New kvstore {new} is overriding existing kvstore {old}", stacklevel=2)
        KVStoreBase.kv_registry[name] = cls
        return cls

    def broadcast(self, key: Any, value: Any, out: Any, priority: int = 0) -> None:
        """The value of rank 0 into ``out`` on all workers."""
        raise NotImplementedError

    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0) -> Any:
        """The sum over devices and workers into ``out``, or into ``value`` without it."""
        raise NotImplementedError

    def set_optimizer(self, optimizer: Any) -> None:
        """Update what is stored with an optimizer."""
        raise NotImplementedError

    def is_capable(self, capability: str) -> bool:
        """Whether the store can do something, for instance ``KVStoreBase.OPTIMIZER``."""
        raise NotImplementedError

    def save_optimizer_states(self, fname: Any, dump_optimizer: bool = False) -> None:
        """Write the optimizer's states to a file."""
        raise NotImplementedError

    def load_optimizer_states(self, fname: Any) -> None:
        """Read them."""
        raise NotImplementedError

    @property
    def type(self) -> str:
        """The name that ``create`` knows."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        raise NotImplementedError

    @property
    def num_workers(self) -> int:
        """How many workers the job has."""
        raise NotImplementedError


@KVStoreBase.register
class TestStore(KVStoreBase):
    """MXNet's ``'teststore'``: one worker, nothing is stored. A plugin to try scripts with.

    ``broadcast`` copies, as often as called; ``pushpull`` sums over devices. Arrays as on the native types.
    """

    def broadcast(self, key: Any, value: Any, out: Any, priority: int = 0) -> None:
        for g, outs in zip(group(key, value), group(key, out, "out"), strict=True):
            if len(g.arrays) > 1:
                remedy = f"give one for key {g.key!r}"
                raise ConfigError(name="value", value=f"{len(g.arrays)} arrays", allowed=remedy)
            _fill(outs, read(g.arrays[0], g.key))

    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0) -> None:
        groups = group(key, value)
        targets = groups if out is None else group(key, out, "out")
        for g, outs in zip(groups, targets, strict=True):
            if outs is not g or len(g.arrays) > 1:
                _fill(outs, _sum(g))

    def is_capable(self, capability: str) -> bool:
        if not isinstance(capability, str) or capability.lower() != self.OPTIMIZER:
            raise ConfigError(name="capability", value=f"{capability!r:.80}", allowed=f"known is {self.OPTIMIZER!r}")
        return False

    @property
    def type(self) -> str:
        return "teststore"

    @property
    def rank(self) -> int:
        return 0

    @property
    def num_workers(self) -> int:
        return 1


def _sum(g: Group) -> Tensor:
    first, *others = tensors = [read(array, g.key) for array in g.arrays]
    for tensor in others:
        if tensor.shape != first.shape:
            raise ShapeError(key=g.key, got=list(tensor.shape), expected=list(first.shape))
        if tensor.code != first.code:
            raise DTypeError(key=g.key, got=NAMES[tensor.code], expected=NAMES[first.code])
    return Tensor(accumulate([tensor.data for tensor in tensors], first.code), first.code)


def _fill(outs: Group, tensor: Tensor) -> None:
    for out in outs.arrays:
        check_out(out, tensor.shape, outs.key)
    for out in outs.arrays:
        write(out, tensor.data, tensor.code, outs.key)

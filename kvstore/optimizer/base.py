"""What an optimizer is, the registry of optimizers by name, and how one travels to the servers."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

import numpy as np

from kvstore.arguments import check_described, check_taken, decode, encode, integer, number, parameters
from kvstore.arrays import LOW_PRECISION, Array, narrow, widen
from kvstore.bfloat16 import bfloat16
from kvstore.keys import Key
from pslite.dtypes import BFLOAT16, code_of
from pslite.errors import ConfigError

from .schedulers import LRScheduler

__all__ = ["Key", "Optimizer", "Rates", "State", "Weight", "create", "register", "registered"]

Weight = Array | bfloat16
State = dict[str, Array]
_Class = TypeVar("_Class", bound="type[Optimizer]")

_REGISTRY: dict[str, type[Optimizer]] = {}  # lower-case class name -> class; grows when register() is called
_MULTIPLIERS = ("lr_mult", "wd_mult")  # set after construction, so beside the constructor's arguments on the wire
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Rates:
    """What the hyper-parameters come to for one update of one key: with multipliers, schedule and begin_num_update."""

    lr: float
    wd: float
    count: int


class Optimizer(ABC):
    """Hyper-parameters, and pure functions from (weight, gradient, state) to the new weight and state.

    learning_rate: attribute ``lr``; None means the scheduler's base_lr, without one ``default_learning_rate``.
        If both are given, the learning rate overwrites the scheduler's base_lr.
    rescale_grad: gradients are multiplied by it first. clip_gradient: then each element is limited to
        [-clip_gradient, clip_gradient]; None, 0 and below are off. wd: weight decay.
    lr_scheduler: called with the number of updates of the key, this one included, plus begin_num_update. MXNet takes
        the largest number over all keys of one server; a number per key does not depend on where keys are placed.
    param_idx2name: {integer key: name}, for multipliers by name. With it given, weight decay is off for names
        that end in none of ``decayed_names``.
    param_dict: {key: parameter} with ``lr_mult`` and ``wd_mult``, as attributes or items, 1 where one is missing. For
        its keys they go before ``set_lr_mult`` and ``set_wd_mult``.
    multi_precision: the store keeps a float32 copy of each float16 or bfloat16 weight, and updates that.

    A subclass defines ``update``, and ``create_state`` if it needs state. It keeps each constructor argument in an
    attribute of that name, by whose current value it travels; ``@kvstore.optimizer.register`` makes it known.
    Raises ConfigError for arguments of the wrong kind.
    """

    elementwise: ClassVar[bool] = False  # True: the update of a piece of an array is that piece of the array's update
    worker_slots: ClassVar[tuple[str, ...]] = ()  # slots of create_state that the store keeps once per pushing worker
    lazy_update: bool = False  # True: a row-sparse gradient updates its rows only; slots then have the weight's rows
    default_learning_rate: ClassVar[float] = 0.01
    decayed_names: ClassVar[tuple[str, ...]] = ("_weight", "_gamma")  # ends of the names that weight decay is for

    def __init__(
        self,
        learning_rate: float | None = None,
        rescale_grad: float = 1.0,
        wd: float = 0.0,
        clip_gradient: float | None = None,
        lr_scheduler: LRScheduler | None = None,
        param_idx2name: Mapping[Key, str] | None = None,
        begin_num_update: int = 0,
        multi_precision: bool = False,
        param_dict: Mapping[Key, Any] | None = None,
    ) -> None:
        if not (lr_scheduler is None or isinstance(lr_scheduler, LRScheduler)):
            raise ConfigError(name="lr_scheduler", value=f"{lr_scheduler!r:.100}", allowed="subclass LRScheduler")
        self.lr_scheduler = lr_scheduler
        self.lr = self.default_learning_rate
        if learning_rate is not None:
            self.lr = number("learning_rate", learning_rate)
            if lr_scheduler is not None:
                lr_scheduler.base_lr = self.lr
        self.rescale_grad = number("rescale_grad", rescale_grad)
        self.wd = number("wd", wd)
        self.clip_gradient = None if clip_gradient is None else number("clip_gradient", clip_gradient)
        self.param_idx2name = _names(param_idx2name)
        self.begin_num_update = integer("begin_num_update", begin_num_update)
        self.multi_precision = bool(multi_precision)
        self.param_dict = _parameters(param_dict)
        # By field, its dict and wire when last encoded: only a short cut. The thread that pushes fills it.
        self._encodings: dict[str, tuple[dict[Any, Any], Any]] = {}
        self.set_lr_mult({})
        self.set_wd_mult({})

    @property
    def learning_rate(self) -> float:
        """The rate before schedule and multipliers: the scheduler's base_lr if there is one, else ``lr``."""
        return self.lr if self.lr_scheduler is None else self.lr_scheduler.base_lr

    def set_learning_rate(self, lr: float) -> None:
        """Raises ConfigError if a scheduler sets the learning rate."""
        if self.lr_scheduler is not None:
            raise ConfigError(name="learning_rate", value=lr, allowed="the scheduler sets it; set lr_scheduler.base_lr")
        self.lr = number("learning_rate", lr)

    def set_lr_mult(self, args_lr_mult: Mapping[Key, float]) -> None:
        """Factors on the learning rate, by key or by name of ``param_idx2name``; 1 for the others."""
        self.lr_mult = _multipliers("lr_mult", args_lr_mult)

    def set_wd_mult(self, args_wd_mult: Mapping[Key, float]) -> None:
        """Factors on the weight decay, by key or name; 1 for the others, 0 for names that param_idx2name exempts."""
        exempt: dict[Key, float] = {n: 0.0 for n in self.param_idx2name.values() if not n.endswith(self.decayed_names)}
        self.wd_mult = exempt | _multipliers("wd_mult", args_wd_mult)

    def create_state(self, key: Key, weight: Weight) -> State:
        """New named arrays that ``update`` of this key keeps from one time to the next."""
        return {}

    @abstractmethod
    def update(self, key: Key, weight: Weight, grad: Weight, state: State, count: int) -> None:
        """Updates ``weight`` and ``state`` in place, never ``grad``; ``count`` is 1 at the key's first update.

        weight, grad: arrays of one shape and dtype.
        """

    def create_state_multi_precision(self, key: Key, weight: Weight) -> State:
        """``create_state``; of a float16 or bfloat16 weight under ``multi_precision`` that of its float32 ``master``,
        which is kept in the state too.
        """
        data, code = _bits(weight)
        if not (self.multi_precision and code in LOW_PRECISION):
            return self.create_state(key, weight)
        master = widen(data, code)
        return {"master": master, **self.create_state(key, master)}

    def update_multi_precision(self, key: Key, weight: Weight, grad: Weight, state: State, count: int) -> None:
        """``update``; if there is a ``master``, of that, which the weight then is, rounded. grad may be float32."""
        master = state.get("master")
        if master is None:
            self.update(key, weight, grad, state, count)
            return
        slots = {name: slot for name, slot in state.items() if name != "master"}
        self.update(key, master, widen(*_bits(grad)), slots, count)
        data, code = _bits(weight)
        narrow(master, data, code)

    def _rates(self, key: Key, count: int) -> Rates:
        return Rates(self._lr(key, count), self._wd(key), self.begin_num_update + count)

    def _lr(self, key: Key, count: int) -> float:
        lr = self.lr if self.lr_scheduler is None else self.lr_scheduler(self.begin_num_update + count)
        return float(lr) * self._multiplier("lr_mult", key)

    def _wd(self, key: Key) -> float:
        return float(self.wd) * self._multiplier("wd_mult", key)

    def _multiplier(self, name: str, key: Key) -> float:
        if key in self.param_dict:
            return _multiplier_of(self.param_dict[key], name)
        multipliers: dict[Key, float] = getattr(self, name)
        return multipliers.get(key, multipliers.get(self.param_idx2name.get(key, key), 1.0))

    def treats_alike(self, keys: Sequence[Key]) -> bool:
        """Whether all these keys have the same rates at the same update count."""
        if not (self.param_dict or self.lr_mult or self.wd_mult):
            return True
        return len({(self._multiplier("lr_mult", key), self._multiplier("wd_mult", key)) for key in keys}) == 1

    def _clip(self, g: Array) -> None:
        """Limits each element of ``g``, in place."""
        limit = self.clip_gradient
        if limit is not None and limit > 0:
            np.clip(g, -limit, limit, out=g)

    def to_wire(self) -> list[Any]:
        """``[registered name, {hyper-parameter: value}]`` for msgpack, by their current values; not to be changed.

        Equal for equal optimizers, and cheap: stores compare it at every push to notice changes.
        Raises ConfigError if the class is not registered, or has an argument that is no attribute or no plain data.
        """
        cls = type(self)
        if _REGISTRY.get(cls.__name__.lower()) is not cls:
            remedy = "register the class with @kvstore.optimizer.register, above create() and serve()"
            raise ConfigError(name="optimizer", value=cls.__name__, allowed=remedy)
        return [cls.__name__.lower(), {name: self._encoded(name) for name in _fields(cls)}]

    def _encoded(self, name: str) -> Any:
        value = getattr(self, name, _MISSING)
        if type(value) is float or value is None:
            return value
        if isinstance(value, LRScheduler):
            return value.to_wire()
        if name == "param_dict":
            return _encode_parameters(self.param_dict)
        if type(value) is dict:  # hundreds of names, which seldom change: to compare costs less than to encode
            seen = self._encodings.get(name)
            if seen is None or seen[0] != value:
                seen = self._encodings[name] = (value.copy(), encode(name, value))
            return seen[1]
        if value is _MISSING:
            remedy = f"set self.{name} in __init__, so that it can travel to the servers"
            raise ConfigError(name=f"{type(self).__name__}.{name}", value="(missing)", allowed=remedy)
        return encode(name, value)

    def adopt(self, wire: Any) -> None:
        """Takes the hyper-parameters of an optimizer of the same class from its ``to_wire()``, in place.

        Other attributes become what the constructor makes of them.
        Raises ConfigError for another class, and as ``from_wire`` does; then nothing has changed.
        """
        other = Optimizer.from_wire(wire)
        if type(other) is not type(self):
            name = type(self).__name__.lower()
            raise ConfigError(name="optimizer", value=wire[0], allowed=f"hyper-parameters of {name!r} can be adopted")
        vars(self).update(vars(other))

    @staticmethod
    def from_wire(wire: Any) -> Optimizer:
        """The optimizer that ``to_wire`` described, built from registered classes and plain data only.

        Raises ConfigError for an unknown name, for arguments that are missing, unknown or of the wrong kind.
        """
        check_described("optimizer", wire)
        cls = _class(wire[0])
        check_taken(wire, _fields(cls))
        fields = dict(wire[1])
        scheduler, parameter_dict = fields.pop("lr_scheduler"), fields.pop("param_dict")
        values = {name: decode(name, value) for name, value in fields.items()}
        values["lr_scheduler"] = None if scheduler is None else LRScheduler.from_wire(scheduler)
        values["param_dict"] = _decode_parameters(parameter_dict)
        optimizer = cls(**{name: values[name] for name in parameters(cls)})
        Optimizer.__init__(optimizer, **{name: values[name] for name in parameters(Optimizer)})
        for name in _MULTIPLIERS:
            setattr(optimizer, name, _multipliers(name, values[name]))
        return optimizer


def register(cls: _Class) -> _Class:
    """Makes a subclass of Optimizer known by its lower-case class name; a class decorator. Warns if it overrides."""
    if not (isinstance(cls, type) and issubclass(cls, Optimizer)):
        raise ConfigError(name="register", value=f"{cls!r:.100}", allowed="decorate a subclass of Optimizer")
    name = cls.__name__.lower()
    if name in _REGISTRY:
        warnings.warn(f"optimizer {name!r} is registered again; {cls.__qualname__} overrides it", stacklevel=2)
    _REGISTRY[name] = cls
    return cls


def registered() -> list[str]:
    """The names that ``create`` knows."""
    return sorted(_REGISTRY)


def create(name: str, **kwargs: Any) -> Optimizer:
    """The optimizer registered as ``name``, in any case; raises ConfigError for unknown names and arguments."""
    cls = _class(name)
    for argument in kwargs:
        if argument not in parameters(cls):
            allowed = f"{cls.__name__} takes {', '.join(parameters(cls))}"
            raise ConfigError(name=argument, value=f"{kwargs[argument]!r:.100}", allowed=allowed)
    return cls(**kwargs)


def _class(name: Any) -> type[Optimizer]:
    cls = _REGISTRY.get(name.lower()) if isinstance(name, str) else None
    if cls is None:
        own = "a class registered with @kvstore.optimizer.register above create() and serve()"
        allowed = f"one of {', '.join(registered())}, or {own}"
        raise ConfigError(name="optimizer", value=f"{name!s:.100}", allowed=allowed)
    return cls


@cache
def _fields(cls: type[Optimizer]) -> tuple[str, ...]:
    """What travels: the constructor's arguments, and those of Optimizer even where the constructor hides them."""
    return tuple(dict.fromkeys(parameters(cls) + parameters(Optimizer) + _MULTIPLIERS))


def _multipliers(name: str, values: Mapping[Key, float]) -> dict[Key, float]:
    if not isinstance(values, Mapping):
        raise ConfigError(name=name, value=f"{values!r:.100}", allowed="give a dict {key or name: factor}")
    return {key: number(f"{name}[{key!r}]", value) for key, value in values.items()}


def _names(values: Mapping[Key, str] | None) -> dict[Key, str]:
    if not (values is None or (isinstance(values, Mapping) and all(isinstance(v, str) for v in values.values()))):
        raise ConfigError(name="param_idx2name", value=f"{values!r:.100}", allowed="give a dict {integer key: name}")
    return dict(values or {})


def _parameters(values: Mapping[Key, Any] | None) -> dict[Key, Any]:
    if not (values is None or isinstance(values, Mapping)):
        raise ConfigError(name="param_dict", value=f"{values!r:.100}", allowed="give a dict {key: parameter}")
    return dict(values or {})


def _multiplier_of(parameter: Any, name: str) -> float:
    value = parameter.get(name, 1.0) if isinstance(parameter, Mapping) else getattr(parameter, name, 1.0)
    return number(name, value)


def _encode_parameters(values: Mapping[Key, Any]) -> list[list[Any]]:
    triples = [[key, *(_multiplier_of(parameter, name) for name in _MULTIPLIERS)] for key, parameter in values.items()]
    return sorted(triples, key=lambda triple: (isinstance(triple[0], str), triple[0]))


def _decode_parameters(wire: Any) -> dict[Key, dict[str, float]]:
    triples = wire if isinstance(wire, (list, tuple)) else [wire]
    if not all(isinstance(t, (list, tuple)) and len(t) == 3 and isinstance(t[0], (int, str)) for t in triples):
        raise ConfigError(name="param_dict", value=f"{wire!r:.100}", allowed="give [[key, lr_mult, wd_mult], ...]")
    return {key: {n: number(n, v) for n, v in zip(_MULTIPLIERS, values, strict=True)} for key, *values in triples}


def _bits(weight: Weight) -> tuple[Array, int]:
    """The array in which a weight is stored, and its dtype's code."""
    if isinstance(weight, bfloat16):
        return weight.bits, BFLOAT16
    code = code_of(weight.dtype)
    return (weight.view(np.uint16) if code == BFLOAT16 else weight), code

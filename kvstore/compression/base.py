"""What a codec is, the registry of codecs by name, and how one travels to the servers."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from kvstore.arguments import check_described, check_taken, decode, encode, parameters
from kvstore.arrays import BLOCK, Array
from kvstore.sums import Deferred
from pslite.errors import ConfigError, ProtocolError, PSError

__all__ = ["Codec", "cached", "check", "create", "drop_nonfinite", "register", "registered", "salt"]

_Class = TypeVar("_Class", bound="type[Codec]")

_REGISTRY: dict[str, type[Codec]] = {}  # name -> class, a class's own name before its aliases; register() adds to it
_CACHE: dict[str, Codec] = {}  # wire form -> codec; only a short cut, so any thread may fill or clear it
_CACHED = 64  # the forms come from the network: there must be an end
_DIRECTIONS = ("push", "both")


class Codec(ABC):
    """Turns float32 numbers into a few smaller arrays, and back into float32 numbers near the first ones.

    A codec has no state: what it leaves out is kept by ``Feedback``, and its randomness comes from ``salt``, a number
    that changes with every push and that both ends know. It keeps each constructor argument in an attribute of that
    name, by which it travels; ``@kvstore.compression.register('name')`` makes it known.
    """

    elementwise: ClassVar[bool] = False  # True: a piece of an array, coded alone, gives the same values as in the whole
    pulls: ClassVar[bool] = False  # True: it is precise enough for weights, so that pulls may be compressed too
    shared: ClassVar[bool] = False  # True: all workers draw the same random numbers in a round
    seed: int = 0

    @property
    def trusted(self) -> bool:
        """Whether it cannot fail half way, as code of users may."""
        return type(self).__module__.startswith("kvstore.")

    @abstractmethod
    def encode(self, values: Array, salt: int) -> list[Array]:
        """The code of ``values`` (1-D contiguous float32, not changed): new arrays of dtypes that travel."""

    @abstractmethod
    def decode(self, code: Sequence[Array], size: int, salt: int) -> Array:
        """The ``size`` numbers that ``code`` stands for, a new 1-D float32 array.

        Raises ProtocolError for what ``encode`` cannot have made: the code comes from the network.
        """

    def feed(self, residual: Array, grad: Array, salt: int) -> list[Array]:
        """The code of ``residual + grad``; ``residual`` (both 1-D contiguous float32) keeps what it does not express.

        Overridden for speed only: the results are those of this method.
        """
        with np.errstate(all="ignore"):
            total = residual + grad  # a new array: the code may be views of it, and an error leaves the residual alone
            code = self.encode(total, salt)
            np.subtract(total, self.decoded(code, total.size, salt), out=residual)
        drop_nonfinite(residual)
        return code

    def decoded(self, code: Sequence[Array], size: int, salt: int) -> Array:
        """What ``decode`` gives, as float32 whatever it computes in; raises ConfigError if it has another shape."""
        with np.errstate(all="ignore"):
            values = np.asarray(self.decode(code, size, salt), np.float32)
        if values.shape != (size,):
            got = f"decode gave shape {list(values.shape)}"
            raise ConfigError(name=f"codec {type(self).__name__}", value=got, allowed=f"it must give shape [{size}]")
        return values

    def deferred(self, code: Sequence[Array], shape: tuple[int, ...], salt: int) -> Array | Deferred:
        """What ``decoded`` gives, of this shape; maybe not yet decoded, but all errors are raised now."""
        return self.decoded(code, math.prod(shape), salt).reshape(shape)

    def salt_of(self, key: int | str, number: int, rank: int) -> int:
        """The salt of the ``number``-th push of ``key`` by worker ``rank``."""
        return salt(self.seed, key, number, 0 if self.shared else rank)

    def __eq__(self, other: object) -> bool:
        """Whether both give the same codes: a class with the same arguments."""
        return type(other) is type(self) and all(
            getattr(self, argument, None) == getattr(other, argument, None) for argument in parameters(type(self))
        )

    def __hash__(self) -> int:
        return hash(type(self))

    def to_wire(self) -> list[Any]:
        """``[registered name, {argument: value}]`` for msgpack; equal for equal codecs.

        Raises ConfigError if the class is not registered, or has an argument that is no attribute or no plain data.
        """
        cls = type(self)
        name = next((name for name, known in _REGISTRY.items() if known is cls), None)
        if name is None:
            remedy = "decorate the class with @kvstore.compression.register('name'), above create() and serve()"
            raise ConfigError(name="codec", value=cls.__name__, allowed=remedy)
        return [name, {argument: self._encoded(argument) for argument in parameters(cls)}]

    def _encoded(self, argument: str) -> Any:
        if not hasattr(self, argument):
            remedy = f"set self.{argument} in __init__, so that it can travel to the servers"
            raise ConfigError(name=f"{type(self).__name__}.{argument}", value="(missing)", allowed=remedy)
        return encode(argument, getattr(self, argument))

    @staticmethod
    def from_wire(wire: Any) -> Codec:
        """The codec that ``to_wire`` described, built from a registered class and plain data only.

        Raises ConfigError for an unknown name, for arguments that are missing, unknown or of the wrong kind.
        """
        check_described("codec", wire)
        cls = _class(wire[0])
        check_taken(wire, parameters(cls))
        return _build(wire[0], {argument: decode(argument, value) for argument, value in wire[1].items()})


def register(name: str, *aliases: str) -> Callable[[_Class], _Class]:
    """Makes a subclass of Codec known as ``name``, in any case; a class decorator. A name that was taken is replaced.

    Put it above ``kvstore.serve()`` and ``create()``: servers run the script up to that line.
    """
    for given in (name, *aliases):
        if not (isinstance(given, str) and given and given.lower() != "none"):
            remedy = "give a name: @kvstore.compression.register('name')"
            raise ConfigError(name="register", value=f"{given!r:.100}", allowed=remedy)

    def decorate(cls: _Class) -> _Class:
        if not (isinstance(cls, type) and issubclass(cls, Codec)):
            raise ConfigError(name="register", value=f"{cls!r:.100}", allowed="decorate a subclass of Codec")
        _REGISTRY.update({given.lower(): cls for given in (name, *aliases)})
        _CACHE.clear()
        return cls

    return decorate


def registered() -> list[str]:
    """The names that ``create`` knows, aliases included."""
    return sorted(_REGISTRY)


def create(params: Mapping[str, Any]) -> tuple[Codec | None, str]:
    """The codec and the direction ('push' or 'both') of ``{'type': '2bit', 'threshold': 0.5, 'direction': 'push'}``.

    Type 'none' gives no codec. Numbers may be strings, as MXNet has them. Raises ConfigError for what is no dict, for
    an unknown type, direction or argument, for an argument's bad value, and for pulls with a codec that is too coarse.
    """
    if not isinstance(params, Mapping):
        raise ConfigError(name="compression_params", value=f"{params!r:.100}", allowed="give a dict: {'type': '2bit'}")
    arguments = {str(name): _number(value) for name, value in params.items()}
    name = arguments.pop("type", None)
    if name is None:
        raise ConfigError(name="type", value=None, allowed=f"give {{'type': name}}, {_allowed()}")
    direction = arguments.pop("direction", "push")
    if direction not in _DIRECTIONS:
        raise ConfigError(name="direction", value=f"{direction!s:.100}", allowed="one of push, both")
    cls = None if isinstance(name, str) and name.lower() == "none" else _class(name)
    known = () if cls is None else parameters(cls)
    for argument, value in arguments.items():
        if argument not in known:
            takes = f"type {name!r} takes {', '.join(('direction', *known))}"
            raise ConfigError(name=argument, value=f"{value!s:.100}", allowed=takes)
    if cls is None:
        return None, direction
    if direction == "both" and not cls.pulls:
        able = ", ".join(name for name in registered() if _REGISTRY[name].pulls)
        raise ConfigError(name="direction", value="both", allowed=f"{name} is for pushes only; both ways go {able}")
    return _build(name, arguments), direction


def cached(wire: Any) -> Codec:
    """``Codec.from_wire``, which remembers the last few: a message names its codec each time."""
    form = repr(wire)
    codec = _CACHE.get(form)
    if codec is None:
        codec = Codec.from_wire(wire)
        if len(_CACHE) >= _CACHED:
            _CACHE.clear()
        _CACHE[form] = codec
    return codec


def salt(seed: int, key: int | str, number: int, rank: int = 0) -> int:
    """64 bits that are the same in every process, and unrelated for different arguments; 1 and '1' are two keys."""
    kind = "i" if isinstance(key, int) else "s"
    text = f"{seed:d} {number:d} {rank:d} {kind}{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def check(codec: Codec, code: Sequence[Array], layout: Sequence[tuple[np.dtype[Any], int]]) -> None:
    """Raises ProtocolError unless ``code`` is one array of each given dtype and length."""
    fits = isinstance(code, (list, tuple)) and len(code) == len(layout)
    for array, (dtype, length) in zip(code, layout, strict=True) if fits else ():
        fits = fits and isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == (length,)
    if not fits:
        expected = ", ".join(f"{dtype}[{length}]" for dtype, length in layout)
        raise ProtocolError(f"malformed code of a {type(codec).__name__}: expected {expected}, got {_shown(code)}")


def drop_nonfinite(residual: Array) -> None:
    """Sets NaN and infinity to 0, in place: a bad gradient does harm to one push only, not to all that follow."""
    for low in range(0, residual.size, BLOCK):
        block = residual[low : low + BLOCK]
        finite = np.isfinite(block)
        if not finite.all():
            block[~finite] = 0


def _shown(code: Any) -> str:
    if not isinstance(code, (list, tuple)):
        return f"{code!r:.100}"
    return ", ".join(f"{a.dtype}{list(a.shape)}" if isinstance(a, np.ndarray) else f"{a!r:.40}" for a in code[:4])


def _class(name: Any) -> type[Codec]:
    cls = _REGISTRY.get(name.lower()) if isinstance(name, str) else None
    if cls is None:
        raise ConfigError(name="type", value=f"{name!s:.100}", allowed=_allowed())
    return cls


def _allowed() -> str:
    own = "a codec registered with @kvstore.compression.register above create() and serve()"
    return f"one of {', '.join(registered())}, none, or {own}"


def _build(name: str, arguments: Mapping[str, Any]) -> Codec:
    try:
        return _class(name)(**arguments)
    except PSError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:  # the constructor of a user's codec
        raise ConfigError(name=name, value=f"{dict(arguments)!r:.100}", allowed=str(error)) from error


def _number(value: Any) -> Any:
    """A string that is a number as that number, anything else itself."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(value) if value.strip().lstrip("+-").isdecimal() else number

"""Constructor arguments as plain data: what an optimizer, scheduler or codec needs to be built again elsewhere.

Only numbers, strings, None, bools, lists and mappings of these travel; nothing is ever evaluated.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pslite.errors import ConfigError

__all__ = ["check_described", "check_taken", "decode", "encode", "integer", "number", "parameters"]

_PARAMETERS: dict[type, tuple[str, ...]] = {}  # what parameters() found; any thread may add the same again
_KINDS = "give a number, a string, a bool, None, or a list or dict of these"


def number(name: str, value: Any) -> float:
    """``value`` as a float; raises ConfigError if it is not a real number."""
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(name=name, value=_shown(value), allowed="give a number")


def integer(name: str, value: Any, least: int = 0) -> int:
    """``value`` as an int; raises ConfigError if it is not an integer, or below ``least``."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least:
        return int(value)
    raise ConfigError(name=name, value=_shown(value), allowed=f"give an integer >= {least}")


def parameters(cls: type) -> tuple[str, ...]:
    """The names of the arguments that ``cls(...)`` takes, followed through ``**kwargs`` to its bases."""
    if cls not in _PARAMETERS:
        _PARAMETERS[cls] = _inspected(cls)
    return _PARAMETERS[cls]


def _inspected(cls: type) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if init is None:
            continue
        found = list(inspect.signature(init).parameters.values())[1:]
        names.update((p.name, None) for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in found):
            break
    return tuple(names)


def check_described(what: str, wire: Any) -> None:
    """Raises ConfigError unless ``wire`` is ``[name, {argument: value}]``."""
    if not (isinstance(wire, (list, tuple)) and len(wire) == 2 and isinstance(wire[1], dict)):
        raise ConfigError(name=what, value=f"{wire!r:.100}", allowed="give [name, {argument: value}]")


def check_taken(wire: Any, fields: Collection[str]) -> None:
    """Raises ConfigError unless the arguments of ``wire`` are ``fields``, no more and no less."""
    if set(wire[1]) != set(fields):
        raise ConfigError(name=wire[0], value=f"{sorted(map(str, wire[1]))}", allowed=f"takes {', '.join(fields)}")


def encode(name: str, value: Any) -> Any:
    """``value`` for msgpack; a mapping becomes ``{"map": [[key, value], ...]}``, so that its keys may be integers."""
    if _scalar(value):
        return value
    if isinstance(value, np.generic):
        return _plain(name, value)
    if isinstance(value, (list, tuple)):
        return [_plain(name, item) for item in value]
    if isinstance(value, Mapping):
        pairs = [[_plain(name, key), _plain(name, item)] for key, item in value.items()]
        return {"map": sorted(pairs, key=lambda pair: (str(type(pair[0])), pair[0]))}
    raise ConfigError(name=name, value=_shown(value), allowed=_KINDS)


def decode(name: str, value: Any) -> Any:
    """What ``encode`` encoded; raises ConfigError for anything that it never makes."""
    if _scalar(value):
        return value
    if isinstance(value, (list, tuple)) and all(map(_scalar, value)):
        return list(value)
    if isinstance(value, dict) and list(value) == ["map"] and isinstance(value["map"], (list, tuple)):
        pairs = value["map"]
        if all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_scalar, pair)) for pair in pairs):
            return dict(pairs)
    raise ConfigError(name=name, value=_shown(value), allowed=_KINDS)


def _plain(name: str, value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if not _scalar(value):
        raise ConfigError(name=name, value=_shown(value), allowed=_KINDS)
    return value


def _scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _shown(value: Any) -> Any:
    """A value as an error's field, which holds nothing but numbers and strings."""
    return value if _scalar(value) else f"{value!r:.100}"

"""What a call is about: keys and arrays in all the forms that scripts use, made one list of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pslite.errors import ConfigError, KeyTypeError

from .arrays import is_array

Key = int | str


@dataclass(slots=True)
class Group:
    """One key of a call with its arrays, one for each device."""

    key: Key
    arrays: list[Any] = field(default_factory=list)


def group(keys: Any, values: Any, what: str = "value") -> list[Group]:
    """Normalise ``(key, value)`` of a call: a key with one array or a list of them, or lists of both.

    The groups are in the order of first mention; a key that is mentioned twice has the arrays of both mentions.
    Raises KeyTypeError, and ConfigError if the lengths differ.
    """
    groups: dict[Key, Group] = {}
    for key, value in _pairs(keys, values, what):
        groups.setdefault(key, Group(key)).arrays.append(value)
    if len({type(key) for key in groups}) > 1:
        raise KeyTypeError(key=", ".join(repr(k) for k in groups), reason="int and str keys cannot be mixed")
    return list(groups.values())


def keys_of(keys: Any) -> list[Key]:
    """The keys of a call without values."""
    return [key for key, _ in _pairs(keys, None, "key")]


def checked(key: Any) -> Key:
    """The key as int or str; numpy integers are integers, numpy strings are strings."""
    if isinstance(key, str):
        text = str.__str__(key)
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):  # os.fsdecode makes such strings
            raise KeyTypeError(key=repr(key), reason="half of a surrogate pair has no UTF-8, and cannot travel")
        return text
    if isinstance(key, (int, np.integer)):
        number = int(key)
        if not -(2**63) <= number < 2**63:
            raise KeyTypeError(key=repr(key), reason="integer keys must fit into 64 bits")
        return number
    raise KeyTypeError(key=f"{key!r:.80}", reason=f"keys are int or str, not {type(key).__name__}")


def _pairs(keys: Any, values: Any, what: str) -> list[tuple[Key, Any]]:
    if not isinstance(keys, (list, tuple)):
        key = checked(keys)
        if values is None or is_array(values):
            return [(key, values)]
        if not values:
            remedy = f"give an array for key {key!r}, or one per device"
            raise ConfigError(name=what, value="an empty list", allowed=remedy)
        return [(key, value) for value in values]
    if values is None:
        values = [None] * len(keys)
    if not isinstance(values, (list, tuple)) or len(values) != len(keys):
        got = f"{len(values)} entries" if isinstance(values, Sequence) else type(values).__name__
        raise ConfigError(name=what, value=got, allowed=f"give a list with one entry for each of the {len(keys)} keys")
    return [pair for key, value in zip(keys, values, strict=True) for pair in _pairs(key, value, what)]

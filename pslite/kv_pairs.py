"""Key-value pairs, and how they are cut into one slice per server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import dtypes
from .errors import ConfigError, ProtocolError
from .wire import Flag, Kind, Message

Array = np.ndarray[Any, Any]

_UINT64 = np.dtype(np.uint64)

# Bits of the first element of a DATA message's body.
_HAS_VERSIONS, _HAS_LENS, _HAS_ROUNDS, _IS_LIST, _HAS_KINDS = 1, 2, 4, 8, 16


@dataclass(slots=True, eq=False)
class KVPairs:
    """Keys and their values.

    ``keys``: uint64, unique and ascending. ``vals``: either one 1-D array with the values of all keys behind each
    other, or a list of arrays of any shape and dtype. ``lens``: int64, how many values, or arrays, each key has;
    without it all have the same number of values, or one array. Optional and uint64, one for each key: ``versions``
    and ``rounds``, the version that a value is, or was computed from, and the sender's count of pushes of that key;
    ``kinds``, what the application calls the form of a value. ``meta``: what came with the pairs.
    """

    keys: NDArray[np.uint64]
    vals: Array | list[Array]
    lens: NDArray[np.int64] | None = None
    versions: NDArray[np.uint64] | None = None
    rounds: NDArray[np.uint64] | None = None
    codes: list[int] | None = None  # dtype codes when ``vals`` is a list and numpy's dtype does not tell (bfloat16)
    kinds: NDArray[np.uint64] | None = None
    meta: Any = None
    lent: bool = False  # the arrays of ``vals`` are another process's memory, which it may write to again

    def slice(self, lo: int, hi: int) -> KVPairs:
        """The pairs from index ``lo`` to ``hi``, as views."""
        if hi - lo == len(self.keys):
            return self
        part = replace(
            self,
            keys=self.keys[lo:hi],
            versions=None if self.versions is None else self.versions[lo:hi],
            rounds=None if self.rounds is None else self.rounds[lo:hi],
            kinds=None if self.kinds is None else self.kinds[lo:hi],
            lens=None if self.lens is None else self.lens[lo:hi],
        )
        if isinstance(self.vals, list):
            if self.vals:
                first, end = (lo, hi) if self.lens is None else (int(self.lens[:lo].sum()), int(self.lens[:hi].sum()))
                part.vals = self.vals[first:end]
                part.codes = None if self.codes is None else self.codes[first:end]
        elif self.lens is None:
            per_key = len(self.vals) // max(len(self.keys), 1)
            part.vals = self.vals[lo * per_key : hi * per_key]
        else:
            ends = np.concatenate([[0], np.cumsum(self.lens)])
            part.vals = self.vals[int(ends[lo]) : int(ends[hi])]
        return part

    def kept(self) -> KVPairs:
        """These pairs, in memory that nobody else will write to."""
        if self.lent:
            self.vals = [array.copy() for array in self.vals] if isinstance(self.vals, list) else self.vals.copy()
            self.lent = False
        return self

    def arrays(self) -> list[list[Array]]:
        """The arrays of each key, when ``vals`` is a list."""
        assert isinstance(self.vals, list)
        if self.lens is None:
            return [[array] for array in self.vals]
        ends = itertools.accumulate(self.lens.tolist(), initial=0)
        return [self.vals[lo:hi] for lo, hi in itertools.pairwise(ends)]


Slicer = Callable[[KVPairs, Sequence[tuple[int, int]]], list[KVPairs | None]]
"""Cuts pairs by the servers' key ranges: one entry per server, None for a server that gets nothing."""


def default_slicer(pairs: KVPairs, ranges: Sequence[tuple[int, int]]) -> list[KVPairs | None]:
    """Each server gets the keys in its range."""
    if len(ranges) == 1:
        return [pairs if len(pairs.keys) else None]
    bounds = [int(np.searchsorted(pairs.keys, np.uint64(first))) for first, _ in ranges[1:]]
    edges = [0, *bounds, len(pairs.keys)]
    return [pairs.slice(lo, hi) if hi > lo else None for lo, hi in itertools.pairwise(edges)]


def checked_keys(keys: ArrayLike) -> NDArray[np.uint64]:
    """Keys as uint64; raises ConfigError unless they are unique and ascending, which slicing relies on."""
    array = np.asarray(keys)
    if array.dtype != np.uint64:
        if array.dtype.kind not in "iu" or (array.size and array.min() < 0):
            raise ConfigError(name="keys", value=str(array.dtype), allowed="give integers from 0 to 2**64 - 1")
        array = array.astype(np.uint64)
    if array.ndim != 1 or (array.size > 1 and not bool(np.all(array[1:] > array[:-1]))):
        raise ConfigError(
            name="keys", value=f"shape {array.shape}", allowed="keys must be 1-D, unique and ascending: sort them first"
        )
    return array


def checked_pairs(keys: ArrayLike, vals: Any, lens: ArrayLike | None) -> KVPairs:
    """Pairs of one flat array, with the lengths checked."""
    checked = checked_keys(keys)
    flat = np.ascontiguousarray(vals)
    if flat.ndim != 1:
        raise ConfigError(
            name="vals", value=f"shape {flat.shape}", allowed="give one 1-D array with all values behind each other"
        )
    if lens is None:
        if len(flat) % max(len(checked), 1):
            raise ConfigError(
                name="vals", value=f"{len(flat)} values", allowed=f"{len(checked)} keys of equal length, or pass lens"
            )
        return KVPairs(checked, flat)
    lengths = np.asarray(lens, np.int64)
    if lengths.shape != checked.shape or int(lengths.sum()) != len(flat) or (lengths < 0).any():
        raise ConfigError(
            name="lens",
            value=f"{lengths.size} lengths, sum {int(lengths.sum())}",
            allowed=f"one for each of {len(checked)} keys, sum {len(flat)}",
        )
    return KVPairs(checked, flat, lengths)


_U64, _I64 = dtypes.CODES["uint64"], dtypes.CODES["int64"]
_COLUMNS = (
    (_HAS_VERSIONS, "versions", _U64),
    (_HAS_LENS, "lens", _I64),
    (_HAS_ROUNDS, "rounds", _U64),
    (_HAS_KINDS, "kinds", _U64),
)


def pack(pairs: KVPairs, message: Message, meta: Any) -> Message:
    """Put pairs into a message: arrays are keys, the columns that there are, in a fixed order, then the values."""
    bits = 0
    arrays: list[np.ndarray[Any, Any]] = [pairs.keys]
    codes = [_U64]
    for bit, name, code in _COLUMNS:
        column = getattr(pairs, name)
        if column is not None:
            bits |= bit
            arrays.append(column)
            codes.append(code)
    if isinstance(pairs.vals, list):
        bits |= _IS_LIST
        if pairs.codes is not None:
            message.codes = codes + pairs.codes
        arrays += pairs.vals
    else:
        arrays.append(pairs.vals)
    message.arrays = arrays
    message.body = [bits, meta]
    return message


def pull_again(asked: Message) -> Message:
    """What asks once more for the values of a pull or pushpull, as they are now, and not by reference.

    They come at once: to wait for pushes that were made since could be to wait for ever.
    """
    bits = asked.body[0]
    arrays, codes = asked.arrays, asked.codes
    if asked.flags & Flag.PUSH:  # which was done: its values need not travel again
        bits, arrays, codes = _IS_LIST, arrays[:1], None
    flags = asked.flags | Flag.REPLAY | Flag.BY_VALUE
    again = Message(Kind.REQUEST, op=asked.op, flags=flags, cmd=asked.cmd, priority=asked.priority)
    again.body, again.arrays, again.codes = [bits, asked.body[1]], arrays, codes
    return again


def _total(lens: NDArray[Any]) -> int:
    """The number of arrays that these lengths announce."""
    if lens.dtype != np.int64 or (lens < 0).any():
        raise ProtocolError("the lengths of a key-value message are malformed")
    return sum(lens.tolist())


def unpack(message: Message) -> KVPairs:
    """The pairs in a DATA message; raises ProtocolError if it is malformed."""
    if not message.arrays:
        return KVPairs(np.empty(0, np.uint64), [], meta=message.body)
    if not (isinstance(message.body, list) and len(message.body) == 2 and isinstance(message.body[0], int)):
        raise ProtocolError("a key-value message without its description")
    bits, arrays = message.body[0], message.arrays
    lent = bool(message.leases)  # what is looked at is copied before: a peer could change it afterwards
    keys, head = arrays[0].copy() if lent else arrays[0], 1
    if keys.ndim != 1 or keys.dtype != _UINT64:
        raise ProtocolError("a key-value message lacks its keys")
    pairs = KVPairs(keys, [], meta=message.body[1], lent=lent)
    for bit, name, _ in _COLUMNS:
        if bits & bit:
            if head == len(arrays) or arrays[head].shape != keys.shape:
                raise ProtocolError("the keys, versions and lengths of a key-value message do not fit each other")
            setattr(pairs, name, arrays[head].copy() if lent else arrays[head])
            head += 1
    pairs.vals = values = arrays[head:]
    if bits & _IS_LIST:
        expected = {0, len(keys)} if pairs.lens is None else {_total(pairs.lens)}
        if len(values) not in expected:
            raise ProtocolError(f"{len(values)} values came for {len(keys)} keys")
        pairs.codes = (message.codes or [])[head:]
    else:
        if len(values) != 1 or values[0].ndim != 1:
            raise ProtocolError("the flat values of a key-value message are missing")
        pairs.vals = values[0]
    return pairs

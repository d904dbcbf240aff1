"""Keys of a list that are too large to travel behind each other: what is the same in every call with the list.

Which of them travel in one message is found once, with all that describes it. So a call makes a few steps for each
message, and for each array only what concerns its memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from pslite import KVPairs
from pslite.dtypes import storage
from pslite.errors import ProtocolError
from pslite.memory import PACK_BELOW, Memory

from .arrays import Array
from .keys import Key
from .ledger import PULL, PULL_RAW, PUSH, PUSH_RAW, PUSHES, VERSION, Ledger
from .records import Piece, Record

Cut = tuple[int, Record, Piece]
"""A piece of a key, with the key's place in the call's list."""


class Load:
    """What travels in one message to one server, in the order of the keys on the wire."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
        cuts = sorted(cuts, key=lambda cut: cut[2].wire)
        self.wires = np.array([piece.wire for _, _, piece in cuts], np.uint64)
        self.at = np.array([record.at for _, record, _ in cuts], np.intp)
        self._places = [place for place, _, _ in cuts]
        self._keys = [record.key for _, record, _ in cuts]
        self._rows = [None if record.whole else slice(piece.first, piece.end) for _, record, piece in cuts]
        self._codes = [record.spec.code for _, record, _ in cuts]
        self._layouts = [(record.shape_of(piece), storage(record.spec.code)) for _, record, piece in cuts]

    def _of(self, arrays: Sequence[Array]) -> list[Array]:
        """What this load has of a call's arrays, as views."""
        return [
            arrays[place] if rows is None else arrays[place][rows]
            for place, rows in zip(self._places, self._rows, strict=True)
        ]

    def pushed(self, arrays: Sequence[Array], lent: Collection[Key], memory: Memory, ledger: Ledger) -> KVPairs:
        """What is pushed of a call's arrays: copies, but for the keys whose arrays are lent."""
        pairs = zip(self._keys, self._of(arrays), strict=True)
        parts = [part if key in lent else _copied(part, memory) for key, part in pairs]
        versions, rounds = ledger.column(VERSION, self.at), ledger.column(PUSHES, self.at)
        return KVPairs(self.wires, parts, versions=versions, rounds=rounds, codes=self._codes)

    def fill(self, outs: Sequence[Array], answer: KVPairs) -> None:
        """Write an answer into the caller's arrays."""
        values = answer.vals
        if [(value.shape, value.dtype) for value in values] != self._layouts or answer.kinds is not None:
            raise ProtocolError(f"values came that are not those of the {len(self._layouts)} keys that were asked for")
        for out, value in zip(self._of(outs), values, strict=True):
            np.copyto(out, value)


def _copied(array: Array, memory: Memory) -> Array:
    own: Array = np.empty(array.shape, array.dtype) if array.nbytes < PACK_BELOW else memory.empty(
        array.shape, array.dtype
    )  # fmt: skip
    np.copyto(own, array)
    return own


class Loads:
    """All loads of a list, and the keys that are in them. Nothing of it changes."""

    def __init__(self, places: Sequence[int], records: Sequence[Record], servers: Sequence[int], at_once: int) -> None:
        """``servers``: the first key on the wire of each; ``at_once``: bytes of values in a message."""
        mine = self.records = [records[place] for place in places]
        self._places = list(places)
        self.keys = [record.key for record in mine]
        self.at = np.array([record.at for record in mine], np.intp)
        self._layouts = [(record.spec.shape, record.dtype) for record in mine]
        self._nbytes = np.array([record.spec.nbytes for record in mine], np.int64)
        cuts = [(place, record, piece) for place, record in zip(places, mine, strict=True) for piece in record.pieces]
        self.each = [Load(part) for part in _parted(cuts, servers, at_once)]

    def of(self, items: Sequence[Any]) -> list[Any]:
        """These keys' part of a call's arrays."""
        return [items[place] for place in self._places]

    def takes(self, arrays: Sequence[Any], out: bool = False) -> bool:
        """Whether these, one for each key of the list, are plain here and as at init; ``out``: to be written to."""
        mine = self.of(arrays)
        return (
            set(map(type, mine)) <= {np.ndarray}
            and [(array.shape, array.dtype) for array in mine] == self._layouts
            and not (out and (False in [a.flags.writeable for a in mine] or len(set(map(id, mine))) < len(mine)))
        )

    def pushed(
        self, arrays: Sequence[Array], lent: Collection[Key], memory: Memory, ledger: Ledger
    ) -> Iterator[KVPairs]:
        """What is pushed, and counted, made when it is asked for. ``lent``: keys whose arrays need not be copied."""
        ledger.push(self.at)
        ledger.count(PUSH, self.at, self._nbytes)
        ledger.count(PUSH_RAW, self.at, self._nbytes)
        for load in self.each:
            yield load.pushed(arrays, lent, memory, ledger)

    def wanted(self) -> Iterator[KVPairs]:
        """A pull of all."""
        return (KVPairs(load.wires, []) for load in self.each)

    def counted(self, versions: Sequence[tuple[Load, Array]], ledger: Ledger) -> None:
        """A pull is done, with these versions."""
        ledger.count(PULL, self.at, self._nbytes)
        ledger.count(PULL_RAW, self.at, self._nbytes)
        at = np.concatenate([load.at for load, _ in versions])
        came = np.concatenate([column for _, column in versions])
        newest_first = np.argsort(came)[::-1]  # of a key in pieces the oldest counts: it is set last
        ledger.set(VERSION, at[newest_first], came[newest_first])


class Arriving:
    """A pull of loads: values go into ``outs``, one for each key of the list. All runs on the leading thread."""

    def __init__(self, loads: Loads, outs: Sequence[Array], ledger: Ledger, result: Any = None) -> None:
        self._loads, self._outs, self._ledger, self._result = loads, outs, ledger, result
        self._by_first = {int(load.wires[0]): load for load in loads.each}
        self._versions: dict[int, tuple[Load, Array]] = {}  # of what came, by its first key on the wire

    def take(self, answer: KVPairs) -> None:
        """Put an answer where it belongs; does no harm if it is done again."""
        first = int(answer.keys[0]) if len(answer.keys) else -1
        load = self._by_first.get(first)
        if load is None or answer.versions is None or not isinstance(answer.vals, list):
            raise ProtocolError("an answer of values that were not asked for")
        load.fill(self._outs, answer)
        self._versions[first] = load, answer.versions

    def finish(self, _: object) -> Any:
        """What the call returns, when all is there."""
        self._loads.counted(list(self._versions.values()), self._ledger)
        return self._result


def _parted(cuts: Sequence[Cut], servers: Sequence[int], at_once: int) -> Iterator[list[Cut]]:
    """Messages of about ``at_once`` bytes, in the order in which the call's list fills them."""
    open: dict[int, tuple[list[Cut], int]] = {}  # by server: what has no message yet, and its bytes
    for cut in cuts:
        _, record, piece = cut
        server = max(first for first in servers if first <= piece.wire)
        shape = record.shape_of(piece)
        nbytes = int(np.prod(shape)) * record.dtype.itemsize
        part, size = open.pop(server, ([], 0))
        if part and size + nbytes > at_once:
            yield part
            part, size = [], 0
        open[server] = [*part, cut], size + nbytes
    yield from (part for part, _ in open.values())

"""P3: every array travels in slices, so that what the next forward pass needs first overtakes the rest.

(Jayarajan et al., Priority-based Parameter Propagation, MLSys 2019.) ``pslite-launch --p3`` asks for it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from pslite import Postoffice
from pslite.errors import ConfigError, StorageError

from .burst import BurstStore
from .dist import DistStore
from .keys import Key
from .ledger import Ledger
from .optimizer.base import Optimizer
from .records import Piece, Planner, Record
from .rows import Content
from .rules import Updater
from .single import SingleStore
from .spec import Spec


class P3Store(DistStore):
    """A synchronous store that sums: slices of ``slice_threshold`` elements, each a message with the call's priority.

    Slices have no optimizer, no compression and no row-sparse keys, as in MXNet.
    """

    keys_per_message = 1

    def __init__(self, name: str, office: Postoffice) -> None:
        super().__init__(name, office)
        self._planner = Slicer(office.server_key_ranges(), office.config.slice_threshold, self._ledger)

    def _create(self, created: dict[Key, tuple[Spec, Content]]) -> list[Record]:
        for spec, _ in created.values():
            if spec.sparse:
                raise StorageError(key=spec.key, got="a RowSparseArray", expected="a dense array, under p3")
        return super()._create(created)

    def set_optimizer(self, optimizer: Optimizer) -> None:
        raise _refused("optimizer", type(optimizer).__name__)

    def set_updater(self, updater: Updater | str) -> None:
        raise _refused("updater", updater if isinstance(updater, str) else getattr(updater, "__name__", "a function"))

    def set_gradient_compression(self, compression_params: Any) -> None:
        raise _refused("compression_params", compression_params)

    def is_capable(self, capability: str) -> bool:
        super().is_capable(capability)  # raises for an unknown word
        return False


def check_type(name: str, p3: bool) -> None:
    """Raise unless a job of this type may be a p3 one."""
    if p3 and "async" in name:
        raise ConfigError(name="type", value=name, allowed="p3 has no asynchronous update: use 'dist_sync'")


def open_store(name: str, office: Postoffice) -> DistStore:
    """The store of a worker whose Postoffice has joined."""
    if office.config.p3:
        return P3Store(name, office)
    # What a server knows of a burst whose calls end one by one would end with it, before all was asked for.
    return SingleStore(name, office) if office.config.servers_return else BurstStore(name, office)


class Slicer(Planner):
    """The lead's decision where slices go: one server after the other."""

    def __init__(self, ranges: Sequence[tuple[int, int]], threshold: int, ledger: Ledger) -> None:
        super().__init__(ranges, threshold, ledger)
        self._threshold = threshold
        self._number = itertools.count()  # of slices, over all keys

    def go_on(self, used: Sequence[int], nbytes: Sequence[int]) -> None:
        self._number = itertools.count(max(used) * len(self._starts))

    def plan(self, spec: Spec) -> Record:
        """Cut one key into slices."""
        size = math.prod(spec.shape)
        firsts = range(0, max(size, 1), self._threshold)
        pieces = [self._slice(first, min(first + self._threshold, size)) for first in firsts]
        return Record(spec, pieces, self._ledger, flat=True)

    def _slice(self, first: int, end: int) -> Piece:
        number = next(self._number)
        server = number % len(self._starts)
        return Piece(self._starts[server] + number // len(self._starts), first, end)


def _refused(name: str, value: Any) -> ConfigError:
    allowed = "p3 sums and does nothing else: update the weights on the workers, or start the job without --p3"
    return ConfigError(name=name, value=f"{value!r:.80}", allowed=allowed)

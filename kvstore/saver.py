"""How a worker takes part in ``save`` and ``load``, which are collective."""

from __future__ import annotations

import abc
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np

from pslite import SERVER_GROUP, server_id
from pslite.dtypes import storage
from pslite.errors import ConfigError, PSError

from .checkpoint.files import Held, Settings, opened, save
from .compressing import Compression
from .keys import Key
from .ledger import Ledger
from .member import Member
from .records import Record
from .rows import Content, Rows
from .rules import OptimizerRule, Rule, checked_states, resumed, states_of, wire_of
from .spec import Spec
from .steps import within_step
from .transfer import KEYS_PER_BATCH, batches, pull_units, push_units, stash, unstash

_T = TypeVar("_T")


class Saver(Member):
    """The part of a distributed store that knows checkpoints; its subclass has the keys."""

    _records: dict[Key, Record]
    _ledger: Ledger
    _compression: Compression
    _rule: Rule | None
    _leads: bool  # it makes keys, and carries out what is decided for all

    @abc.abstractmethod
    def _make(self, created: dict[Key, tuple[Spec, Content]]) -> list[Record]:
        """The lead sends the values of new keys to the servers, then tells everybody where they are."""

    @abc.abstractmethod
    def _tell_changes(self) -> None:
        """Tell the servers what the user has changed in the optimizer since; the lock is held."""

    @abc.abstractmethod
    def _set_rule(self, rule: Rule, wire: Any) -> None:
        """Update with another rule from now on."""

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """A collective call that comes after all pushes of this worker. In dist_async none comes between until its end;
        in dist_sync one may have to, so that a round ends."""
        self._raise_failed()
        with self._collective, self._pushing if "async" in self.type else nullcontext():
            with self._lock:
                self._tell_changes()
            self._flush()
            yield

    def _save(self, path: str | os.PathLike[str], values: bool, optimizer: bool) -> None:
        if not values:
            checked_states(self._rule)
        with self._settled(), self._stashing():
            if not self._leads and values:
                stash(self._worker, list(self._records.values()), self.rank, self._held)
            what = "save" if values else "save_optimizer_states"
            self._decided(what, lambda ranks: self._write(path, values, optimizer, ranks))

    def _write(self, path: str | os.PathLike[str], values: bool, optimizer: bool, ranks: list[int]) -> None:
        """The lead writes what all servers and workers have."""
        records = list(self._records.values())
        others = (held for r in ranks if r != self.rank for held in unstash(self._worker, records, r))
        own = (self._held(record.key) for record in records)
        save(
            path,
            Settings(self.type, self.num_workers, wire_of(self._rule) if optimizer else None, states_of(self._rule)),
            pull_units(self._worker, records, values),
            itertools.chain(own, others) if values else (),
        )

    def _held(self, key: Key) -> Held:
        """This worker's part of a key."""
        with self._lock:
            feedback = self._compression.feedback.get((key, 0))
            residual = None if feedback is None else feedback.residual.copy()
            return Held(key, self.rank, self._records[key].pushes, residual)

    @contextmanager
    def _stashing(self) -> Iterator[None]:
        """In the end the servers forget what they had for this worker."""
        try:
            yield
        finally:
            with suppress(PSError):  # the job is over: so is the stash
                self._control.request(0, ["clear stash", None], SERVER_GROUP)

    def checkpoint(self) -> str:
        self._raise_failed()
        if not self._office.config.checkpoint_dir:
            allowed = "start the job with --checkpoint-dir DIR, or call kv.save(path) on every worker"
            raise ConfigError(name="PSLITE_CHECKPOINT_DIR", value=None, allowed=allowed)
        self._flush()
        return str(self._ask_for_checkpoints("checkpoint"))

    def _ask_for_checkpoints(self, what: str) -> Any:
        """Server 0 leads what the servers write by themselves."""
        return self._checkpoints.wait(self._checkpoints.request(0, [what, None], server_id(0)))[0]

    def _load(self, path: str | os.PathLike[str], values: bool) -> None:
        with self._settled(), self._stashing():
            what = "load" if values else "load_optimizer_states"
            created, rule = self._decided(what, lambda ranks: self._read(path, values, ranks))
            if not self._leads:
                self._resume(rule)
                for batch in in_batches(created):
                    found = self._office.lookup([repr(k) for k in batch])
                    self._add([Record.from_wire(k, found[repr(k)], self._ledger) for k in batch])
            if values:
                self._take(list(unstash(self._worker, list(self._records.values()), self.rank)))

    def _take(self, parts: Iterable[Held]) -> None:
        """Go on with this worker's parts of all keys."""
        with self._lock:
            self._compression.feedback.clear()
            for held in parts:
                self._records[held.key].pushes = within_step(held.pushes)  # steps are those of this job
                self._compression.hold(self._records[held.key].spec, 0, held.residual)

    def _read(self, path: str | os.PathLike[str], values: bool, ranks: list[int]) -> list[Any]:
        """The lead gives the servers what was saved; returns the keys that are new, and the rule."""
        with opened(path) as checkpoint:
            specs = {record.key: record.spec for record in self._records.values()}
            checkpoint.check(specs, values)
            wire = checkpoint.settings.rule
            checkpoint.check_units(values, resumed(self._rule, wire, checkpoint.settings.states_of))
            self._resume(wire)
            created = {key: spec for key, spec in checkpoint.specs.items() if key not in specs}
            self._add(self._make({key: (spec, _nothing(spec)) for key, spec in created.items()}))
            for batch in batches(self._records[key] for key in checkpoint.specs):
                push_units(self._worker, ((record, checkpoint.unit(record.key, values)) for record in batch))
            for rank in ranks if values else ():
                stash(self._worker, list(self._records.values()), rank, partial(checkpoint.held, stream=rank))
        return [list(created), wire]

    def _add(self, records: list[Record]) -> None:
        with self._lock:
            for record in records:
                self._key_type = type(record.key)
                self._records[record.key] = record

    def _resume(self, wire: Any) -> None:
        """Go on with the rule that was saved."""
        rule = resumed(self._rule, wire)
        if rule is self._rule or rule is None:
            return
        if isinstance(self._rule, OptimizerRule):
            with self._lock:
                self._rule.optimizer.adopt(wire[1])
                self._tell_changes()
        elif isinstance(rule, OptimizerRule):
            self.set_optimizer(rule.optimizer)
        else:
            self._set_rule(rule, rule.to_wire())


def _nothing(spec: Spec) -> Content:
    """The value of a new key until the saved one is there."""
    if spec.sparse:
        return Rows(np.empty(0, np.int64), np.empty((0, *spec.shape[1:]), storage(spec.code)))
    return np.zeros(spec.shape, storage(spec.code))


def in_batches(items: list[_T]) -> list[list[_T]]:
    """Keys that are looked up together."""
    return [items[lo : lo + KEYS_PER_BATCH] for lo in range(0, len(items), KEYS_PER_BATCH)]

"""The stores of one process: 'local' and 'device'. The numbers are those of dist_sync with one worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from pslite.dtypes import storage
from pslite.errors import ClosedError, ConfigError, DuplicateKeyError

from .arrays import Array, typed
from .base import KVStore, check_priority
from .checkpoint.files import Held, Settings, opened, save
from .compressing import Compression, Traffic, setting
from .contents import RowsWanted, check_outs, checked, fill, read_content, results, rows_returned, rows_wanted, summed
from .handle import Handle
from .keys import Group, Key, group
from .optimizer.base import Optimizer
from .rows import Content, Rows
from .rules import (
    OptimizerRule,
    Rule,
    Updater,
    UpdaterRule,
    checked_states,
    resumed,
    states_of,
    updater_named,
    wire_of,
)
from .sparse import RowSparseArray
from .spec import Spec
from .tracing import traced
from .value import Value


class LocalStore(KVStore):
    """Values in this process; ``rank`` is 0, ``num_workers`` 1, barriers and commands do nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._lock = threading.RLock()  # an updater may use the store; guards all below
        self._values: dict[Key, Value] = {}
        self._specs: dict[Key, Spec] = {}
        self._traffic: dict[Key, Traffic] = {}
        self._order: dict[Key, int] = {}  # keys are updated in this order: ints by value, strings by first init
        self._rule: Rule | None = None
        self._compression = Compression()
        self._closed = False  # only ever becomes True, in any thread

    @traced
    def init(self, key: Any, value: Any) -> None:
        with self._lock:
            self._check_open()
            created: dict[Key, Value] = {}
            for g in group(key, value):
                self._check_type(g.key)
                first, *others = [read_content(array, g.key) for array in g.arrays]
                if g.key in self._values or others:
                    raise DuplicateKeyError(key=g.key)
                created[g.key] = Value.create(*first)
            self._create(created)

    def _create(self, created: dict[Key, Value]) -> None:
        for k, new in created.items():
            self._check_type(k)
            self._key_type = type(k)
            self._order[k] = k if isinstance(k, int) else len(self._values)
            self._values[k], self._specs[k], self._traffic[k] = new, new.spec, Traffic()

    # -- push and pull ------------------------------------------------------------------------------------------------

    @traced
    def push(self, key: Any, value: Any, priority: int = 0) -> Handle:
        check_priority(priority)
        with self._lock:
            self._check_open()
            self._push(self._groups(key, value, self._values))
        return Handle()

    def _push(self, groups: list[Group]) -> None:
        self._refresh()
        apart = self._compression.codec is not None
        pushed = [(g.key, checked(g, self._specs[g.key], apart)) for g in groups]
        if self._compression.codec is not None:
            for key, contents in pushed:
                self._compression.check(self._specs[key], contents)
        errors: list[Exception] = []
        for key, contents in sorted(pushed, key=lambda p: self._order[p[0]]):
            try:
                self._values[key].apply([self._summed(key, contents)], self._rule)
            except Exception as error:  # noqa: PERF203 - as on servers, the rule's error keeps this key only as it was
                errors.append(error)
        if errors:
            raise errors[0]

    def _summed(self, key: Key, contents: list[Content]) -> Content:
        """The sum over the devices, of what each is after compression if that is set."""
        spec, traffic = self._specs[key], self._traffic[key]
        traffic.push_raw += sum(content.nbytes for content in contents)
        # Rows are never compressed: what was held back waits for a dense push.
        if isinstance(contents[0], Rows) or (self._compression.codec is None and not self._compression.feedback):
            traffic.push += sum(content.nbytes for content in contents)
            return contents[0] if len(contents) == 1 else summed(contents, spec)  # a value copies what it gets
        with self._compression.all_or_nothing([key]):
            return summed(self._arrived(key, contents), spec)

    def _arrived(self, key: Key, contents: list[Content]) -> list[Content]:
        """What arrives of each device's array."""
        spec, traffic = self._specs[key], self._traffic[key]
        arrived: list[Content] = []
        for device, content in enumerate(contents):
            assert not isinstance(content, Rows)
            nbytes = content.nbytes
            if self._compression.codec is None:
                content = content.copy()
                self._compression.release(key, device, content)
            else:
                content, nbytes = self._compression.through(spec, device, content, self._values[key].version + 1)
            arrived.append(content)
            traffic.push += nbytes
        return arrived

    @traced
    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True, wait: bool = True) -> Any:
        check_priority(priority)
        with self._lock:
            self._check_open()
            result = self._pull(key, out, ignore_sparse)
        return result if wait else Handle(result=result)

    def _pull(self, key: Any, out: Any, ignore_sparse: bool) -> Any:
        if out is None:
            keys = self._keys(key, self._values)
            for k in keys:
                self._pulled(k, self._values[k].data)
            listed = isinstance(key, (list, tuple))
            return results(keys, listed, lambda k: typed(self._values[k].data.copy(), self._specs[k].code))
        self._fill(self._outs(key, out, ignore_sparse))
        return None

    def _outs(self, key: Any, out: Any, ignore_sparse: bool = True) -> list[Group]:
        """The groups of ``out``, each array known to take its key's value: nothing is written if one does not."""
        return check_outs(self._groups(key, out, self._values, "out"), self._specs, ignore_sparse)

    def _fill(self, outs: list[Group]) -> None:
        for g in outs:
            for out in g.arrays:
                fill(out, self._values[g.key].data, self._specs[g.key])
            self._pulled(g.key, self._values[g.key].data)

    def _pulled(self, key: Key, data: Array) -> None:
        self._traffic[key].pull += data.nbytes
        self._traffic[key].pull_raw += data.nbytes

    @traced
    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0, wait: bool = True) -> Any:
        check_priority(priority)
        with self._lock:
            self._check_open()
            groups = self._groups(key, value, self._values)
            outs = self._outs(key, value if out is None else out)
            self._push(groups)
            self._fill(outs)
        return None if wait else Handle()

    @traced
    def row_sparse_pull(
        self, key: Any, out: Any = None, priority: int = 0, row_ids: Any = None, wait: bool = True
    ) -> Any:
        check_priority(priority)
        with self._lock:
            self._check_open()
            keys, listed = self._keys(key, self._values), isinstance(key, (list, tuple))
            wanted = rows_wanted(keys, out, row_ids, self._specs, listed)
            arrays = {w.spec.key: self._deliver(w) for w in wanted}
        result = None if out is not None else rows_returned(keys, listed, arrays)
        return result if wait else Handle(result=result)

    def _deliver(self, want: RowsWanted) -> list[RowSparseArray]:
        rows = self._values[want.spec.key].read(want.ids)
        self._pulled(want.spec.key, rows)
        return want.deliver(rows)

    # -- how pushes change values -------------------------------------------------------------------------------------

    def set_optimizer(self, optimizer: Optimizer) -> None:
        with self._lock:
            self._check_open()
            old = self._rule
            self._rule = old.followed_by(optimizer) if isinstance(old, OptimizerRule) else OptimizerRule(optimizer)

    def set_updater(self, updater: Updater | str) -> None:
        with self._lock:
            self._check_open()
            if callable(updater):
                self._rule = UpdaterRule(updater, getattr(updater, "__name__", "updater"))
            else:
                self._rule = updater_named(updater)

    def set_gradient_compression(self, compression_params: Any) -> None:
        if self.type != "device":
            allowed = "use type 'device' or a dist type: a 'local' store moves no gradients"
            raise ConfigError(name="compression", value=f"given to a {self.type!r} store", allowed=allowed)
        new = setting(compression_params)
        if new.pulls:
            raise ConfigError(name="direction", value="both", allowed="a 'device' store compresses pushes only")
        with self._lock:
            self._check_open()
            self._compression.codec = new.codec

    # -- on disk ------------------------------------------------------------------------------------------------------

    def _save(self, path: str | os.PathLike[str], values: bool, optimizer: bool) -> None:
        with self._lock:
            self._check_open()
            self._refresh()
            if not values:
                checked_states(self._rule)
            settings = Settings(self.type, 1, wire_of(self._rule) if optimizer else None, states_of(self._rule))
            units = ((value.spec, value.unit(values, self._rule)) for value in self._values.values())
            save(path, settings, units, self._held() if values else ())

    def _held(self) -> Iterator[Held]:
        """What is saved of each device, besides the values; numbers of pushes are versions here."""
        for key, value in self._values.items():
            yield Held(key, 0, value.version, None)
        for (key, device), feedback in self._compression.feedback.items():
            yield Held(key, device, self._values[key].version, feedback.residual)

    def _load(self, path: str | os.PathLike[str], values: bool) -> None:
        with self._lock, opened(path) as checkpoint:
            self._check_open()
            self._refresh()
            checkpoint.check(self._specs, values)
            settings = checkpoint.settings
            rule = resumed(self._rule, settings.rule, settings.states_of)
            checkpoint.check_units(values, rule)
            if rule is not self._rule and isinstance(self._rule, OptimizerRule) and settings.rule is not None:
                self._rule.optimizer.adopt(settings.rule[1])
                self._refresh()
            else:
                self._rule = rule
            new = {key: spec for key, spec in checkpoint.specs.items() if key not in self._specs}
            self._create({key: Value(spec, np.zeros(spec.shape, storage(spec.code))) for key, spec in new.items()})
            for key in checkpoint.specs:
                self._values[key].restore(checkpoint.unit(key, values), self._rule)
            if values:
                self._compression.feedback.clear()
                for key, spec in checkpoint.specs.items():
                    for device in checkpoint.streams(key):
                        self._compression.hold(spec, device, checkpoint.held(key, device).residual)

    def _refresh(self) -> None:
        """Notice what the user has changed in the optimizer."""
        if isinstance(self._rule, OptimizerRule):
            self._rule = self._rule.refreshed()

    # -- the job ------------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        return 0

    @property
    def num_workers(self) -> int:
        return 1

    def version(self, key: Key) -> int:
        with self._lock:
            return self._values[self._known(key, self._values)].version

    def stats(self) -> dict[str, Any]:
        with self._lock:
            return {"keys": {k: traffic.to_dict() for k, traffic in self._traffic.items()}}

    def barrier(self, timeout: float | None = None) -> None:
        self._check_open()

    def send_command_to_servers(self, head: int, body: Any) -> None:
        self._check_open()

    def close(self, join: bool = False) -> None:
        self._closed = True

    def _fail(self, error: BaseException) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(what="the store")

"""The distributed stores, as a worker holds them: 'dist_sync', 'dist_async' and their device variants."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from pslite import SERVER_GROUP, WORKER_GROUP, Flag, KVPairs, KVWorker, Postoffice, SimpleApp
from pslite.errors import ClosedError, ConfigError, DuplicateKeyError, PSError

from .arrays import Array, Tensor, accumulate, check_out, read, write
from .base import KVStore, results
from .commands import CONTROL_APP, DATA_APP, INIT, USER_APP
from .handle import Handle
from .keys import Group, Key, group
from .local import check_value, checked_optimizer, returned
from .optimizer.base import Optimizer
from .records import Planner, Record
from .rules import OptimizerRule, Rule, Updater, name_of_updater, to_wire, updater_named

log = logging.getLogger("kvstore")

KEYS_PER_MESSAGE = 8192  # a header describes every array: it has a limit
MAX_AHEAD = 3  # unfinished pushes per key: the round that is open and two more; a fourth push waits
SETTLE_WITHIN = 5.0  # seconds that a process may take to hand over its pushes when it ends without close()
_CALLS = {Flag.PUSH: "push", Flag.PULL: "pull", Flag.PUSH | Flag.PULL: "pushpull"}
_T = TypeVar("_T")
_Sent = tuple[int, Array, int, Record]  # key on the wire, data, dtype code, record


class DistStore(KVStore):
    """One worker's store. Its Postoffice has joined the job; ``close()`` leaves it."""

    def __init__(self, name: str, office: Postoffice) -> None:
        super().__init__(name)
        self._office = office
        self._worker = KVWorker(DATA_APP, 0, office)
        self._control = SimpleApp(CONTROL_APP, 0, office)
        self._user = SimpleApp(USER_APP, 0, office)
        self._lock = threading.Lock()  # the order of calls; guards all below
        self._records: dict[Key, Record] = {}
        self._planner = Planner(office.server_key_ranges(), office.config.bigarray_bound)
        self._in_flight: deque[Handle] = deque()  # pushes and pushpulls whose end the user has not seen
        self._ahead: dict[Key, deque[Handle]] = {}  # pushes that are not applied yet
        self._failures_seen = 0  # of the customer's count: how many have been raised or looked for
        self._reserved: set[Key] = set()  # keys whose init is going on
        self._closing = False  # close() was called: a second call does nothing
        self._closed = False
        try:
            self._agree("type", "async" if "async" in name else "sync")
        except BaseException as error:
            self._fail(error)
            raise

    # -- init ---------------------------------------------------------------------------------------------------------

    def init(self, key: Any, value: Any) -> None:
        self._raise_failed()
        tensors: dict[Key, Tensor] = {}
        for g in group(key, value):
            tensors[g.key], *others = [read(array, g.key) for array in g.arrays]
            if others:
                raise DuplicateKeyError(key=g.key)
        self._reserve(list(tensors))
        try:
            records = self._create(tensors) if self.rank == 0 else self._find(tensors)
            with self._lock:
                self._records.update((record.key, record) for record in records)
        finally:
            with self._lock:
                self._reserved.difference_update(tensors)

    def _reserve(self, keys: list[Key]) -> None:
        """Make sure that each key is initialised once, also by several threads."""
        with self._lock:
            for k in keys:
                self._check_type(k)
                if k in self._records or k in self._reserved:
                    raise DuplicateKeyError(key=k)
            self._reserved.update(keys)
            self._key_type = type(keys[0]) if keys else self._key_type

    def _create(self, tensors: dict[Key, Tensor]) -> list[Record]:
        """Rank 0 sends the values to the servers, then tells everybody where they are."""
        with self._lock:
            records = [self._planner.plan(k, tensor) for k, tensor in tensors.items()]
        for batch in _batches(records):
            sent = [(p.wire, p.of(tensors[r.key].data, r.whole), r.code, r) for r in batch for p in r.pieces]
            names = {wire: [record.key, not record.whole] for wire, _, _, record in sent}
            self._worker.customer.wait_for(self._worker.send(_pairs(sent), Flag.PUSH, INIT, meta=names))
            self._office.publish({repr(record.key): record.to_wire() for record in batch})
            with self._lock:
                self._records.update((record.key, record) for record in batch)
        return records

    def _find(self, tensors: dict[Key, Tensor]) -> list[Record]:
        """The other ranks wait until rank 0 has told, and compare."""
        records = []
        for batch in _batches(list(tensors)):
            found = self._office.lookup([repr(k) for k in batch])
            records += [Record.from_wire(k, found[repr(k)]) for k in batch]
        for record in records:
            check_value(record.key, tensors[record.key], record.shape, record.code)
        return records

    # -- push and pull ------------------------------------------------------------------------------------------------

    def push(self, key: Any, value: Any, priority: int = 0) -> Handle:
        self._raise_failed()
        groups = self._groups(key, value, self._records)
        self._wait_for_room(groups)
        with self._lock:
            self._check_closing()
            handle = self._send(self._merged(groups), Flag.PUSH, priority, None)
            self._in_flight.append(handle)
            self._note_ahead(groups, handle)
        return handle

    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True, wait: bool = True) -> Any:
        self._raise_failed()
        with self._lock:
            keys = self._keys(key, self._records)
            outs = None if out is None else self._outs(key, out)
            records = {k: self._records[k] for k in keys}
            wanted = [(p.wire, _NO_DATA, 0, record) for record in records.values() for p in record.pieces]
            handle = self._send(wanted, Flag.PULL, priority, _Pull(keys, _is_list(key), records, outs))
        return self._waited(handle) if wait else handle

    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0, wait: bool = True) -> Any:
        self._raise_failed()
        groups = self._groups(key, value, self._records)
        outs = self._outs(key, value if out is None else out)
        if {g.key for g in outs} != {g.key for g in groups}:
            raise ConfigError(name="out", value=f"keys {[g.key for g in outs]}", allowed="the keys that are pushed")
        self._wait_for_room(groups)
        with self._lock:
            self._check_closing()
            records = {g.key: self._records[g.key] for g in groups}
            finish = _Pull(list(records), _is_list(key), records, outs)
            handle = self._send(self._merged(groups), Flag.PUSH | Flag.PULL, priority, finish)
            self._in_flight.append(handle)
            self._note_ahead(groups, handle)
        return self._waited(handle) if wait else handle

    def _check_closing(self) -> None:
        """No push may come after the last that ``close()`` waits for; the lock is held."""
        if self._closing:
            raise ClosedError(what="the store")

    def _waited(self, handle: Handle) -> Any:
        """The result of a call, unless one of this worker's earlier pushes failed: then it does not include that."""
        result = handle.wait()
        self._raise_failed()
        return result

    def _merged(self, groups: list[Group]) -> list[_Sent]:
        """The sum over the devices of each key, cut into pieces. Fresh arrays: the caller's may change at once."""
        sent: list[_Sent] = []
        checked = []
        for g in groups:
            record = self._records[g.key]
            tensors = [read(a, g.key) for a in g.arrays]
            for tensor in tensors:
                check_value(g.key, tensor, record.shape, record.code)
            checked.append((record, tensors))
        for record, tensors in checked:
            merged = accumulate([t.data for t in tensors], record.code)
            sent += [(p.wire, p.of(merged, record.whole), record.code, record) for p in record.pieces]
            record.pushes += 1
        return sent

    def _outs(self, key: Any, out: Any) -> list[Group]:
        groups = self._groups(key, out, self._records, "out")
        for g in groups:
            for array in g.arrays:
                check_out(array, self._records[g.key].shape, g.key)
        return groups

    def _send(self, sent: list[_Sent], flags: int, priority: int, finish: Any) -> Handle:
        if not sent:
            return Handle(result=None if finish is None else finish([]))
        pairs = _pairs(sent, with_values=bool(flags & Flag.PUSH))
        what = f"{_CALLS[flags]} of {_shown([record.key for _, _, _, record in sent])}"
        request = self._worker.send(
            pairs, flags, priority=priority, finish=finish, keys_per_message=KEYS_PER_MESSAGE, what=what
        )
        customer = self._worker.customer
        return Handle(lambda *timeout: customer.wait_for(request, *timeout), lambda: request.done)

    def _wait_for_room(self, groups: list[Group]) -> None:
        """Block while a key has as many unfinished pushes as a server parks; its deadline names who is behind."""
        for g in groups:
            while True:
                with self._lock:
                    ahead = self._ahead.setdefault(g.key, deque())
                    while ahead and ahead[0].done():
                        ahead.popleft()
                    if len(ahead) < MAX_AHEAD:
                        break
                    oldest = ahead[0]
                oldest.wait()

    def _note_ahead(self, groups: list[Group], handle: Handle) -> None:
        for g in groups:
            self._ahead.setdefault(g.key, deque()).append(handle)

    def _raise_failed(self) -> None:
        """Raise what made an earlier push fail, once."""
        if self._closed:
            raise ClosedError(what="the store")
        self._office.check()
        with self._lock:
            while self._in_flight and (self._in_flight[0].reported or self._in_flight[0].done()):
                self._see(self._in_flight.popleft())
            if self._worker.customer.failures > self._failures_seen:  # behind a push that is not done
                self._failures_seen = self._worker.customer.failures
                ended = [handle for handle in self._in_flight if handle.done()]
                for handle in ended:
                    self._in_flight.remove(handle)
                    self._see(handle)

    def _see(self, handle: Handle) -> None:
        if not handle.reported:
            handle.wait()

    # -- how pushes change values -------------------------------------------------------------------------------------

    def set_optimizer(self, optimizer: Optimizer) -> None:
        self._set_rule(OptimizerRule(checked_optimizer(optimizer)), to_wire(optimizer))

    def set_updater(self, updater: Updater | str) -> None:
        name = name_of_updater(updater)
        self._set_rule(updater_named(name), to_wire(name))

    def _set_rule(self, rule: Rule, wire: Any) -> None:
        self._raise_failed()
        split = next((record.key for record in self._records.values() if not record.whole), None)
        if split is not None and not rule.splits:
            remedy = f"it needs whole arrays, and key {split!r} is split over the servers: set it before init"
            raise ConfigError(name="rule", value=rule.what, allowed=remedy)
        self._agree("rule", wire)
        self._planner.may_split = rule.splits

    def _agree(self, what: str, value: Any) -> None:
        """A collective call: every server compares what the workers say with what rank 0 says."""
        self._control.wait(self._control.request(0, [what, value], SERVER_GROUP))

    # -- the job ------------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        return self._office.rank

    @property
    def num_workers(self) -> int:
        return self._office.num_workers

    def version(self, key: Key) -> int:
        return self._records[self._keys(key, self._records)[0]].version

    def barrier(self, timeout: float | None = None) -> None:
        self._raise_failed()
        self._office.barrier(WORKER_GROUP, timeout=self._office.config.timeout if timeout is None else timeout)

    def send_command_to_servers(self, head: int, body: Any) -> None:
        self._raise_failed()
        self._user.wait(self._user.request(head, body, SERVER_GROUP))

    def close(self, join: bool = False) -> None:
        if self._closed:
            return
        self._office.check()
        with self._lock:
            if self._closing:
                return
            self._closing = True
        try:
            self._flush()
            self._closed = True
            self._office.leave("left" if join else "finished", wait=True, timeout=self._office.config.timeout)
        except BaseException as error:
            self._fail(error)
            raise
        self._office.close()

    def _flush(self) -> None:
        """Wait for all pushes; raises the first error that the user has not seen."""
        while True:
            with self._lock:
                if not self._in_flight:
                    return
                handle = self._in_flight.popleft()
            if not handle.reported:
                handle.wait()

    def _leave_without_waiting(self) -> None:
        """The end of a process that did not call ``close()``: the servers get its pushes, nobody is waited for."""
        if self._closed:
            return
        try:
            self._worker.customer.settle(SETTLE_WITHIN)
            self._raise_failed()
            self._closed = True
            self._office.leave("finished")
            self._office.close()
        except PSError as error:
            log.error("%s", error)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._office.forked:
            return  # the parent's store is none of this process's business
        self._closed = True
        try:
            self._office.leave("failed", f"{type(error).__name__}: {error}"[:1000], timeout=2.0)
        except PSError:  # the job is gone, or it knows already: there is nobody left to tell
            pass
        finally:
            self._office.close(linger=0)  # pushes on their way to a stopped server would hold this process up


class _Pull:
    """Puts what the servers sent where the caller wants it; runs when all of it is there, on the leading thread."""

    def __init__(self, keys: list[Key], listed: bool, records: dict[Key, Record], outs: list[Group] | None) -> None:
        self._keys = keys
        self._listed = listed  # whether the caller gave a list of keys
        self._records = records  # of these keys
        self._outs = outs

    def __call__(self, parts: list[KVPairs]) -> Any:
        found: dict[int, tuple[Array, int]] = {}
        for part in parts:
            assert part.versions is not None and isinstance(part.vals, list)
            found.update(zip(part.keys.tolist(), zip(part.vals, part.versions.tolist(), strict=True), strict=True))
        for record in self._records.values():
            record.version = min(found[p.wire][1] for p in record.pieces)
        if self._outs is None:
            values = {k: returned(_joined(record, found).copy(), record.code) for k, record in self._records.items()}
            return results(self._keys, self._listed, values)
        for g in self._outs:
            for out in g.arrays:
                _write(out, self._records[g.key], found)
        return None


def _write(out: Any, record: Record, found: dict[int, tuple[Array, int]]) -> None:
    if record.whole or not isinstance(out, np.ndarray):
        write(out, _joined(record, found), record.code, record.key)
        return
    for piece in record.pieces:  # each piece straight into its rows
        write(out[piece.first : piece.end], found[piece.wire][0], record.code, record.key)


def _joined(record: Record, found: dict[int, tuple[Array, int]]) -> Array:
    pieces = [found[p.wire][0] for p in record.pieces]
    return pieces[0] if record.whole else np.concatenate(pieces)


_NO_DATA: Array = np.empty(0, np.uint8)


def _is_list(key: Any) -> bool:
    return isinstance(key, (list, tuple))


def _shown(keys: list[Key]) -> str:
    return repr(keys[0]) + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def _batches(items: list[_T]) -> list[list[_T]]:
    return [items[lo : lo + KEYS_PER_MESSAGE] for lo in range(0, len(items), KEYS_PER_MESSAGE)]


def _pairs(sent: Sequence[_Sent], with_values: bool = True) -> KVPairs:
    """The pairs of a request, in ascending order of the keys on the wire."""
    ordered = sorted(sent, key=lambda s: s[0])
    keys = np.array([wire for wire, _, _, _ in ordered], np.uint64)
    if not with_values:
        return KVPairs(keys, [])
    return KVPairs(
        keys,
        [data for _, data, _, _ in ordered],
        versions=np.array([record.version for _, _, _, record in ordered], np.uint64),
        rounds=np.array([record.pushes for _, _, _, record in ordered], np.uint64),
        codes=[code for _, _, code, _ in ordered],
    )

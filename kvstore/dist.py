"""The distributed stores, as a worker holds them: 'dist_sync', 'dist_async' and their device variants."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from pslite import SERVER_GROUP, Flag, KVPairs, Postoffice, Request, name_of
from pslite.dtypes import NAMES, storage
from pslite.errors import (
    ConfigError,
    DTypeError,
    DuplicateKeyError,
    ShapeError,
    StorageError,
)

from .arrays import Array
from .base import check_priority
from .commands import AGAIN, BUNDLE, DATA, INIT
from .compressing import Compression, check_codec, setting
from .compression import Codec
from .contents import check_outs, checked, read_content, rows_wanted, summed
from .handle import Handle, together
from .keys import Group, Key, group
from .ledger import Ahead, Ledger, Ordinals
from .lending import Lending, lendable
from .lists import Answers, KeyList, Plans
from .loads import Arriving, Loads
from .optimizer.base import Optimizer
from .records import Planner, Record
from .requests import Filling, Item, coded, pairs_in_turn, pairs_of, pushed, rows_into, rows_of, wanted
from .resumed import Resumed
from .rows import Content, Rows
from .rules import (
    OptimizerRule,
    Rule,
    Updater,
    name_of_updater,
    updater_named,
)
from .saver import Saver, in_batches
from .spec import Spec, check_whole
from .succession import succeed
from .tracing import CALLS, Finish, Take, requested, traced
from .transfer import batches

log = logging.getLogger("kvstore")

# Bytes in a message to each server, which works on them while the next are made. Where arrays are read in memory a
# message costs its handling only; where they travel one is to be summed while the next is under way.
AT_ONCE, AT_ONCE_SENT = 16 * 1024 * 1024, 4 * 1024 * 1024
CALL_NAMES = {Flag.PUSH: "push", Flag.PULL: "pull", Flag.PUSH | Flag.PULL: "pushpull"}
_T = TypeVar("_T")
Ended = Callable[[], None]


class DistStore(Saver):
    """One worker's store: the keys, and how they are pushed and pulled."""

    keys_per_message = 8192  # a header describes every array: it has a limit

    def __init__(self, name: str, office: Postoffice) -> None:
        super().__init__(name, office)
        self._records: dict[Key, Record] = {}
        self._ledger = Ledger()
        self._planner = Planner(office.server_key_ranges(), office.config.bigarray_bound, self._ledger)
        self._ahead = Ahead()
        self._compression = Compression()
        self._lending = Lending()
        transports = {office.transport(node) for node in office.node_ids(SERVER_GROUP)}
        at_once = AT_ONCE if transports == {"shm"} else AT_ONCE_SENT
        self._at_once = at_once * office.num_servers
        self._plans = Plans(office.server_key_ranges(), 0 if transports & {"tcp", "ipc"} else at_once)
        self._rule: Rule | None = None  # as set by this worker
        self._told: Any = None  # the optimizer's hyper-parameters, as the servers know them from this worker
        self._changes = 0  # of hyper-parameters, told so far
        self._reserved: set[Key] = set()  # keys whose init is going on
        self._resumed: Resumed | None = None  # of a process that took the place of one that died
        self._succeeding = threading.Lock()  # guards the next
        self._leads = self.rank == 0
        try:
            if office.again:
                self._resumed = self._ask_where_to_go_on()
            if self._team.asks and (self._team.came_later or office.again):
                self._join_steps()
        except BaseException as error:
            self._fail(error)
            raise

    def _ask_where_to_go_on(self) -> Resumed | None:
        """This process took the place of one that died: what the servers have of its pushes."""
        answers = self._ask_servers("resume", None)
        resumed = Resumed({wire: number for answer in answers for wire, number in zip(*answer, strict=True)})
        if self._team.asks:  # steps are those of kv.step()
            self._start_step = resumed.step if resumed.counts_steps else 0
            return None
        self._start_step = self._step = resumed.step
        if resumed.counts_steps:
            self._ledger.begin_step(resumed.step)
        return resumed

    def _begin_step(self, step: int) -> None:
        self._ledger.begin_step(step)

    def _new_array(self, shape: tuple[int, ...], code: int) -> Array:
        return self._lending.empty(self._office.memory, shape, storage(code))

    # -- init ---------------------------------------------------------------------------------------------------------

    @traced
    def init(self, key: Any, value: Any) -> None:
        self._raise_failed()
        created: dict[Key, tuple[Spec, Content]] = {}
        for g in group(key, value):
            created[g.key], *others = [read_content(array, g.key) for array in g.arrays]
            if others:
                raise DuplicateKeyError(key=g.key)
        self._reserve(list(created))
        try:
            records = self._make(created)
            with self._lock:
                if self._resumed is not None:
                    self._resumed.apply(records)
                self._records.update((record.key, record) for record in records)
        finally:
            with self._lock:
                self._reserved.difference_update(created)

    def _reserve(self, keys: list[Key]) -> None:
        """Make sure that each key is initialised once, also by several threads."""
        with self._lock:
            for k in keys:
                self._check_type(k)
                if k in self._records or k in self._reserved:
                    raise DuplicateKeyError(key=k)
            self._reserved.update(keys)
            self._key_type = type(keys[0]) if keys else self._key_type

    def _make(self, created: dict[Key, tuple[Spec, Content]]) -> list[Record]:
        """The records of keys that the lead creates; the others wait until it has told, and compare."""
        return self._create(created) if self.rank == 0 else self._find(created)

    def _create(self, created: dict[Key, tuple[Spec, Content]]) -> list[Record]:
        """The lead sends the values to the servers, then tells everybody where they are."""
        with self._lock:
            records = [self._planner.plan(spec) for spec, _ in created.values()]
        for batch in batches(records):
            items = [item for record in batch for item in pushed(record, created[record.key][1])]
            names: dict[Any, Any] = {item.piece.wire: item.record.named(item.piece) for item in items}
            names[AGAIN] = self._office.config.servers_return  # then a server may have them already
            pairs = pairs_of(items, push=True)
            what = f"init of {_shown([record.key for record in batch])}"
            take, finish = requested(self, what, [pairs], None, None) if CALLS.running else (None, None)
            self._worker.customer.wait_for(self._worker.send(pairs, Flag.PUSH, INIT, 0, finish, names, take=take))
            self._office.publish({repr(record.key): record.to_wire() for record in batch})
            with self._lock:
                self._records.update((record.key, record) for record in batch)
        return records

    def _find(self, created: dict[Key, tuple[Spec, Content]]) -> list[Record]:
        """What the directory has. It waits for what is not there, unless that is for this worker to create by now."""
        records = []
        for batch in in_batches(list(created)):
            found = self._office.lookup([repr(k) for k in batch])
            records += [Record.from_wire(k, found[repr(k)], self._ledger) for k in batch if repr(k) in found]
            if len(found) < len(batch):
                self._take_over()
                records += self._create({k: created[k] for k in batch if repr(k) not in found})
        for record in records:
            _compare(created[record.key][0], record.spec)
        return records

    def _take_over(self) -> None:
        """Begin with what rank 0 does for all, as all workers before this one are lost; nothing if it did before."""
        with self._succeeding:
            if not self._leads:
                shares = succeed(self._ask_servers, self._office)
                self._planner.go_on([share.used for share in shares], [share.nbytes for share in shares])
                self._leads = True

    # -- push and pull ------------------------------------------------------------------------------------------------

    @traced
    def push(self, key: Any, value: Any, priority: int = 0) -> Handle:
        plan = self._plan(key, value)
        if plan is not None:
            return self._push_list(plan, value, priority, Flag.PUSH)
        return self._push(self._groups(key, value, self._records), priority, Flag.PUSH, None)

    @traced
    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True, wait: bool = True) -> Any:
        self._raise_failed()
        plan = self._plan(key, outs=out)
        if plan is not None:
            handle = self._pull_list(plan, out, priority)
            return self._waited(handle) if wait else handle
        with self._lock:
            keys = self._keys(key, self._records)
            outs = None if out is None else self._outs(self._groups(key, out, self._records, "out"), ignore_sparse)
            records = {k: self._records[k] for k in (keys if outs is None else [g.key for g in outs])}
            filling = Filling(keys, _is_list(key), records, outs, self._pull_codec())
            handle = self._pull(records, filling, priority)
        return self._waited(handle) if wait else handle

    @traced
    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0, wait: bool = True) -> Any:
        self._raise_failed()
        plan = self._plan(key, value, value if out is None else out)
        if plan is not None:
            handle = self._push_list(plan, value, priority, Flag.PUSH | Flag.PULL, value if out is None else out)
            return self._waited(handle) if wait else handle
        groups = self._groups(key, value, self._records)
        named = self._groups(key, value if out is None else out, self._records, "out")
        if {g.key for g in named} != {g.key for g in groups}:
            raise ConfigError(name="out", value=f"keys {[g.key for g in named]}", allowed="the keys that are pushed")
        outs = self._outs(named, ignore_sparse=True)
        records = {g.key: self._records[g.key] for g in outs}

        def filling() -> Filling:
            return Filling(list(records), _is_list(key), records, outs, self._pull_codec())

        if len(outs) == len(groups):
            handle = self._push(groups, priority, Flag.PUSH | Flag.PULL, filling, outs)
        else:  # the others' outs are row-sparse: nothing comes back for them
            self._push(groups, priority, Flag.PUSH, None)
            with self._lock:
                handle = self._pull(records, filling(), priority)
        return self._waited(handle) if wait else handle

    @traced
    def row_sparse_pull(
        self, key: Any, out: Any = None, priority: int = 0, row_ids: Any = None, wait: bool = True
    ) -> Any:
        self._raise_failed()
        with self._lock:
            keys, listed = self._keys(key, self._records), _is_list(key)
            records = {k: self._records[k] for k in keys}
            wants = rows_wanted(keys, out, row_ids, {k: r.spec for k, r in records.items()}, listed)
            items = [item for want in wants for item in rows_of(records[want.spec.key], want)]
            finish = rows_into(keys, listed, records, wants, out is None)
            handle = self._send(list(records), items, Flag.PULL, priority, finish=finish)
        return self._waited(handle) if wait else handle

    def _push(self, groups: list[Group], priority: int, flags: int, filling: Callable[[], Filling] | None,
              outs: Sequence[Group] = ()) -> Handle:  # fmt: skip
        """Send what is pushed; ``filling`` makes what takes in the answer into ``outs``, under the lock."""
        check_priority(priority)  # before anything is counted, or held back by compression
        self._raise_failed()
        self._wait_for_room(np.array([self._records[g.key].at for g in groups], np.intp))
        with self._pushing, self._lock:
            self._check_closing()
            self._tell_changes()
            records = [self._records[g.key] for g in groups]
            contents = [checked(g, record.spec) for g, record in zip(groups, records, strict=True)]
            items, lent = self._merged(records, contents, outs)
            take, finish = (None, None) if filling is None else self._steps(filling(), [g.key for g in outs])
            keys = [g.key for g in groups]
            handle = self._lent_while(
                lambda ended: self._send(keys, items, flags, priority, take, finish, ended), lent, outs
            )
            self._in_flight.append(handle)
        return handle

    def _lent_while(
        self, send: Callable[[Ended | None], Handle], lent: Sequence[tuple[Array, Key]], outs: Sequence[Group]
    ) -> Handle:
        """Lend arrays until what ``send`` sends is done; ``outs`` may be written to, for it fills them."""
        loans = self._lending.lend(lent)
        try:
            handle = send(partial(self._lending.give_back, loans) if loans else None)
        except BaseException:
            self._lending.give_back(loans)
            raise
        self._lending.reclaim(outs)
        return handle

    def _pull(self, records: dict[Key, Record], filling: Filling, priority: int) -> Handle:
        """Ask for whole values; the lock is held."""
        items = [item for record in records.values() for item in wanted(record)]
        return self._send(list(records), items, Flag.PULL, priority, *self._steps(filling, list(records)))

    def _steps(self, filling: Filling | Arriving, keys: list[Key]) -> tuple[Take, Finish]:
        """What takes in the answer of a pull, and in the end gives back what is lent for its keys by now."""
        loans = self._lending.of(keys)
        if not loans:
            return filling.take, filling.finish

        def finish(parts: list[Any]) -> Any:
            self._lending.give_back(loans)
            return filling.finish(parts)

        return filling.take, finish

    def _merged(
        self, records: list[Record], contents: list[list[Content]], outs: Sequence[Group]
    ) -> tuple[Iterable[Item], list[tuple[Array, Key]]]:
        """The sum over the devices of each key, cut into pieces that are made as they are asked for, and what is lent.

        They are in fresh arrays, since the caller's may change when the call returns, unless they are lent.
        """
        codec = self._compression.codec
        if codec is None:
            lent = [] if self._compression.feedback else lendable(self._lending, records, contents, outs)
            return self._coded_in_turn(records, contents, {key for _, key in lent}), lent
        for record, own in zip(records, contents, strict=True):
            self._compression.check(record.spec, own)
        if codec.trusted:
            return self._coded_in_turn(records, contents, set()), []
        return self._all_coded(records, contents), []  # it may fail at any key: then nothing is sent

    def _coded_in_turn(self, records: list[Record], contents: list[list[Content]], lent: set[Key]) -> Iterator[Item]:
        for record, own in zip(records, contents, strict=True):
            items = self._coded(record, own[0] if record.key in lent else self._summed(own, record.spec))
            record.push()
            yield from items

    def _all_coded(self, records: list[Record], contents: list[list[Content]]) -> list[Item]:
        items: list[Item] = []
        with self._compression.all_or_nothing(record.key for record in records):
            for record, own in zip(records, contents, strict=True):
                items += self._coded(record, self._summed(own, record.spec))
        for record in records:
            record.push()
        return items

    def _summed(self, own: list[Content], spec: Spec) -> Content:
        """The sum over the devices: in memory that servers can read, or if it is compressed, to be read only here."""
        if self._compression.codec is None:
            return summed(own, spec, self._office.memory)
        [first, *others] = own
        alone = not others and type(first) is np.ndarray and first.dtype == storage(spec.code)  # in native order
        return first if alone else summed(own, spec)

    def _coded(self, record: Record, content: Content) -> list[Item]:
        """The pieces of what is pushed, compressed if that is set."""
        codec = self._compression.codec
        if isinstance(content, Rows):
            items = pushed(record, content)
        elif codec is None:
            self._compression.release(record.key, 0, content)
            items = pushed(record, content)
        else:
            cuts = [(piece.first, piece.end) for piece in record.pieces]
            salt = codec.salt_of(record.key, record.next_push, self.rank)
            codes = self._compression.encode(record.spec, 0, content, None if record.whole else cuts, salt)
            items = coded(record, codes)
        record.traffic.pushed(sum(array.nbytes for item in items for array in item.arrays), content.nbytes)
        return items

    def _outs(self, groups: list[Group], ignore_sparse: bool) -> list[Group]:
        """What a call fills, each array known to take its key's value; if one does not, those lent stay read-only."""
        reclaimed = self._lending.reclaim(groups)
        try:
            return check_outs(groups, {g.key: self._records[g.key].spec for g in groups}, ignore_sparse)
        except BaseException:
            self._lending.protect(reclaimed)
            raise

    def _send(self, keys: list[Key], items: Iterable[Item], flags: int, priority: int, take: Take | None = None,
              finish: Finish | None = None, ended: Ended | None = None) -> Handle:  # fmt: skip
        """Send what a call comes to, in several messages if it is large; the lock is held."""
        if not keys:
            return Handle(result=None if finish is None else finish([]))
        pairs = pairs_in_turn(items, bool(flags & Flag.PUSH), self._at_once)
        at = np.array([self._records[key].at for key in keys], np.intp)
        return self._handle(self._request(DATA, keys, at, pairs, flags, priority, take, finish, ended))

    def _request(self, cmd: int, keys: Sequence[Key], at: Ordinals, pairs: Iterable[KVPairs], flags: int, priority: int,
                 take: Take | None, finish: Finish | None, ended: Ended | None = None) -> Request:  # fmt: skip
        """Send pairs as one request; the lock is held. ``at``: the keys' places in the ledger."""
        what = f"{CALL_NAMES[flags]} of {_shown(keys)}"
        if CALLS.running:
            pairs = list(pairs)
            take, finish = requested(self, what, pairs, take, finish)
        request = self._worker.send(
            pairs, flags, cmd, priority, finish, self._codecs(flags), self.keys_per_message if cmd == DATA else None,
            what, take, ended
        )  # fmt: skip
        if flags & Flag.PUSH:
            self._ahead.begin(at)
            self._ahead.add(request, at)
        return request

    def _handle(self, request: Request) -> Handle:
        return Handle(lambda *timeout: self._wait_for(request, *timeout), lambda: request.done)

    def _wait_for(self, request: Request, *timeout: float | None) -> Any:
        return self._worker.customer.wait_for(request, *timeout)

    # -- lists of keys ------------------------------------------------------------------------------------------------

    def _plan(self, key: Any, values: Any = None, outs: Any = None) -> KeyList | None:
        """How a list of keys with these arrays travels; None if each key is to be looked at."""
        if not _is_list(key) or self._compression.codec is not None or self._compression.feedback:
            return None
        plan = self._plans.of(key, self._records, self._key_type)
        if plan is None or (values is None and outs is None and plan.rest):
            return None
        if (values is not None and not plan.takes(values)) or (outs is not None and not plan.takes(outs, out=True)):
            return None
        return plan if plan.parts or plan.loads_for(values, outs) is not None else None

    def _push_list(self, plan: KeyList, values: Any, priority: int, flags: int, outs: Any = None) -> Handle:
        check_priority(priority)
        self._raise_failed()
        self._wait_for_room(plan.at)
        loads = plan.loads_for(values, outs)
        others = []
        if places := plan.apart_from(loads):  # first, for they may be wrong
            keys, own = [plan.keys[place] for place in places], [values[place] for place in places]
            others = [self.push(keys, own, priority)] if outs is None else [
                self.pushpull(keys, own, [outs[place] for place in places], priority, wait=False)
            ]  # fmt: skip
        handles = [*others]
        with self._pushing, self._lock:
            self._check_closing()
            self._tell_changes()
            if loads is not None:
                handles.append(self._push_loads(loads, values, priority, flags, outs))
            if plan.parts:
                answers = None if outs is None else Answers(plan.parts, outs, self._ledger)
                pairs = (part.pushed(values, self._ledger) for part in plan.parts)
                handles.append(self._request_list(plan, pairs, priority, flags, answers))
            whole = together(handles)
            self._in_flight = deque(h for h in self._in_flight if h not in others) if others else self._in_flight
            self._in_flight.append(whole)  # one call, whose failure is raised once
        return whole

    def _push_loads(self, loads: Loads, values: Any, priority: int, flags: int, outs: Any) -> Handle:
        """Push keys that travel as arrays of their own, and pull them into ``outs``; the lock is held."""
        targets = [] if outs is None else [Group(k, [out]) for k, out in zip(loads.keys, loads.of(outs), strict=True)]
        lent = lendable(self._lending, loads.records, [[array] for array in loads.of(values)], targets)
        pairs = loads.pushed(values, {key for _, key in lent}, self._office.memory, self._ledger)
        filling = None if outs is None else Arriving(loads, outs, self._ledger)
        take, finish = (None, None) if filling is None else self._steps(filling, loads.keys)
        return self._lent_while(
            lambda ended: self._handle(
                self._request(DATA, loads.keys, loads.at, pairs, flags, priority, take, finish, ended)
            ),
            lent,
            targets,
        )

    def _pull_list(self, plan: KeyList, outs: Any, priority: int) -> Handle:
        loads = plan.loads_for(None, outs)
        handles = []
        if places := plan.apart_from(loads):
            keys, own = [plan.keys[place] for place in places], [outs[place] for place in places]
            handles.append(self.pull(keys, own, priority, wait=False))
        filled = plan.fresh() if outs is None else outs
        result = filled if outs is None else None
        with self._lock:
            if loads is not None:
                steps = self._steps(Arriving(loads, filled, self._ledger, result), loads.keys)
                request = self._request(DATA, loads.keys, loads.at, loads.wanted(), Flag.PULL, priority, *steps)
                handles.append(self._handle(request))
            if plan.parts:
                answers = Answers(plan.parts, filled, self._ledger, result)
                pairs = (part.wanted() for part in plan.parts)
                handles.append(self._request_list(plan, pairs, priority, Flag.PULL, answers))
        return together(handles)

    def _request_list(
        self, plan: KeyList, pairs: Iterable[KVPairs], priority: int, flags: int, answers: Answers | None
    ) -> Handle:
        keys, at = plan.bundled
        take, finish = (None, None) if answers is None else (answers.take, answers.finish)
        return self._handle(self._request(BUNDLE, keys, at, pairs, flags, priority, take, finish))

    def _pull_codec(self) -> Codec | None:
        return self._compression.codec if self._compression.pulls else None

    def _codecs(self, flags: int) -> list[Any] | None:
        """What servers must know of compression to serve a request."""
        codec, pulls = self._compression.to_wire()
        if codec is None:
            return None
        return [codec if flags & Flag.PUSH else None, codec if pulls and flags & Flag.PULL else None]

    def _wait_for_room(self, at: Ordinals) -> None:
        """Block while a key has as many unfinished pushes as a server parks; its deadline names who is behind."""
        while True:
            with self._lock:
                ahead = self._ahead.in_the_way(at)
            if not ahead:
                return
            # Any of them may be the next to end: the oldest may wait for another key that was pushed with this one.
            self._office.wait(
                lambda: any(request.done for request in ahead),  # noqa: B023 - runs at once
                ahead[0].what,
                ahead[0].unanswered,
            )
            self._raise_failed()

    # -- how pushes change values -------------------------------------------------------------------------------------

    def set_optimizer(self, optimizer: Optimizer) -> None:
        rule = OptimizerRule(optimizer)
        wire = rule.to_wire()
        self._set_rule(rule, wire)
        with self._lock:
            self._told = wire[1]
            if self._changes:  # the servers may know others, of the same optimizer, from this worker
                self._tell(wire[1])

    def set_updater(self, updater: Updater | str) -> None:
        rule = updater_named(name_of_updater(updater))
        self._set_rule(rule, rule.to_wire())

    def _set_rule(self, rule: Rule, wire: Any) -> None:
        self._raise_failed()
        if not rule.splits:
            check_whole("rule", rule.what, self._split_key())
        self._agree("rule", wire)
        with self._lock:
            self._rule = rule
            self._plan_splits()

    def set_gradient_compression(self, compression_params: Any) -> None:
        self._raise_failed()
        new = setting(compression_params)
        check_codec(new.codec, self._split_key())
        self._agree("compression", new.to_wire())
        with self._lock:
            self._compression.codec, self._compression.pulls = new.codec, new.pulls
            self._plan_splits()

    def _split_key(self) -> Key | None:
        """A key that is split over the servers, if there is one."""
        with self._lock:  # another thread may be in ``init``
            return next((record.key for record in self._records.values() if not record.whole), None)

    def _plan_splits(self) -> None:
        """Cut new keys only if the rule and the codec allow it; the lock is held."""
        codec = self._compression.codec
        self._planner.may_split = (self._rule is None or self._rule.splits) and (codec is None or codec.elementwise)

    def _tell_changes(self) -> None:
        """Tell the servers what the user has changed in the optimizer since; it counts from the next push on."""
        if not isinstance(self._rule, OptimizerRule):
            return
        wire = self._rule.optimizer.to_wire()
        if wire != self._told:
            self._rule.changed(wire)  # raises what the servers would
            self._tell(wire)

    def _tell(self, wire: Any) -> None:
        self._changes += 1
        self._told = wire
        self._tell_servers("change", [self._changes, wire])

    # -- the job ------------------------------------------------------------------------------------------------------

    def version(self, key: Key) -> int:
        return self._records[self._known(key, self._records)].version

    def stats(self) -> dict[str, Any]:
        with self._lock:
            keys = {k: record.traffic.to_dict() for k, record in self._records.items()}
        servers = self._office.node_ids(SERVER_GROUP)
        found = {"keys": keys, "transport": {name_of(node): self._office.transport(node) for node in servers}}
        if self._office.config.checkpoint_dir:
            found["checkpoints"] = self._ask_for_checkpoints("stats")
        return found


def _compare(mine: Spec, theirs: Spec) -> None:
    """Raise unless this worker's value fits the one that the lead gave."""
    if mine.code != theirs.code:
        raise DTypeError(key=mine.key, got=NAMES[mine.code], expected=NAMES[theirs.code])
    if mine.shape != theirs.shape:
        raise ShapeError(key=mine.key, got=list(mine.shape), expected=list(theirs.shape))
    if mine.sparse != theirs.sparse:
        kinds = {True: "a RowSparseArray", False: "a dense array"}
        raise StorageError(key=mine.key, got=kinds[mine.sparse], expected=f"{kinds[theirs.sparse]}, as on rank 0")


def _is_list(key: Any) -> bool:
    return isinstance(key, (list, tuple))


def _shown(keys: Sequence[Key]) -> str:
    return repr(keys[0]) + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")

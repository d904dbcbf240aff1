"""The server's brain: keys, rounds and updates. A state machine without I/O, clock or randomness.

A round of a key takes one contribution from every member rank; a worker's k-th push of a key is its contribution to
round k. Contributions wait in one queue per (key, rank), so a pull never overtakes the pushes before it, and sums are
taken in rank order: the same bits whatever the order of arrival.

Values are never changed in place: an update writes into another array, because replies may still be on their way.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kvstore.arrays import Array, accumulate
from kvstore.keys import Key
from kvstore.optimizer.base import State
from kvstore.rules import Rule, apply_safely, from_wire
from pslite.dtypes import NAMES
from pslite.errors import (
    ConfigError,
    DTypeError,
    DuplicateKeyError,
    PeerError,
    PSError,
    ShapeError,
    UnknownKeyError,
    WorkerFinished,
    WorkerLeft,
)

from .agreement import Agreement
from .ticket import Ticket

COPY_BELOW = 16 * 1024  # bytes: a small value is copied out of the message that it came in and would keep alive


@dataclass(slots=True, eq=False)
class Contribution:
    """One key of a request: a push (with data) or a pull that waits behind one (without)."""

    ticket: Ticket
    index: int
    data: Array | None
    rule: Rule | None  # in force when it arrived; rank order decides whose counts


@dataclass(slots=True, eq=False)
class Entry:
    """Everything that a server stores for a key: one unit."""

    name: Key
    split: bool  # a piece of an array whose other pieces are on other servers
    value: Array
    code: int
    queues: dict[int, deque[Contribution]]  # by rank
    version: int = 0  # changes of the value
    rounds: int = 0  # rounds that were applied, or failed in user code
    state: State = field(default_factory=dict)  # the optimizer's slots
    count: int = 0  # updates that the rule has made of this key
    rule: Rule | None = None  # whose slots and count these are
    spare: Array | None = None  # the last value but one: written to again when nobody reads it any more


class Store:
    """All keys of one server."""

    def __init__(self, num_workers: int) -> None:
        self.sync = True
        self._rule: Rule | None = None
        self._entries: dict[int, Entry] = {}  # by key on the wire
        self._members = set(range(num_workers))  # ranks that every round needs
        self._gone: dict[int, PeerError] = {}  # ranks that will not push any more, and why
        self._agreement = Agreement(self._adopt)

    # -- collective settings ------------------------------------------------------------------------------------------

    def agree(self, token: Any, rank: int, what: str, value: Any) -> list[Ticket]:
        """``what`` must be the same on every rank: rank 0 decides, the others wait for it and are compared."""
        return self._agreement.say(Ticket(token, rank), what, value)

    def _adopt(self, what: str, value: Any) -> PSError | None:
        """Make a setting count from now on, or say why it cannot."""
        if what == "type":
            self.sync = value == "sync"
            return None
        try:
            rule = from_wire(value)
        except PSError as error:
            return error
        split = next((entry.name for entry in self._entries.values() if entry.split), None)
        if rule is not None and not rule.splits and split is not None:
            remedy = f"it needs whole arrays, and key {split!r} is split over the servers: set it before init"
            return ConfigError(name=rule.what, value="set after init", allowed=remedy)
        self._rule = rule
        return None

    # -- requests -----------------------------------------------------------------------------------------------------

    def init(self, token: Any, rank: int, names: Sequence[tuple[Key, bool]], keys: Sequence[int],
             values: Sequence[Array], codes: Sequence[int]) -> list[Ticket]:  # fmt: skip
        """Create keys; ``names`` are the users' keys, each with whether this is a piece of a split array."""
        ticket = Ticket(token, rank)
        taken = next((name for key, (name, _) in zip(keys, names, strict=True) if key in self._entries), None)
        if taken is not None:
            ticket.error = DuplicateKeyError(key=str(taken))
            return [ticket]
        for key, (name, split), value, code in zip(keys, names, values, codes, strict=True):
            self._entries[key] = Entry(name, split, value, code, {})
        return [ticket]

    def request(self, token: Any, rank: int, keys: Sequence[int], values: Sequence[Array], codes: Sequence[int],
                pull: bool) -> list[Ticket]:  # fmt: skip
        """Push (with values), pull, or both; returns the tickets that are done now, this one maybe among them."""
        ticket = Ticket(token, rank, pull, len(keys), [_NOTHING] * len(keys), [0] * len(keys), [0] * len(keys))
        try:
            entries = [self._find(key) for key in keys]
            for entry, value, code in zip(entries, values, codes, strict=bool(values)):
                _check(entry, value, code)
        except PSError as error:
            return self._fail(ticket, error)
        if not keys:
            ticket.finished = True
            return [ticket]
        done: list[Ticket] = []
        for index, entry in enumerate(entries):
            data = values[index] if values else None
            entry.queues.setdefault(rank, deque()).append(Contribution(ticket, index, data, self._rule))
            done += self._advance(entry)
        return done

    def read(self, token: Any, rank: int, keys: Sequence[int]) -> list[Ticket]:
        """The current values, at once: for a request that was served before and whose answer got lost."""
        entries = [self._find(key) for key in keys]
        ticket = Ticket(
            token, rank, True, 0, [e.value for e in entries], [e.version for e in entries], [e.code for e in entries]
        )
        return [ticket]

    def _find(self, key: int) -> Entry:
        entry = self._entries.get(key)
        if entry is None:
            raise UnknownKeyError(key=key)
        return entry

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _advance(self, entry: Entry) -> list[Ticket]:
        """Do everything that the key's queues allow: answer pulls at their heads, apply complete rounds."""
        done: list[Ticket] = []
        while True:
            for queue in entry.queues.values():
                while queue and queue[0].data is None:
                    done += self._finish(queue.popleft(), entry)
            ranks = sorted(rank for rank, queue in entry.queues.items() if queue)
            if not ranks:
                return done
            if not self.sync:
                for rank in ranks:
                    done += self._apply(entry, [entry.queues[rank].popleft()])
                continue
            missing = self._members.difference(ranks)
            error = next((self._gone[rank] for rank in sorted(missing) if rank in self._gone), None)
            if error is not None:
                done += self._fail_round(entry, ranks, error)
            elif missing:
                return done
            else:
                done += self._apply(entry, [entry.queues[rank].popleft() for rank in ranks])

    def _apply(self, entry: Entry, contributions: list[Contribution]) -> list[Ticket]:
        """One round (or one asynchronous push): contributions in rank order become the new value."""
        entry.rounds += 1
        rule = contributions[0].rule
        arrays = [c.data for c in contributions if c.data is not None]
        try:
            if rule is not None:
                value = self._update(entry, rule, accumulate(arrays, entry.code) if len(arrays) > 1 else arrays[0])
            elif len(arrays) > 1:
                value = accumulate(arrays, entry.code, out=_free(entry))
            else:
                value = arrays[0].copy() if arrays[0].nbytes < COPY_BELOW else arrays[0]
        except Exception as error:  # user code: the value stays, and every contributor gets the error
            what = "" if rule is None else rule.what
            return [t for c in contributions for t in self._fail(c.ticket, error, what)]
        previous = entry.value
        entry.value, entry.spare = value, previous
        entry.version += 1
        return [t for c in contributions for t in self._finish(c, entry)]

    def _update(self, entry: Entry, rule: Rule, received: Array) -> Array:
        if entry.rule is not rule:
            entry.state, entry.count, entry.rule = rule.create_state(entry.name, entry.value, entry.code), 0, rule
        target = _free(entry)
        entry.state = apply_safely(
            rule, entry.name, received, entry.value, target, entry.state, entry.count + 1, entry.code
        )
        entry.count += 1
        return target

    def _fail_round(self, entry: Entry, ranks: list[int], error: PeerError) -> list[Ticket]:
        """The round needs a rank that is gone: its contributors get the error, and the value stays."""
        if isinstance(error, WorkerFinished):
            error = WorkerFinished(node=error.node, reason=f"round {entry.rounds + 1} of key {entry.name!r}")
        return [t for rank in ranks for t in self._fail(entry.queues[rank].popleft().ticket, error)]

    def _finish(self, contribution: Contribution, entry: Entry) -> list[Ticket]:
        """One key of a request is done; returns the ticket when it was the last."""
        ticket, index = contribution.ticket, contribution.index
        ticket.values[index], ticket.versions[index], ticket.codes[index] = entry.value, entry.version, entry.code
        ticket.due -= 1
        if ticket.due or ticket.finished:
            return []
        ticket.finished = True
        return [ticket]

    def _fail(self, ticket: Ticket, error: Exception, what: str = "") -> list[Ticket]:
        """The first error answers the request; what it does to its other keys goes on."""
        ticket.due -= 1
        if ticket.finished:
            return []
        ticket.finished, ticket.error, ticket.what = True, error, what
        return [ticket]

    # -- members ------------------------------------------------------------------------------------------------------

    def on_peer_ended(self, rank: int, error: PeerError) -> list[Ticket]:
        """A worker finished, failed or was lost: rounds that need it fail at once, unless it left them."""
        self._gone[rank] = error
        if isinstance(error, WorkerLeft):
            self._members.discard(rank)
        done = self._agreement.on_decider_gone(error) if rank == 0 else []
        return done + [t for entry in self._entries.values() for t in self._advance(entry)]

    def missing(self, mine: Callable[[Any], bool]) -> list[str]:
        """Who the request whose token is ``mine`` waits for: ranks, with the round and the key."""
        waiting = self._agreement.missing(mine)
        if waiting:
            return waiting
        for entry in self._entries.values():
            if any(mine(c.ticket.token) for queue in entry.queues.values() for c in queue):
                absent = sorted(rank for rank in self._members if not entry.queues.get(rank))
                return [f"worker {rank} (round {entry.rounds + 1} of key {entry.name!r})" for rank in absent]
        return []

    def __repr__(self) -> str:
        parked = sum(len(q) for e in self._entries.values() for q in e.queues.values())
        size = sum(e.value.nbytes for e in self._entries.values())
        return f"<Store keys={len(self._entries)} bytes={size} parked={parked} {'sync' if self.sync else 'async'}>"


_NOTHING: Array = np.empty(0, np.uint8)


def _check(entry: Entry, value: Array, code: int) -> None:
    if code != entry.code:
        raise DTypeError(key=entry.name, got=NAMES[code], expected=NAMES[entry.code])
    if value.shape != entry.value.shape:
        raise ShapeError(key=entry.name, got=list(value.shape), expected=list(entry.value.shape))


def _free(entry: Entry) -> Array:
    """An array to write the next value into: the spare one, if no reply reads it any more."""
    spare, entry.spare = entry.spare, None
    if spare is not None and spare.base is None and spare.flags.writeable and sys.getrefcount(spare) == _ALONE:
        return spare
    return np.empty_like(entry.value, order="C", subok=False)


def _references_of_a_local() -> int:
    """What getrefcount says of an object that one local name holds: it depends on the interpreter's version."""
    local = object()
    return sys.getrefcount(local)


_ALONE = _references_of_a_local()

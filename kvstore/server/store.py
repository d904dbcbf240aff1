"""The server's brain: keys and rounds. A state machine without I/O, clock or randomness.

A round of a key takes one contribution from every member rank; a worker's k-th push of a key is its contribution to
round k. Contributions wait in one queue per (key, rank), so a pull never overtakes the pushes before it, and sums are
taken in rank order: the same bits whatever the order of arrival.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import Array
from kvstore.checkpoint.unit import Unit
from kvstore.commands import CODED, WHOLE
from kvstore.compression import Codec
from kvstore.keys import Key
from kvstore.rows import Content, Ids, Received
from kvstore.rules import Rule
from kvstore.spec import Place, Spec
from kvstore.value import Value
from pslite.dtypes import code_of
from pslite.errors import (
    DuplicateKeyError,
    PeerError,
    ProtocolError,
    PSError,
    UnknownKeyError,
    WorkerFinished,
)
from pslite.failpoints import failpoint
from pslite.memory import PLAIN, KeptMemory, Memory

from .bundle import Bundle, alike, split
from .entry import Contribution, Entry
from .kept import Kept
from .meeting import Meeting
from .members import Members
from .reopening import Found
from .settings import Settings
from .statelog import StateLog
from .ticket import UNASKED, Answer, Ticket


@dataclass(slots=True, eq=False)
class New:
    """A key to be created; the content of a row-sparse one is rows."""

    spec: Spec
    split: bool
    content: Content
    place: Place | None = None


@dataclass(slots=True, eq=False)
class Coded:
    """A compressed push; ``number``: which one of its worker, for the key."""

    codec: Codec
    arrays: list[Array]
    number: int


Apply = Callable[[Value, Sequence[Received], Rule | None, int], None]


class Store:
    """All keys of one server. ``apply`` runs for each round, in place of ``Value.apply``; ``memory`` has the values."""

    def __init__(self, num_workers: int, apply: Apply = Value.apply, memory: Memory = PLAIN) -> None:
        self._apply_to = apply
        self._memory = memory
        self.parked = 0  # contributions in all queues
        self._entries: dict[int, Entry] = {}  # by key on the wire
        self._bundles: dict[bytes, Bundle] = {}  # by the bytes of their keys; no key is in two of them
        self._bursts: dict[tuple[int, int], Ticket] = {}  # by rank and number, those that have no answer yet
        self._apart: dict[tuple[int, int], dict[int, Ticket]] = {}  # by rank and number: keys of bursts, not asked for
        self._told_apart: list[Ticket] = []  # bursts that are to be answered with that
        self.members = Members(num_workers)
        self.stash: dict[
            tuple[int, int], tuple[Array | None, int]
        ] = {}  # by rank and key: residuals on their way, pushes
        self.meeting = Meeting(self.members)
        self.settings = Settings(self._split_key, self.members)
        self.kept: StateLog | None = None  # what a successor finds; None: nothing
        self._rules_before: dict[tuple[int, int, int], Rule | None] = {}  # by rank, key, number of the push

    def keep(self, memory: KeptMemory) -> None:
        """Have all of it outlive this process, and go on with what a predecessor left; before anything is served.

        Raises KeeperError if that is damaged.
        """
        kept = Kept(memory)
        found = kept.found()
        if found is not None:
            self.go_on(found)
        self.tell(kept)

    def go_on(self, found: Found) -> None:
        """Become what a predecessor had; before anything is served."""
        self._entries, self._bundles, self._rules_before = found.entries, found.bundles, found.parked
        self.settings.from_kept(found.settings, found.rules.get)

    def tell(self, kept: StateLog) -> None:
        """Have each change told from now on, for a successor."""
        self.kept = kept
        for entry in self._all():
            entry.value.kept = kept
        kept.begin(self._entries, self._bundles.values(), self.settings, self._parked_before)

    def stop_telling(self) -> None:
        """There will be no successor that hears of it."""
        self.kept = None
        for entry in self._all():
            entry.value.kept = None

    def _split_key(self) -> Key | None:
        return next((entry.value.spec.key for entry in self._entries.values() if entry.split), None)

    def _parked_before(self) -> list[tuple[int, int, int, Rule | None]]:
        """Pushes that wait, and whose worker has said since that another rule counts: rank, key, number, rule."""
        found = [(*push, rule) for push, rule in self._rules_before.items()]  # those that have not come again yet
        for wires, entry in self._with_wires():
            for rank, queue in entry.queues.items():
                now = self.settings.rule_of(rank)
                for c in queue:
                    if c.content is not None and c.rule is not now:
                        numbers = np.broadcast_to(np.asarray(c.number, np.uint64), (len(wires),)).tolist()
                        found += [(rank, wire, number, c.rule) for wire, number in zip(wires, numbers, strict=True)]
        return found

    def _with_wires(self) -> Iterable[tuple[list[int], Entry]]:
        """Everything that may have something waiting for it, with its keys on the wire."""
        yield from (([wire], entry) for wire, entry in self._entries.items())
        yield from ((np.frombuffer(bundle.id, np.uint64).tolist(), bundle) for bundle in self._bundles.values())

    # -- requests -----------------------------------------------------------------------------------------------------

    def init(
        self, token: Any, rank: int, new: dict[int, New], units: Mapping[int, Unit] = MappingProxyType({}),
        rule: Rule | None = None
    ) -> list[Ticket]:  # fmt: skip
        """Create keys, by key on the wire. Those of ``units`` become what was saved, under this rule."""
        ticket = Ticket(token, rank)
        taken = next((n.spec.key for wire, n in new.items() if wire in self._entries), None)
        if taken is not None:
            ticket.error = DuplicateKeyError(key=taken)
            return [ticket]
        try:
            entries = {
                wire: Entry(self._value(n), n.split, place=n.place) for wire, n in new.items()
            }
            for wire, unit in units.items():
                entries[wire].value.restore(unit, rule)
            if self.kept is not None:
                self.kept.created(entries)
                ticket.needs = self.kept.told
        except PSError as error:
            ticket.error = error
            return [ticket]
        self._entries.update(entries)
        return [ticket]

    def untouched(self, wires: range) -> list[tuple[int, Key]]:
        """Those of these keys on the wire that nobody has pushed, with their names."""
        found = [(wire, self._entries[wire]) for wire in wires if wire in self._entries]
        return [(wire, entry.value.spec.key) for wire, entry in found if _is_untouched(entry)]

    def forget(self, wires: Iterable[int]) -> None:
        """These were created, and nobody was told of them: their worker is lost."""
        known = [wire for wire in wires if wire in self._entries and _is_untouched(self._entries[wire])]
        if self.kept is not None and known:
            self.kept.forgotten([self._entries[wire] for wire in known])
        for wire in known:
            del self._entries[wire]

    def _value(self, new: New) -> Value:
        memory = self._memory if self.kept is None else self.kept.memory
        return Value.create(new.spec, new.content, memory, self.kept)

    def absent(self, new: dict[int, New]) -> dict[int, New]:
        """Those of these keys that are not here, just so, already."""
        here = self._entries
        return {wire: n for wire, n in new.items() if wire not in here or here[wire].value.spec != n.spec}

    def request(
        self,
        token: Any,
        rank: int,
        keys: Sequence[int],
        pushed: Sequence[tuple[Content | Coded, int]] = (),
        wanted: Sequence[Ids | None] = (),
        pull: bool = False,
        codec: Codec | None = None,
        number: int | None = None,
        numbers: Sequence[int] = (),
    ) -> list[Ticket]:
        """Push (contents with their dtype codes), pull (of some rows each, or all), or both.

        ``codec``: for what is pulled; ``number``: of a burst; ``numbers``: of the worker's push of each key. One that
        was taken in before, of a worker that was restarted or for a server that was, is answered in its turn, and not
        applied again. Returns the tickets that are done now, this one maybe among them.
        """
        ticket = Ticket(token, rank, pull, codec, number=number)
        try:
            entries = [self._find(key) for key in keys]
            pairs = zip(entries, pushed, strict=bool(pushed))
            contents = [_content(entry.value.spec, content, code, rank) for entry, (content, code) in pairs]
            for entry, ids in zip(entries, wanted, strict=bool(wanted)):
                entry.value.spec.check_wanted(ids)
        except PSError as error:
            ticket.error = error
            return [ticket]
        if not keys:
            ticket.finished = True
            return [ticket]
        done: list[Ticket] = []
        rule = self.settings.rule_of(rank)
        self._note(ticket)
        for i, (entry, (own, index)) in enumerate(zip(entries, ticket.per_key(len(keys)), strict=True)):
            content, ids = contents[i] if contents else None, wanted[i] if wanted else None
            contribution = Contribution(own, index, content, ids, rule)
            if content is not None and numbers and not self._is_new(entry, rank, contribution, numbers[i]):
                contribution.content = content = None
            if self._rules_before and content is not None:
                contribution.rule = self._rules_before.pop((rank, keys[i], numbers[i] if numbers else 0), rule)
            self.parked += 1
            if content is None and not entry.queues.get(rank):  # a pull that nothing is before
                done += self._finish(contribution, entry)
                continue
            entry.add(rank, contribution)
            done += self._advance(entry)
        return done

    def _is_new(self, entry: Entry, rank: int, contribution: Contribution, number: int) -> bool:
        """Whether a push was not taken in before; it is now."""
        contribution.number = number
        if number <= entry.taken.get(rank, 0):
            return False
        entry.taken[rank] = number
        return True

    def read(self, token: Any, rank: int, keys: Sequence[int], wanted: Sequence[Ids | None] = (),
             codec: Codec | None = None) -> list[Ticket]:  # fmt: skip
        """The current values, at once: for a request that was served before and whose answer got lost."""
        entries = [self._find(key) for key in keys]
        ids = wanted or [None] * len(entries)
        for entry, i in zip(entries, ids, strict=True):
            entry.value.spec.check_wanted(i)
        answers = [_answer(entry.value, i, codec, self._memory) for entry, i in zip(entries, ids, strict=True)]
        needs = max((entry.told for entry in entries), default=0)
        return [Ticket(token, rank, True, codec, 0, list(answers), needs=needs)]

    def unit(self, key: int, with_value: bool) -> Unit:
        """What there is to save of a key, in memory of its own."""
        unit = self._find(key).value.unit(with_value, self.settings.rule)
        if unit.ids is None:
            unit.arrays = {name: array.copy() for name, array in unit.arrays.items()}
        return unit

    def restore(self, rank: int, units: dict[int, Unit]) -> None:
        """Make keys what was saved; their slots are those of the rule that this worker's pushes use."""
        for key, unit in units.items():
            entry = self._find(key)
            entry.value.restore(unit, self.settings.rule_of(rank))
            entry.taken, entry.applied = {}, {}  # the numbers of pushes go back with the rest
            if (error := self._tell(entry)) is not None:
                raise error

    def keys(self) -> list[int]:
        """All keys on the wire."""
        return list(self._entries)

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    def specs(self) -> list[Spec]:
        """Those of all keys."""
        return [entry.value.spec for entry in self._entries.values()]

    def whole(self, key: int) -> Entry:
        """The entry that has a key's value: its own, or that of a bundle whose next update is of all its keys."""
        bundle = self._entries[key].bundle
        alike = isinstance(bundle, Bundle) and bundle.updates_alike(self.members.lead, self.settings.rule)
        return bundle if bundle is not None and alike else self._find(key)

    def _find(self, key: int) -> Entry:
        """The entry of a key, which is in no bundle any more."""
        entry = self._entries.get(key)
        if entry is None:
            raise UnknownKeyError(key=key)
        if isinstance(entry.bundle, Bundle):
            self._end(entry.bundle)
        return entry

    # -- requests for many small keys ---------------------------------------------------------------------------------

    def request_all(
        self, token: Any, rank: int, keys: NDArray[np.uint64], pushed: tuple[Array, int] | None, pull: bool,
        number: int | None = None, numbers: NDArray[np.uint64] | None = None
    ) -> list[Ticket]:  # fmt: skip
        """``request`` for dense keys whose values lie behind each other in one array."""
        rule = self.settings.rule_of(rank)
        try:
            bundle = None if self._rules_before else self._bundle(keys, rank, rule)
            if bundle is not None and numbers is not None and not bool((numbers > bundle.taken.get(rank, 0)).all()):
                self._end(bundle)  # some of it was taken in before
                bundle = None
            if bundle is None:
                contents = () if pushed is None else [(part, pushed[1]) for part in self._parts(keys, pushed[0])]
                each = () if numbers is None else numbers.tolist()
                return self.request(token, rank, keys.tolist(), contents, pull=pull, number=number, numbers=each)
            ticket = Ticket(token, rank, pull, None, 1, [None], number=number)
            if pushed is not None:
                bundle.value.spec.check(*pushed)
        except PSError as error:
            return [Ticket(token, rank, error=error)]
        self._note(ticket)
        contribution = Contribution(ticket, 0, None if pushed is None else pushed[0], None, rule)
        if numbers is not None:
            bundle.taken[rank] = contribution.number = numbers
        bundle.add(rank, contribution)
        self.parked += bundle.keys
        return self._advance(bundle)

    def _bundle(self, keys: NDArray[np.uint64], rank: int, rule: Rule | None) -> Bundle | None:
        """The bundle of these keys; None if they must be served one by one."""
        id = keys.tobytes()
        bundle = self._bundles.get(id)
        if bundle is None:
            members = [self._find(key) for key in keys.tolist()]
            if not bool(np.all(keys[1:] > keys[:-1])):
                raise ProtocolError("the keys of a request for many are not ascending")
            if members and alike(rule, [entry.value.spec.key for entry in members]):
                bundle = Bundle.of(id, members)
            if bundle is not None:
                self._bundles[id] = bundle
                if self.kept is not None:
                    self.kept.bundled(bundle)
                    bundle.told = self.kept.told
            return bundle
        if bundle.updates_alike(rank, rule):
            return bundle
        self._end(bundle)
        return None

    def _end(self, bundle: Bundle) -> None:
        del self._bundles[bundle.id]
        tickets = bundle.end()
        if self.kept is not None:
            self.kept.ended(bundle)
            for entry in bundle.members:
                entry.told = self.kept.told
        for ticket in tickets:
            if ticket.hurried:
                self._tell_apart(ticket)

    # -- bursts: calls that travelled together, and end one by one ----------------------------------------------------

    def _note(self, ticket: Ticket) -> None:
        if ticket.number is not None:
            self._bursts[ticket.rank, ticket.number] = ticket

    def hurry(self, rank: int, number: int) -> None:
        """A worker does not wait for all of a burst: calls that end before others must be told apart."""
        ticket = self._bursts.get((rank, number))
        if ticket is not None and ticket.apart:
            self._tell_apart(ticket)
        elif ticket is not None:
            ticket.hurried = True

    def _tell_apart(self, ticket: Ticket) -> None:
        """The answer of a burst is that it is served key by key; its worker asks for the outcomes."""
        assert ticket.number is not None
        ticket.finished = ticket.told = True
        self._apart[ticket.rank, ticket.number] = dict(enumerate(ticket.apart))
        ticket.apart = []
        self._bursts.pop((ticket.rank, ticket.number), None)
        self._told_apart.append(ticket)

    def _ended(self, ticket: Ticket) -> list[Ticket]:
        """A request is done, or has failed; returns it, or what it was the last of, if that can be answered."""
        ticket.finished = True
        if ticket.number is not None:
            self._bursts.pop((ticket.rank, ticket.number), None)
        whole = ticket.whole
        if whole is None or ticket.token is not UNASKED:
            return [ticket]
        if whole.finished:
            return []  # it was told apart, and will be asked for
        whole.due -= 1
        if ticket.error is not None:
            self._tell_apart(whole)
        if whole.due or whole.finished:
            return []
        whole.answers, whole.apart = [own.answers[0] for own in whole.apart], []
        return self._ended(whole)

    def told_apart(self) -> list[Ticket]:
        """The bursts of which that has turned out since the last call."""
        told, self._told_apart = self._told_apart, []
        return told

    def outcome(self, token: Any, rank: int, number: int, index: int) -> list[Ticket]:
        """A worker asks for the outcome of one key of a burst."""
        apart = self._apart.get((rank, number), {})
        ticket = apart.pop(index, None)
        if ticket is None:
            raise ProtocolError(f"there is no key {index} of burst {number}, or it was asked for before")
        if not apart:
            del self._apart[rank, number]
        ticket.token = token
        return [ticket] if ticket.finished else []

    def _parts(self, keys: NDArray[np.uint64], flat: Array) -> list[Array]:
        shapes = [self._find(key).value.spec.shape for key in keys.tolist()]
        if sum(map(math.prod, shapes)) != flat.size:
            raise ProtocolError(f"{flat.size} values came for {len(keys)} keys of another size")
        return split(flat, shapes)

    # -- rounds -------------------------------------------------------------------------------------------------------

    def _advance(self, entry: Entry) -> list[Ticket]:
        """Do everything that the key's queues allow: answer pulls at their heads, apply complete rounds."""
        done: list[Ticket] = []
        while True:
            ranks = []
            for rank, queue in entry.queues.items():
                while queue and queue[0].content is None:
                    done += self._finish(queue.popleft(), entry)
                if queue:
                    ranks.append(rank)
            if not ranks:
                return done
            ranks.sort()
            if not self.settings.sync:
                for rank in ranks:
                    done += self._apply(entry, [entry.queues[rank].popleft()])
                continue
            ranks, missing = self._next_round(entry, ranks)
            if not missing:
                done += self._apply(entry, [entry.queues[rank].popleft() for rank in ranks])
                continue
            gone = self.members.gone
            error = next((gone[rank] for rank in sorted(missing) if rank in gone), None)
            if error is None:
                return done
            done += self._fail_round(entry, ranks, error)

    def _next_round(self, entry: Entry, ranks: list[int]) -> tuple[list[int], set[int]]:
        """Of the ranks whose pushes are here, those in the next round, and who is missing in it."""
        if not self.members.late:
            return ranks, self.members.needed.difference(ranks)
        return self.members.round_of({rank: entry.queues[rank][0].step for rank in ranks})

    def _apply(self, entry: Entry, contributions: list[Contribution]) -> list[Ticket]:
        """One round (or one asynchronous push): contributions in rank order become the new value."""
        entry.rounds += 1
        entry.applied.update((c.ticket.rank, c.number) for c in contributions)
        first = contributions[0]
        contents = [c.content for c in contributions if c.content is not None]
        failpoint("before_apply")
        error: Exception | None = None
        try:
            self._apply_to(entry.value, contents, first.rule, first.ticket.rank)
        except Exception as raised:  # user code: the value stays, and every contributor gets the error
            error = raised
        error = self._tell(entry) or error
        if error is not None:
            what = "" if first.rule is None else first.rule.what
            return [t for c in contributions for t in self._fail(c.ticket, entry, error, what)]
        return [t for c in contributions for t in self._finish(c, entry)]

    def _tell(self, entry: Entry) -> PSError | None:
        """Have a successor know what has become of an entry, or say why it cannot."""
        if self.kept is None:
            return None
        error = self.kept.applied(entry)
        entry.told = self.kept.told
        return error

    def _fail_round(self, entry: Entry, ranks: list[int], error: PeerError) -> list[Ticket]:
        """The round needs a rank that is gone: its contributors get the error, and the value stays."""
        if isinstance(error, WorkerFinished):
            error = WorkerFinished(node=error.node, reason=f"round {entry.rounds + 1} of key {entry.value.spec.key!r}")
        return [t for rank in ranks for t in self._fail(entry.queues[rank].popleft().ticket, entry, error)]

    def _finish(self, contribution: Contribution, entry: Entry) -> list[Ticket]:
        """One key of a request is done; returns the ticket when it was the last."""
        ticket = contribution.ticket
        ticket.needs = max(ticket.needs, entry.told)
        if ticket.pull:
            try:
                answer = _answer(entry.value, contribution.ids, ticket.codec, self._memory)
            except Exception as error:  # a codec is user code: its error is this request's only
                return self._fail(ticket, entry, error, "the codec")
            answer.version = entry.version
            ticket.answers[contribution.index] = answer
        self.parked -= entry.keys
        ticket.due -= 1
        if ticket.due or ticket.finished:
            return []
        return self._ended(ticket)

    def _fail(self, ticket: Ticket, entry: Entry, error: Exception, what: str = "") -> list[Ticket]:
        """The first error answers the request; what it does to its other keys goes on."""
        self.parked -= entry.keys
        ticket.due -= 1
        ticket.needs = max(ticket.needs, entry.told)
        if ticket.finished:
            return []
        ticket.error, ticket.what = error, what
        return self._ended(ticket)

    def taken(self, rank: int) -> tuple[list[int], list[int]]:
        """All keys, and the number of this worker's last push of each that is in the value; 0 if there was none.

        Those that wait for others are not told: they would be lost with this server.
        """
        numbers = {wire: entry.applied.get(rank, 0) for wire, entry in self._entries.items()}
        for bundle in self._bundles.values():
            wires = np.frombuffer(bundle.id, np.uint64).tolist()
            numbers.update(zip(wires, bundle.each(bundle.applied.get(rank, 0)).tolist(), strict=True))
        return list(numbers), [int(number) for number in numbers.values()]

    # -- members ------------------------------------------------------------------------------------------------------

    def on_peer_ended(self, rank: int, error: PeerError) -> list[Ticket]:
        """A worker finished, failed or was lost: rounds that need it fail at once, unless it left them."""
        done = self.members.on_peer_ended(rank, error)
        self._forget(rank)
        lead = self.members.lead
        done += self.settings.on_lead(lead, self.members.gone.get(lead))
        done += self.meeting.on_peer_ended(rank, error)
        return done + [t for entry in self._all() for t in self._advance(entry)]

    def on_peer_away(self, rank: int, error: PeerError) -> list[Ticket]:
        """A worker died, and its successor is awaited: what it has pushed counts, its questions do not."""
        self._forget(rank)
        self.members.on_peer_away(rank)
        for entry in self._all():
            entry.leave(rank)
        return self.meeting.on_peer_away(rank, error)

    def _forget(self, rank: int) -> None:
        """What only the process that died can go on with."""
        self._rules_before = {push: rule for push, rule in self._rules_before.items() if push[0] != rank}
        self._apart = {burst: tickets for burst, tickets in self._apart.items() if burst[0] != rank}

    def missing(self, mine: Callable[[Any], bool]) -> list[str]:
        """Who the request whose token is ``mine`` waits for: ranks, with the round and the key."""
        waiting = self.settings.missing(mine) or self.meeting.missing(mine) or self.members.missing(mine)
        if waiting:
            return waiting
        for entry in self._all():
            tokens = {c.ticket.token for queue in entry.queues.values() for c in queue}
            if any(mine(token) for token in tokens - {UNASKED}):
                _, absent = self._next_round(entry, [rank for rank, queue in entry.queues.items() if queue])
                where = f"round {entry.rounds + 1} of key {entry.value.spec.key!r}"
                return [f"worker {rank} ({where})" for rank in sorted(absent)]
        return []

    def _all(self) -> Iterable[Entry]:
        """Everything that may have something waiting for it."""
        return itertools.chain(self._entries.values(), self._bundles.values())

    def __repr__(self) -> str:
        size = sum(entry.value.data.nbytes for entry in self._all())
        return f"<Store keys={len(self._entries)} bytes={size} parked={self.parked} {self.settings}>"


def _is_untouched(entry: Entry) -> bool:
    return not (entry.rounds or entry.applied or entry.bundle or any(entry.queues.values()))


def _content(spec: Spec, content: Content | Coded, code: int, rank: int) -> Received:
    """What is pushed, checked; what is coded can be decoded, or is."""
    if isinstance(content, Coded):
        spec.check(np.broadcast_to(np.float32(0), spec.shape), code)
        codec, salt = content.codec, content.codec.salt_of(spec.key, content.number, rank)
        return codec.deferred(content.arrays, spec.shape, salt)
    spec.check(content, code)
    return content


def _answer(value: Value, ids: Ids | None, codec: Codec | None, memory: Memory) -> Answer:
    if codec is not None and ids is None and value.can_be_coded:
        used, arrays = value.coded(codec)
        kind = WHOLE if used is None else CODED
        return Answer(arrays, [code_of(array.dtype) for array in arrays], value.version, kind)
    return Answer([value.read(ids, memory)], [value.spec.code], value.version, fresh=ids is not None)

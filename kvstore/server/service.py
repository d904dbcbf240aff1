"""The server's shell: carries requests from the KVServer into the store, and what it decides back out."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import pslite
from kvstore.arrays import Array
from kvstore.checkpoint.wire import held_of, pairs_of_held, pairs_of_units, units_of
from kvstore.commands import (
    AGAIN,
    BUNDLE,
    CODED,
    CONTROL_APP,
    DATA,
    DATA_APP,
    HELD_AT_ONCE,
    INIT,
    LOAD,
    OF_LEAD,
    OUTCOME,
    ROWS,
    SAVE,
    STASH,
    UNSTASH,
    USER_APP,
    WHOLE,
)
from kvstore.compression import Codec, cached
from kvstore.keys import checked
from kvstore.rows import Content, Ids, Rows
from kvstore.spec import Place, Spec
from pslite import WORKER_GROUP, Flag, KVMeta, KVPairs, KVServer, PeerAway, PeerBack, Postoffice, SimpleApp, SimpleData
from pslite.dtypes import CODES
from pslite.errors import PeerError, ProtocolError, PSError, StateLost
from pslite.failpoints import failpoint

from .members import CALLS
from .profiling import Profile
from .replica import Contents
from .replication import Adopt, Replication
from .saving import open_saving
from .store import Coded, New, Store
from .ticket import Ticket

log = logging.getLogger("kvstore.server")

REMEDY = (
    "start the whole job again, with PSLITE_RESUME=1 from a checkpoint in PSLITE_CHECKPOINT_DIR; "
    "pslite-launch --max-restarts keeps what servers hold"
)
_NOT_FOR_EACH = "the values of a key-value message are not arrays, one or more for each key"


class Service:
    """One server's store, served until the job is over. Runs on the postoffice's leading thread.

    ``contents``: what it goes on with, in place of a server that died; ``adopt``: has this process take such a place.
    """

    def __init__(self, office: Postoffice, contents: Contents | None = None, adopt: Adopt | None = None) -> None:
        self._office = office
        self._profile = Profile(office.node)
        self.store = Store(office.num_workers, self._profile.apply, office.memory)
        if contents is not None:
            self.store.go_on(contents.open(office.memory))
        elif office.config.keeper_fd is not None and (memory := office.open_kept()) is not None:
            self.store.keep(memory)
        self._replication = None
        if adopt is not None and office.backup is not None:
            self._replication = Replication(office, self.store, adopt)
        self._saving = open_saving(office, self.store, self._finish)
        if office.again and contents is None and self.store.kept is None:
            self._must_resume()
        self._init = self.store.init if self._saving is None else self._saving.init
        self._data = KVServer(DATA_APP, office)
        office.on_peer_ended(self._on_peer_ended)
        office.on_peer_moved(self._on_peer_moved)
        office.on_parked(self._missing)
        self._control = SimpleApp(CONTROL_APP, 0, office, self._on_control)
        self._user = SimpleApp(USER_APP, 0, office, self._on_user_command)
        self._data.set_handle(self._profile.requests(self._on_data, self.store))
        if office.config.restarts:  # there may be workers that came later, and some that ended before
            for node in office.node_ids(WORKER_GROUP):
                self.store.members.came(pslite.rank_of(node))
                if (ended := office.ended(node)) is not None:
                    self._on_peer_ended(node, ended)

    def _must_resume(self) -> None:
        """Nothing is left of what the predecessor acknowledged: go on from a checkpoint, or not at all."""
        if self._saving is None or not self._saving.resumes:
            self.close()
            raise StateLost(node=self._office.name, reason=REMEDY)

    def close(self) -> None:
        """The job is over."""
        if self._saving is not None:
            self._saving.close()

    def _on_data(self, meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        rank = pslite.rank_of(meta.sender)
        if meta.cmd == DATA:
            self._finish(self._on_values(meta, pairs, rank))
        elif meta.cmd == BUNDLE:
            self._finish(self._on_bundle(meta, pairs, rank))
        elif meta.cmd == OUTCOME:
            self._finish(self._on_outcome(meta, pairs, rank))
        else:
            self._on_other(meta, pairs, rank)

    def _on_values(self, meta: KVMeta, pairs: KVPairs, rank: int) -> list[Ticket]:
        """A push or pull, key by key."""
        keys, codec = pairs.keys.tolist(), _codec(meta, 1)
        if meta.push:
            numbers = () if pairs.rounds is None else pairs.rounds.tolist()
            contents = _contents(meta, pairs)
            return self.store.request(meta, rank, keys, contents, pull=meta.pull, codec=codec, numbers=numbers)
        if meta.replay:  # a pull or a pushpull: the answers of pushes have no arrays, and are kept by delivery
            wanted = () if meta.message.flags & Flag.PUSH else _wanted(pairs)
            return self.store.read(meta, rank, keys, wanted, codec)
        return self.store.request(meta, rank, keys, (), _wanted(pairs), True, codec)

    def _on_bundle(self, meta: KVMeta, pairs: KVPairs, rank: int) -> list[Ticket]:
        """A push or pull of many small keys."""
        if meta.replay:
            return self.store.read(meta, rank, pairs.keys.tolist())
        pushed = None
        if meta.push:
            if isinstance(pairs.vals, list):
                raise ProtocolError("the values of a request for many keys are not one array")
            assert meta.message.codes is not None
            pushed = pairs.vals, meta.message.codes[-1]
        number = meta.timestamp if meta.meta is True else None
        numbers = None if pairs.rounds is None or not meta.push else pairs.rounds.copy()
        return self.store.request_all(meta, rank, pairs.keys, pushed, meta.pull, number, numbers)

    def _on_outcome(self, meta: KVMeta, pairs: KVPairs, rank: int) -> list[Ticket]:
        """A worker asks how a call of a burst ended."""
        if meta.replay:
            return self.store.read(meta, rank, pairs.keys.tolist())
        if type(meta.meta) is int:
            self.store.hurry(rank, meta.meta)
            return [Ticket(meta, rank)]
        if not (isinstance(meta.meta, list) and [type(n) for n in meta.meta] == [int, int]):
            raise ProtocolError("a malformed question for an outcome")
        return self.store.outcome(meta, rank, *meta.meta)

    def _on_other(self, meta: KVMeta, pairs: KVPairs, rank: int) -> None:
        """What is neither a push nor a pull."""
        if meta.cmd in OF_LEAD:
            self._must_lead(meta.sender, f"command {meta.cmd}")
        if meta.cmd in (SAVE, LOAD, STASH, UNSTASH):
            self._when_safe(partial(self._data.response, meta, self._on_checkpoint(meta, pairs, rank)))
            self._finish([])
        elif meta.cmd == INIT:
            self._finish(self._init(meta, rank, self._to_create(meta, pairs)))
        else:
            raise ProtocolError(f"command {meta.cmd} is not known here: install the same version everywhere")

    def _on_checkpoint(self, meta: KVMeta, pairs: KVPairs, rank: int) -> KVPairs | None:
        """Parts of a checkpoint, on their way to the lead or from it."""
        keys = pairs.keys.tolist()
        if meta.cmd == SAVE:
            return pairs_of_units({key: self.store.unit(key, bool(meta.meta)) for key in keys})
        if meta.cmd == LOAD:
            self.store.restore(rank, units_of(pairs))
            return None
        if meta.cmd == STASH:
            stashed = {
                wire: (None if array is None else array.copy(), n) for wire, (array, n) in held_of(pairs).items()
            }
            self.store.stash.update(((meta.meta, wire), part) for wire, part in stashed.items())
            return None
        return pairs_of_held({key: self.store.stash[meta.meta, key] for key in keys})

    def _on_control(self, data: SimpleData, app: SimpleApp) -> None:
        what, value = data.body
        rank = pslite.rank_of(data.sender)
        if what == "change":
            self.store.settings.change(rank, *value)
            self._keep_settings()
            self._when_safe(partial(app.response, data))
        elif what == "meet":
            what, step = value
            self._finish(self.store.meeting.enter(Ticket(data, rank), str(what), int(step)))
        elif what == "decide":
            self._must_lead(data.sender, what)
            error = None if value[0] is None else PSError.from_wire(value[0])
            self._finish(self.store.meeting.decide(Ticket(data, rank), error, value[1]))
        elif what in CALLS:
            tickets = self.store.members.ask(Ticket(data, rank), what, value)
            if what != "begin" or len(tickets) > 1:  # else nothing has changed that a successor must know
                self._keep_settings()
            self._when_safe(partial(self._finish, tickets))
        elif what == "resume":
            self._when_safe(partial(app.response, data, self.store.taken(rank)))
        elif what == "held":
            app.response(data, self._held(int(value)))
        elif what == "forget":
            self._must_lead(data.sender, what)
            self.store.forget(value)
            self._when_safe(partial(app.response, data))
        elif what == "profile":
            app.response(data, self._profile.on_control(value))
        elif what == "clear stash":
            self.store.stash = {(owner, key): part for (owner, key), part in self.store.stash.items() if owner != rank}
            app.response(data)
        else:
            tickets = self.store.settings.agree(data, rank, str(what), value)
            self._keep_settings()
            self._when_safe(partial(self._finish, tickets))

    def _held(self, ordinal: int) -> list[Any]:
        """For a new lead: ordinals that are used, bytes, and of some keys those that may be known to nobody."""
        start, _ = self._office.server_key_ranges()[self._office.rank]
        wires, first = self.store.keys(), start + ordinal
        used = max(wires) - start + 1 if wires else 0
        untouched = self.store.untouched(range(first, first + HELD_AT_ONCE))
        return [used, sum(spec.nbytes for spec in self.store.specs()), untouched]

    def _must_lead(self, sender: int, what: str) -> None:
        lead = self.store.members.lead
        if sender != pslite.worker_id(lead):
            raise ProtocolError(f"{what} is for worker {lead} to send, not for {pslite.name_of(sender)}")

    def _keep_settings(self) -> None:
        if self.store.kept is not None:
            self.store.kept.set()

    def _when_safe(self, answer: Callable[[], None], change: int | None = None) -> None:
        """Answer once another server has this change, by default the last one, if there are to be replicas."""
        if self._replication is None or self.store.kept is None:
            answer()
        else:
            self._replication.when_safe(self.store.kept.told if change is None else change, answer)

    def _on_user_command(self, data: SimpleData, app: SimpleApp) -> None:
        log.info("command %s from %s", data.head, self._office.name_of(data.sender))
        app.response(data)

    def _missing(self, message: Any) -> list[str]:
        """Who a request waits for."""
        own = [] if self._saving is None else self._saving.missing(message)
        return own or self.store.missing(lambda token: token.message is message)

    def _on_peer_ended(self, node: int, error: PeerError) -> None:
        if pslite.role_of(node) == "worker":
            self._finish(self.store.on_peer_ended(pslite.rank_of(node), error))

    def _to_create(self, meta: KVMeta, pairs: KVPairs) -> dict[int, New]:
        """The keys of an init; if it may have come before, to this server or its predecessor, those not here."""
        new = _created(meta, pairs)
        return self.store.absent(new) if meta.meta.get(AGAIN) is True else new

    def _on_peer_moved(self, event: PeerAway | PeerBack) -> None:
        if pslite.role_of(event.node) != "worker":
            return
        if isinstance(event, PeerAway):
            self._finish(self.store.on_peer_away(pslite.rank_of(event.node), event.error))
        else:
            self.store.members.came(pslite.rank_of(event.node))

    def _finish(self, tickets: list[Ticket]) -> None:
        """Answer the requests that are done."""
        if told := self.store.told_apart():
            tickets = [*tickets, *told]
        self._profile.answered(tickets)
        failpoint("after_apply_before_ack")
        for ticket in tickets:
            if self._replication is None:
                self._answer(ticket)
            else:
                self._when_safe(partial(self._answer, ticket), ticket.needs)
        failpoint("after_ack")

    def _answer(self, ticket: Ticket) -> None:
        try:
            self._send(ticket)
        except PSError as error:  # an answer that cannot travel must not keep the others from theirs
            ticket.error = error
            self._send(ticket)

    def _send(self, ticket: Ticket) -> None:
        token = ticket.token
        if isinstance(token, SimpleData):
            if ticket.error is None:
                self._control.response(token, ticket.body)
            else:
                self._control.error(token, ticket.error)
        elif ticket.error is not None:
            self._data.error(token, ticket.error, ticket.what)
        elif ticket.told:
            self._data.response(token, note=True)
        elif ticket.pull:
            answered = _bundled if token.cmd == BUNDLE else _answered
            lend = any(answer is not None and answer.fresh for answer in ticket.answers)
            self._data.response(token, answered(token.message.arrays[0], ticket), lend=lend)
        else:
            self._data.response(token)


def _codec(meta: KVMeta, index: int) -> Codec | None:
    """The codec of what is pushed (0), or for what is pulled (1)."""
    if meta.meta is None:
        return None
    if not (isinstance(meta.meta, list) and len(meta.meta) == 2):
        raise ProtocolError("a request whose codecs are malformed")
    return None if meta.meta[index] is None else cached(meta.meta[index])


def _contents(meta: KVMeta, pairs: KVPairs) -> list[tuple[Content | Coded, int]]:
    """What is pushed for each key, with its dtype code."""
    if pairs.kinds is None and pairs.lens is None:  # as almost always
        if not isinstance(pairs.vals, list) or len(pairs.vals) != len(pairs.keys):
            raise ProtocolError(_NOT_FOR_EACH)
        return list(zip(pairs.vals, pairs.codes or [], strict=True))
    found: list[tuple[Content | Coded, int]] = []
    codes = iter(pairs.codes or [])
    kinds = [WHOLE] * len(pairs.keys) if pairs.kinds is None else pairs.kinds.tolist()
    numbers = [0] * len(pairs.keys) if pairs.rounds is None else pairs.rounds.tolist()
    codec = None if meta.cmd == INIT else _codec(meta, 0)
    for kind, number, arrays in zip(kinds, numbers, _arrays(pairs), strict=True):
        own = list(itertools.islice(codes, len(arrays)))
        if kind == WHOLE and len(arrays) == 1:
            found.append((arrays[0], own[0]))
        elif kind == ROWS and len(arrays) == 2:
            # What a peer could change after it was checked is copied before.
            found.append((Rows(arrays[0].copy() if pairs.lent else arrays[0], arrays[1]), own[1]))
        elif kind == CODED and codec is not None:
            arrays = [array.copy() for array in arrays] if pairs.lent else arrays
            found.append((Coded(codec, arrays, number), CODES["float32"]))
        else:
            raise ProtocolError(f"a value of kind {kind} in {len(arrays)} arrays")
    return found


def _wanted(pairs: KVPairs) -> list[Ids | None]:
    """The rows that a pull wants of each key; None: all."""
    if pairs.kinds is None:
        return [None] * len(pairs.keys)
    wanted: list[Ids | None] = []
    for kind, arrays in zip(pairs.kinds.tolist(), _arrays(pairs), strict=True):
        if kind not in (WHOLE, ROWS) or len(arrays) != (kind == ROWS):
            raise ProtocolError(f"a pull of kind {kind} with {len(arrays)} arrays")
        wanted.append(None if not arrays else arrays[0].copy() if pairs.lent else arrays[0])
    return wanted


def _arrays(pairs: KVPairs) -> list[list[Array]]:
    """The arrays of each key; raises ProtocolError unless there is an entry for each."""
    arrays = pairs.arrays() if isinstance(pairs.vals, list) else []
    if len(arrays) != len(pairs.keys):
        raise ProtocolError(_NOT_FOR_EACH)
    return arrays


def _created(meta: KVMeta, pairs: KVPairs) -> dict[int, New]:
    """The keys of an init, by key on the wire."""
    try:
        new = {}
        for wire, (content, code) in zip(pairs.keys.tolist(), _contents(meta, pairs), strict=True):
            key, split, shape, *place = meta.meta[wire]
            first, whole, flat = place or [0, shape, False]
            assert not isinstance(content, Coded)
            if not all(isinstance(n, int) and 0 <= n < 2**63 for n in [*shape, first, *whole]):
                raise ValueError(f"shape {shape!r:.80} at {first!r:.80} of {whole!r:.80}")
            spec = Spec(checked(key), tuple(shape), code, isinstance(content, Rows))
            new[wire] = New(spec, bool(split), content, Place(first, tuple(whole), bool(flat)))
        return new
    except (TypeError, LookupError, ValueError) as error:
        raise ProtocolError(f"an init without the names of its keys: {error}") from error


def _answered(keys: Any, ticket: Ticket) -> KVPairs:
    """What a pull gets."""
    answers = [answer for answer in ticket.answers if answer is not None]
    versions = np.array([answer.version for answer in answers], np.uint64)
    if len(answers) == 1 and answers[0].kind == WHOLE:
        return KVPairs(keys, answers[0].arrays, versions=versions, codes=answers[0].codes)
    arrays = [array for answer in answers for array in answer.arrays]
    pairs = KVPairs(keys, arrays, versions=versions, codes=[code for answer in answers for code in answer.codes])
    if any(answer.kind != WHOLE for answer in answers):
        pairs.kinds = np.array([answer.kind for answer in answers], np.uint64)
        pairs.lens = np.array([len(answer.arrays) for answer in answers], np.int64)
    return pairs


def _bundled(keys: Any, ticket: Ticket) -> KVPairs:
    """What a pull of many small keys gets: all at once, or key by key."""
    answers = [answer for answer in ticket.answers if answer is not None]
    if len(answers) == 1 and isinstance(versions := answers[0].version, np.ndarray):
        return KVPairs(keys, answers[0].arrays[0], versions=versions)
    versions = np.array([answer.version for answer in answers], np.uint64)
    return KVPairs(keys, np.concatenate([answer.arrays[0] for answer in answers], axis=None), versions=versions)

"""Bugs that the simulation must find, patched into the real code: else its oracles are blind."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

from kvstore.checkpoint import part
from kvstore.server.entry import Entry
from kvstore.server.kept import Kept
from kvstore.server.service import Service
from kvstore.server.store import Store
from pslite import ids
from pslite.delivery import Delivery, Inbox
from pslite.failpoints import failpoint
from pslite.postoffice.core import Core
from pslite.postoffice.membership import Membership
from pslite.van.shared.journal import Journal
from pslite.wire import Message

Patches = AbstractContextManager[Any]


def _patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Patches:
    return mock.patch.object(owner, name, make(getattr(owner, name)))


@contextmanager
def _all(*patches: Patches) -> Any:
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def duplicates_are_delivered() -> Patches:
    """A request that is sent again is done again."""

    def make(real: Any) -> Any:
        def on_request(self: Delivery, link: Any, message: Message) -> Any:
            inbox = self._inboxes.get(message.incarnation)
            if inbox is not None and message.seq in (*inbox.done, *inbox.active):
                inbox.active[message.seq] = message
                return [message], []
            return real(self, link, message)

        return on_request

    return _patched(Delivery, "on_request", make)


def numbers_are_ignored() -> Patches:
    """A server applies what a worker, or a server, that was restarted repeats."""
    return _patched(Store, "_is_new", lambda real: lambda self, entry, rank, contribution, number: True)


def duplicates_are_told_by_node() -> Patches:
    """Sequence numbers are remembered for each node, not for each incarnation."""

    def make(real: Any) -> Any:
        def on_request(self: Delivery, link: Any, message: Message) -> Any:
            if message.sender:
                first = self.__dict__.setdefault("_first", {})
                message.incarnation = first.setdefault(message.sender, message.incarnation)
            return real(self, link, message)

        return on_request

    forget = _patched(Delivery, "forget", lambda real: lambda self, incarnation: None)
    return _all(_patched(Delivery, "on_request", make), forget)


def numbers_are_not_kept() -> Patches:
    """What outlives a server is the value alone."""

    return _patched(Kept, "_state", lambda real: lambda self, id, entry: [*real(self, id, entry)[:-1], {}])


def pushes_are_answered_at_once() -> Patches:
    """Before they are applied."""

    def make(real: Any) -> Any:
        def on_data(self: Any, meta: Any, pairs: Any, server: Any) -> None:
            if meta.push and not meta.pull:
                server.response(meta)
            real(self, meta, pairs, server)

        return on_data

    return _patched(Service, "_on_data", make)


def rounds_are_counted() -> Patches:
    """A round is complete with as many contributions as there are workers, whosoever they are."""

    def make(real: Any) -> Any:
        def advance(self: Store, entry: Entry) -> Any:
            done = real(self, entry)
            queues = entry.queues
            while self.settings.sync and sum(map(len, queues.values())) >= len(self.members.needed):
                taken = [q.popleft() for q in queues.values() for _ in range(len(q))][: len(self.members.needed)]
                done += self._apply(entry, [c for c in taken if c.content is not None]) if taken else []
            return done

        return advance

    return _patched(Store, "_advance", make)


def nobody_is_fenced() -> Patches:
    """Whatever comes is taken for the member's whose node id it bears."""

    def make(real: Any) -> Any:
        def on_message(self: Core, now: float, link: Any, message: Message) -> Any:
            known = self.roster.get(message.sender)
            if known is None or known.node == ids.SCHEDULER:  # whose successor is found by that
                return real(self, now, link, message)
            genuine, away, known.away = known.incarnation, known.away, False
            known.incarnation = message.incarnation
            try:
                return real(self, now, link, message)
            finally:
                if self.roster.get(message.sender) is known and known.incarnation == message.incarnation:
                    known.incarnation, known.away = genuine, known.away or away

        return on_message

    return _patched(Core, "_on_message", make)


def gaps_are_skipped() -> Patches:
    """A request that comes before its predecessor is delivered at once."""

    def make(real: Any) -> Any:
        def accept(self: Inbox, message: Message) -> Any:
            self.expected = message.seq
            return real(self, message)

        return accept

    return _patched(Inbox, "accept", make)


def liveness_looks_at_the_wall_clock() -> Patches:
    """Members are judged by a clock that somebody may set."""
    def make(real: Any) -> Any:
        return lambda self, link, now: real(self, link, time.time())

    return _patched(Membership, "on_unreachable", make)


def records_are_announced_before_they_are_there() -> Patches:
    """The end of a journal moves, and then the record is written."""

    def make(real: Any) -> Any:
        def write(self: Journal, records: Any) -> None:
            end = self._words[1]
            self._words[1] = end + sum(8 + -(-len(record) // 8) * 8 for record in records)
            failpoint("kept_before_flip")
            self._words[1] = end
            real(self, records)

        return write

    return _patched(Journal, "_write", make)


def damage_is_not_looked_for() -> Patches:
    """The parts of checkpoints have no checksums."""
    return mock.patch.object(part, "zlib", SimpleNamespace(crc32=lambda data, before=0: 0))


BUGS: dict[str, Callable[[], Patches]] = {
    bug.__name__: bug
    for bug in (
        duplicates_are_delivered,
        numbers_are_ignored,
        duplicates_are_told_by_node,
        numbers_are_not_kept,
        pushes_are_answered_at_once,
        rounds_are_counted,
        nobody_is_fenced,
        gaps_are_skipped,
        liveness_looks_at_the_wall_clock,
        records_are_announced_before_they_are_there,
        damage_is_not_looked_for,
    )
}

"""Bursts: calls with one small key each travel together while others are under way; each has an end of its own.

A call that finds nothing under way is sent at once. What follows it is copied into the open burst, and leaves with that
when anything is waited for, when any other kind of call is made, when it is as long as those of other workers (they end
at the same keys, so that servers find the same lists of keys), or a moment later.

If the calls of a burst do not end together (workers are in different rounds of its keys, or one fails) the server says
so, and the outcome of each is asked for by itself: no call waits for another one's key for longer than a moment.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pslite import Flag, KVPairs, Postoffice, Request
from pslite.errors import PSError

from .arrays import Array
from .commands import BUNDLE, DATA, OUTCOME
from .handle import Handle
from .keys import Group, Key
from .ledger import Ordinals
from .lists import Answers, Part
from .records import Record
from .requests import Filling, pairs_of, wanted
from .single import SingleStore, Small

PATIENCE = 0.25  # seconds after which the calls of a burst are told apart that end before the others
PAGE = 256  # keys, in the order of their init: no burst has keys of two pages
LONGEST = 64 * 1024  # bytes of a burst
LINGER = 0.005  # seconds without a call after which a burst is sent, if nothing else sends it


Sent = tuple[Request, NDArray[np.uint64]]
"""A part of a burst that was sent, with the first of its keys on the wire."""


class Calls:
    """The pushes, or the pulls, of a burst. Its store's lock guards it."""

    __slots__ = ("arrays", "places", "push", "requests")

    def __init__(self, push: bool) -> None:
        self.push = push
        self.places: dict[Key, int] = {}  # by key
        self.arrays: list[Array] = []  # copies of what is pushed; or what is pulled into
        self.requests: list[Request] | None = None  # by place, when they are sent: who will be answered for it

    def add(self, key: Key, array: Array) -> int:
        place = self.places[key] = len(self.arrays)
        self.arrays.append(array.copy() if self.push else array)
        return place

    def done(self, place: int) -> bool:
        return self.requests is not None and self.requests[place].done


class Call(Handle):
    """The handle of a call in a burst: one small object, for there may be many."""

    __slots__ = ("_calls", "_place", "_store")

    def __init__(self, store: BurstStore, calls: Calls, place: int) -> None:
        self._store, self._calls, self._place = store, calls, place
        self.reported = False

    def _wait(self, *timeout: float | None) -> None:
        self._store._wait_for_call(self._calls, self._place, *timeout)

    def _done(self) -> bool:
        return self._calls.done(self._place)


class Burst:
    """Calls that are not sent yet. Its store's lock guards it."""

    __slots__ = ("nbytes", "page", "priority", "pulls", "pushes")

    def __init__(self, page: int, priority: int) -> None:
        self.page, self.priority = page, priority
        self.pushes, self.pulls = Calls(push=True), Calls(push=False)
        self.nbytes = 0

    def takes(self, key: Key, page: int, push: bool) -> bool:
        """Whether a call may join: pushes leave before pulls, so it must not be a push of what is here already."""
        return (
            self.page == page
            and self.nbytes < LONGEST
            and key not in self.pulls.places
            and not (push and key in self.pushes.places)
        )


class BurstStore(SingleStore):
    """A store whose calls with one small key travel together."""

    def __init__(self, name: str, office: Postoffice) -> None:
        self._burst: Burst | None = None  # the open one; the store's lock guards it
        self._sent: tuple[list[Sent], list[Sent]] = [], []  # parts of bursts: since the last look, and before; likewise
        super().__init__(name, office)

    def push(self, key: Any, value: Any, priority: int = 0) -> Handle:
        if self._burst is not None or self._worker.customer.busy:
            small = self._small(key, value)
            if small is not None and self._plain(priority):
                with self._pushing, self._lock:
                    has_room = not self._closing and self._ahead.has_room(small.record.at)
                    handle = self._join(small, value, priority, push=True) if has_room else None
                if handle is not None:
                    return handle
        return super().push(key, value, priority)

    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True, wait: bool = True) -> Any:
        if not wait and (self._burst is not None or self._worker.customer.busy):
            small = self._small(key, out)
            if small is not None and out.flags.writeable and self._plain(priority):
                with self._lock:
                    handle = self._join(small, out, priority, push=False)
                if handle is not None:
                    return handle
        return super().pull(key, out, priority, ignore_sparse, wait)

    def _join(self, small: Small, array: Array, priority: int, push: bool) -> Handle | None:
        """Put a call into the open burst, or a new one; None if it has to be looked at by itself. The lock is held."""
        if self._closed or self._worker.customer.failures > self._failures_seen:
            return None
        self._office.check()
        if push:
            self._tell_changes()
        burst, page = self._burst, small.number // PAGE
        if burst is None or not burst.takes(small.key, page, push):
            self._send_burst()
            burst = self._burst = Burst(page, priority)
            self._office.soon(partial(self._look_at, burst, 0), LINGER)
        burst.priority = max(burst.priority, priority)  # of its most urgent call: the others gain by it
        calls = burst.pushes if push else burst.pulls
        place = calls.add(small.key, array)
        burst.nbytes += array.nbytes
        handle = Call(self, calls, place)
        if push:
            self._ahead.begin(small.record.at)
            self._in_flight.append(handle)
        return handle

    def _wait_for_call(self, calls: Calls, place: int, *timeout: float | None) -> None:
        if calls.requests is None:
            self._send_open()
        assert calls.requests is not None
        request = None
        while request is not calls.requests[place]:  # it is another one if the server serves the burst call by call
            request = calls.requests[place]
            self._wait_for(request, *timeout)

    # -- when a burst is sent -----------------------------------------------------------------------------------------

    def _send_open(self) -> None:
        if self._burst is not None:
            self._office.check()
            with self._lock:
                self._send_burst()

    def _raise_failed(self) -> None:
        super()._raise_failed()
        if self._burst is not None:
            self._send_open()

    def _wait_for(self, request: Request, *timeout: float | None) -> Any:
        if not request.done:
            self._send_open()
        return super()._wait_for(request, *timeout)

    def _request(self, *args: Any) -> Request:
        self._send_burst()
        return super()._request(*args)

    def _request_small(self, *args: Any) -> Request:
        self._send_burst()
        return super()._request_small(*args)

    def _tell(self, wire: Any) -> None:
        self._send_burst()
        super()._tell(wire)

    def _leave_without_waiting(self) -> None:
        with suppress(PSError):  # then there is nobody to send it to
            self._send_open()
        super()._leave_without_waiting()

    def _look_at(self, burst: Burst, nbytes: int) -> None:
        """Send a burst if nothing has joined it since it was looked at last; runs on the leading thread."""
        with self._lock:
            if self._burst is not burst:
                return
            if burst.nbytes > nbytes:
                self._office.soon(partial(self._look_at, burst, burst.nbytes), LINGER)
            else:
                self._send_burst()

    # -- how it is sent -----------------------------------------------------------------------------------------------

    def _send_burst(self) -> None:
        """Send what is in the open burst; the lock is held."""
        burst, self._burst = self._burst, None
        if burst is None:
            return
        for calls in (burst.pushes, burst.pulls):
            if calls.arrays:
                self._send_calls(calls, burst.priority)

    def _send_calls(self, calls: Calls, priority: int) -> None:
        keys = list(calls.places)
        failed = Request(-1, "a call of a burst", None, None, open=False, done=True)
        calls.requests = [failed] * len(keys)
        try:
            plan = self._plans.of(keys, self._records, self._key_type)
            for part in [] if plan is None else plan.parts:
                self._send_part(calls, part, keys, priority)
            for place in range(len(keys)) if plan is None else plan.apart:
                calls.requests[place] = self._send_one(calls, self._records[keys[place]], calls.arrays[place], priority)
        except PSError as error:  # whose handles tell it; what is being called now will meet it too
            failed.error = error

    def _send_part(self, calls: Calls, part: Part, keys: list[Key], priority: int) -> None:
        """Send a part of the calls as one request."""
        assert calls.requests is not None
        answers = None if calls.push else Answers([part], calls.arrays, self._ledger)
        apart = False

        def take(answer: KVPairs) -> None:
            nonlocal apart
            if answer.meta is True:
                apart = True
                self._ask_for_outcomes(calls, part, keys, priority)
            elif answers is not None:
                answers.take(answer)

        def finish(_: Any) -> None:
            if answers is not None and not apart:
                answers.finish(None)

        pairs = part.pushed(calls.arrays, self._ledger) if calls.push else part.wanted()
        flags, what = (Flag.PUSH, "push") if calls.push else (Flag.PULL, "pull")
        name = f"{what} of {keys[part.places[0]]!r} and {len(part.places) - 1} more"
        request = self._worker.send(pairs, flags, BUNDLE, priority, finish, True, None, name, take)
        if calls.push:
            self._ahead.add(request, part.at)
        for place in part.places:
            calls.requests[place] = request
        if not any(self._sent):
            self._office.soon(self._hurry, PATIENCE)
        self._sent[0].append((request, part.wires[:1]))

    def _hurry(self) -> None:
        """Have those told apart that were not done when they were looked at before; runs on the leading thread."""
        with self._lock:
            new, old = self._sent
            for request, wire in old:
                if not request.done:
                    with suppress(PSError):  # the job is over: so is the request
                        what, meta = "a burst's end", request.timestamp
                        self._worker.send(KVPairs(wire, []), 0, OUTCOME, 0, None, meta, None, what)
            self._sent = [], [sent for sent in new if not sent[0].done]
            if self._sent[1]:
                self._office.soon(self._hurry, PATIENCE)

    def _send_one(self, calls: Calls, record: Record, array: Array, priority: int) -> Request:
        at: Ordinals = np.array([record.at], np.intp)
        if calls.push:
            self._ahead.begin(at, -1)  # it is counted as all requests are
            items = self._coded(record, array)
            record.push()
            return self._request(DATA, [record.key], at, [pairs_of(items, push=True)], Flag.PUSH, priority, None, None)
        filling = _filling(record, array)
        pairs = [pairs_of(wanted(record), push=False)]
        return self._request(DATA, [record.key], at, pairs, Flag.PULL, priority, filling.take, filling.finish)

    def _ask_for_outcomes(self, calls: Calls, part: Part, keys: list[Key], priority: int) -> None:
        """The server serves a part call by call; runs on the leading thread."""
        with self._lock:
            assert calls.requests is not None
            number = calls.requests[part.places[0]].timestamp
            for index, place in enumerate(part.places):
                record, pairs = self._records[keys[place]], KVPairs(part.wires[index : index + 1], [])
                what = f"{'push' if calls.push else 'pull'} of {record.key!r}"
                if calls.push:
                    request = self._worker.send(pairs, 0, OUTCOME, priority, None, [number, index], None, what)
                    self._ahead.begin(record.at)
                    self._ahead.add(request, part.at[index : index + 1])
                else:
                    filling = _filling(record, calls.arrays[place])
                    request = self._worker.send(
                        pairs, Flag.PULL, OUTCOME, priority, filling.finish, [number, index], None, what, filling.take
                    )
                calls.requests[place] = request


def _filling(record: Record, out: Array) -> Filling:
    return Filling([record.key], False, {record.key: record}, [Group(record.key, [out])], None)

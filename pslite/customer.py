"""A customer: who asked, and how many answers are still due.

Memory does not grow with the number of requests: a request that is done is kept only if it has a result or an error
that nobody has fetched, and of those only the latest.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import wire
from .delivery import Pending
from .errors import PSError
from .postoffice import SAME_AS_CONFIG, Postoffice
from .postoffice.core import error_of
from .wire import Message

KEPT_RESULTS = 1024  # finished requests whose results or errors wait for somebody to ask for them

Finish = Callable[[list[Message]], Any]


@dataclass(slots=True, eq=False)
class Request:
    """A request in flight. Its fields change under the postoffice's lock, and for good when ``done`` is set."""

    timestamp: int
    what: str  # how errors and the log call it
    due: set[int]  # indices of the messages that have no answer yet
    finish: Finish | None  # turns the answers into the result; user code, runs without the lock
    answers: list[Message | None]
    asked: dict[int, tuple[int, Pending]] = field(default_factory=dict)  # node and request of each message, by index
    done: bool = False
    error: Exception | None = None
    result: Any = None

    def unanswered(self) -> list[tuple[int, Pending]]:
        """The nodes that have not answered, and what they were asked."""
        return [asked for index, asked in list(self.asked.items()) if index in self.due]


class Customer:
    """Sends requests of one (app, customer) and tracks them by timestamp: 0, 1, 2, ... Thread-safe."""

    def __init__(self, office: Postoffice, app: int, customer: int, accept: Callable[[Message], None]) -> None:
        self.office = office
        self.app = app
        self.id = customer
        self._lock = threading.Lock()  # guards all below
        self._next = 0  # the next timestamp
        self._requests: dict[int, Request] = {}  # in flight
        self._results: dict[int, Request] = {}  # done, with something to tell, and not waited for; oldest first
        self._dropped: deque[int] = deque(maxlen=65_536)  # timestamps whose results nobody fetched in time
        self.failures = 0  # requests that ended with an error, so far
        office.register(app, customer, accept)

    def request(
        self, messages: Sequence[tuple[int, Message]], finish: Finish | None = None, what: str = ""
    ) -> Request:
        """Send one message to each node. ``finish`` runs when all have answered; it makes the request's result.

        The answers given to ``finish`` are in the order of ``messages``. With no messages the request is done at once.
        Raises DTypeError or ProtocolError, and sends nothing, if one of them cannot travel.
        """
        self.office.check()
        for _, message in messages:
            message.app, message.customer = self.app, self.id
            wire.check(message)
        with self._lock:
            name = what or f"request {self._next}"
            request = Request(self._next, name, set(range(len(messages))), finish, [None] * len(messages))
            self._next += 1
            if messages:
                self._requests[request.timestamp] = request
        if not messages:
            request.result = finish([]) if finish else None
            request.done = True
        for index, (node, message) in enumerate(messages):
            message.timestamp = request.timestamp
            pending = self.office.request(node, message, self._on_reply(request, index))
            with self._lock:
                if pending is not None and not request.done:
                    request.asked[index] = node, pending
        return request

    def _on_reply(self, request: Request, index: int) -> Callable[[Message | PSError], None]:
        def note(reply: Message | PSError) -> None:
            if index not in request.due:
                return  # the request has failed already
            request.error = request.error or error_of(reply)
            request.due.discard(index)
            if isinstance(reply, Message):
                request.answers[index] = reply
            else:
                request.due.clear()  # that node will never answer: the others may wait for it themselves
            if request.due:
                return
            if request.finish is None or request.error is not None:
                self._complete(request)
            else:
                self.office.after(lambda: self._finish(request))

        return note

    def _finish(self, request: Request) -> None:
        assert request.finish is not None
        try:
            request.result = request.finish([m for m in request.answers if m is not None])
        except Exception as error:  # a callback is user code: its error belongs to whoever waits
            request.error = error
        finally:
            self._complete(request)

    def _complete(self, request: Request) -> None:
        request.answers, request.finish, request.asked = [], None, {}
        with self._lock:
            request.done = True
            self.failures += request.error is not None
            self._requests.pop(request.timestamp, None)
            if request.timestamp in self._results and request.error is None and request.result is None:
                del self._results[request.timestamp]  # nothing to tell

    # -- by timestamp -------------------------------------------------------------------------------------------------

    def keep(self, request: Request) -> int:
        """Keep the request's outcome for ``wait(timestamp)``; returns the timestamp."""
        with self._lock:
            if not request.done or request.error is not None or request.result is not None:
                self._results[request.timestamp] = request
            while len(self._results) > KEPT_RESULTS:
                oldest = next((t for t, r in self._results.items() if r.done), None)
                if oldest is None:
                    break  # all are in flight: that many timestamps are the caller's own
                del self._results[oldest]
                self._dropped.append(oldest)
        return request.timestamp

    def done(self, timestamp: int) -> bool:
        """Whether all answers came and the callback has run."""
        with self._lock:
            return timestamp not in self._requests

    def wait(self, timestamp: int, timeout: Any = SAME_AS_CONFIG) -> Any:
        """Wait for a request and return its result, once; raises its error, or RequestTimeout naming the missing."""
        with self._lock:
            request = self._results.get(timestamp)
            if request is None:
                if not 0 <= timestamp < self._next:
                    raise PSError(f"timestamp {timestamp} was not returned by this customer: it has given {self._next}")
                if timestamp in self._dropped:
                    raise PSError(
                        f"the result of request {timestamp} was dropped: {KEPT_RESULTS} newer ones wait for wait()"
                    )
                return None
        result = self.wait_for(request, timeout)
        with self._lock:
            self._results.pop(timestamp, None)
        return result

    def wait_for(self, request: Request, timeout: Any = SAME_AS_CONFIG) -> Any:
        """Wait for a request that the caller holds; returns its result or raises its error, every time."""
        if not request.done:
            self.office.wait(lambda: request.done, request.what, request.unanswered, timeout)
        if request.error is not None:
            with self._lock:
                self._results.pop(request.timestamp, None)
            raise request.error.with_traceback(None)  # else each wait would add its frames, and keep their arrays
        return request.result

    def settle(self, timeout: float) -> bool:
        """Wait (seconds) until the receivers have every request, done or not; then this process may end."""

        def waiting() -> list[tuple[int, Pending]]:
            with self._lock:
                return [asked for request in self._requests.values() for asked in request.unanswered()]

        self.office.hand_over()
        return self.office.ask(lambda: not self._requests, waiting, timeout)

    def close(self) -> None:
        """Accept nothing any more."""
        self.office.unregister(self.app, self.id)

    def __repr__(self) -> str:
        return f"<Customer app={self.app} id={self.id} waiting={len(self._requests)} kept={len(self._results)}>"

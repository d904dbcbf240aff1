"""A customer: who asked, and how many answers are still due.

Memory does not grow with the number of requests: a request that is done is kept only if it has a result or an error
that nobody has fetched, and of those only the latest.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import wire
from .delivery import Pending, error_of
from .errors import PSError
from .postoffice import SAME_AS_CONFIG, Postoffice
from .wire import Message

KEPT_RESULTS = 1024  # finished requests whose results or errors wait for somebody to ask for them

Take = Callable[[Message, Message], Any]
Finish = Callable[[list[Any]], Any]


class Torn(Exception):
    """Raised by ``take``: what the answer's arrays had was replaced while it was read; ``again`` asks for it anew."""

    def __init__(self, again: Message) -> None:
        super().__init__("an array was written to while it was read")
        self.again = again


@dataclass(slots=True, eq=False)
class Request:
    """A request in flight. Its fields change under the customer's lock, and for good when ``done`` is set."""

    timestamp: int
    what: str  # how errors and the log call it
    take: Take | None  # makes the part of an answer that is kept; like ``finish`` it may be user code, without the lock
    finish: Finish | None  # turns the parts into the result
    ended: Callable[[], None] | None = None  # runs before ``done`` is set, however it ended; maybe under a lock
    open: bool = True  # more messages may follow
    due: set[int] = field(default_factory=set)  # indices of the messages that have no answer yet
    arrived: deque[tuple[int, Message, Message]] = field(default_factory=deque)  # asked and answered, not taken yet
    parts: dict[int, Any] = field(default_factory=dict)  # what was taken of each answer, by index
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
        self,
        messages: Iterable[tuple[int, Message]],
        take: Take | None = None,
        finish: Finish | None = None,
        what: str = "",
        ended: Callable[[], None] | None = None,
    ) -> Request:
        """Send messages to nodes, each as soon as the iterable gives it.

        When all are sent, ``take(asked, answer)`` runs for each answer as it comes, and in the end ``finish`` makes the
        request's result of what it returned, in the order of ``messages``. With no messages the request is done at
        once. ``ended()`` runs in any case, before it is done; it must not block.
        Raises DTypeError or ProtocolError for a message that cannot travel; given a list, then nothing is sent.
        """
        self.office.check()
        if isinstance(messages, list):
            for _, message in messages:
                self._check(message)
        else:
            messages = ((node, self._check(message)) for node, message in messages)
        with self._lock:
            request = Request(self._next, what or f"request {self._next}", take, finish, ended)
            self._next += 1
            self._requests[request.timestamp] = request
        try:
            for index, (node, message) in enumerate(messages):
                self._send(request, index, node, message)
        except BaseException as error:
            self._fail(request, error if isinstance(error, Exception) else None)
            raise
        with self._lock:
            request.open = False
            arrived, answered = bool(request.arrived), not request.due
        if answered:
            self._finish(request)
        elif arrived:
            self.office.later(lambda: self._take(request))
        return request

    def _check(self, message: Message) -> Message:
        message.app, message.customer = self.app, self.id
        wire.check(message)
        return message

    def _send(self, request: Request, index: int, node: int, message: Message) -> None:
        """Send a message that was checked."""
        message.timestamp = request.timestamp
        with self._lock:
            if request.error is not None:
                return  # the others would be in vain
            request.due.add(index)
        pending = self.office.request(node, message, partial(self._on_reply, request, index, message))
        with self._lock:
            if pending is not None and index in request.due:
                request.asked[index] = node, pending

    def _on_reply(self, request: Request, index: int, asked: Message, reply: Message | PSError) -> None:
        """Note an answer; runs under the postoffice's lock."""
        error = error_of(reply)
        with self._lock:
            if index not in request.due:
                return  # the request has failed already
            if error is None and request.take is not None:
                assert isinstance(reply, Message)
                request.arrived.append((index, asked, reply))
                then = self._take
            else:
                request.error = request.error or error
                request.due.discard(index)
                if not isinstance(reply, Message):
                    request.due.clear()  # that node will never answer: the others may wait for it themselves
                if request.due:
                    return
                then = self._finish
            if request.open:
                return
        if then == self._finish and (request.finish is None or request.error is not None):
            self._complete(request)
        else:
            self.office.after(partial(then, request))

    def _take(self, request: Request) -> None:
        """Take in what has arrived; runs on the leading thread."""
        while request.arrived:
            index, asked, answer = request.arrived.popleft()
            assert request.take is not None
            try:
                request.parts[index] = request.take(asked, answer)
            except Torn as torn:
                if request.error is None:
                    self._send(request, index, answer.sender, self._check(torn.again))
                    continue
            except Exception as error:  # a callback is user code: its error belongs to whoever waits
                request.error = request.error or error
            with self._lock:
                request.due.discard(index)
                ended = not request.due
            if ended:
                self._finish(request)

    def _finish(self, request: Request) -> None:
        try:
            if request.finish is not None and request.error is None:
                request.result = request.finish([request.parts[index] for index in sorted(request.parts)])
        except Exception as error:  # a callback is user code: its error belongs to whoever waits
            request.error = error
        finally:
            self._complete(request)

    def _fail(self, request: Request, error: Exception | None) -> None:
        """Give up a request that could not be sent as a whole."""
        with self._lock:
            request.open, request.due = False, set()
            request.error = error or PSError("the request was interrupted")
        self._complete(request)

    def _complete(self, request: Request) -> None:
        ended, request.ended = request.ended, None
        if ended is not None:
            ended()
        with self._lock:
            request.parts, request.take, request.finish, request.asked = {}, None, None, {}
            request.arrived = deque()
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

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return bool(self._requests)

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

"""SimpleApp: an int head and a small body, sent to one node or to every node of a group."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .customer import Customer
from .errors import NoMemoryError, ProtocolError, PSError, RemoteError
from .postoffice import SAME_AS_CONFIG, Postoffice
from .wire import Flag, Kind, Message, Op, integer


@dataclass(frozen=True, slots=True, eq=False)
class SimpleData:
    """A request as its handler sees it, or a response as the response handle sees it."""

    head: int
    body: Any
    sender: int
    timestamp: int
    customer_id: int
    message: Message


class SimpleApp:
    """Requests and responses with a head (int) and a body (anything msgpack can carry, at most 2 MiB).

    Handles run on the leading thread, one at a time, in the order in which a sender sent. The default request handle
    answers with an empty body; an exception in a handle reaches the caller as a RemoteError.
    """

    def __init__(
        self,
        app_id: int,
        customer_id: int,
        office: Postoffice,
        request_handle: Callable[[SimpleData, SimpleApp], None] | None = None,
    ) -> None:
        self.office = office
        self._request_handle = request_handle or (lambda data, app: app.response(data))
        self.customer = Customer(office, app_id, customer_id, self._accept)
        self._response_handle: Callable[[SimpleData, SimpleApp], None] | None = None

    def set_request_handle(self, handle: Callable[[SimpleData, SimpleApp], None]) -> None:
        """``handle(data, app)`` must call ``app.response(data, body)`` once, now or later.

        Requests may come as soon as the app exists: give the handle to the constructor to miss none.
        """
        self._request_handle = handle

    def set_response_handle(self, handle: Callable[[SimpleData, SimpleApp], None]) -> None:
        """``handle(data, app)`` runs for every response, before ``wait`` returns."""
        self._response_handle = handle

    def request(self, head: int, body: Any, recv_id: int) -> int:
        """Send to a node, or to each member of a group (a sum of 1, 2 and 4); returns a timestamp for ``wait``."""
        head = integer("head", head)
        nodes = self.office.node_ids(recv_id)
        messages = [(node, Message(Kind.REQUEST, op=Op.SIMPLE, cmd=head, body=body)) for node in nodes]
        return self.customer.keep(self.customer.request(messages, lambda _, answer: answer, self._on_responses))

    def _on_responses(self, answers: list[Message]) -> list[Any]:
        if self._response_handle is not None:
            for answer in answers:
                self._response_handle(_data(answer), self)
        return [answer.body for answer in answers]

    def wait(self, timestamp: int, timeout: Any = SAME_AS_CONFIG) -> Any:
        """The bodies of all responses, in node order; raises the first error among them."""
        return self.customer.wait(timestamp, timeout)

    def response(self, data: SimpleData, body: Any = None) -> None:
        """Answer a request."""
        self.office.answer(data.message, Message(Kind.REPLY, cmd=data.head, body=body))

    def error(self, data: SimpleData, error: Exception) -> None:
        """Answer a request with an error."""
        answer_error(self.office, data.message, error, "the request handle")

    def _accept(self, message: Message) -> None:
        data = _data(message)
        try:
            self._request_handle(data, self)
        except Exception as error:  # a handle is user code: its caller gets the error, this process lives on
            answer_error(self.office, message, error, "the request handle")

    def close(self) -> None:
        """Accept nothing any more."""
        self.customer.close()


def _data(message: Message) -> SimpleData:
    return SimpleData(message.cmd, message.body, message.sender, message.timestamp, message.customer, message)


def answer_error(office: Postoffice, request: Message, error: Exception, what: str) -> None:
    """Answer a request with an error; one that is not a PSError becomes a RemoteError with its traceback.

    A MemoryError is nobody's mistake, and says by itself what it was for.
    """
    if isinstance(error, MemoryError) and not isinstance(error, PSError):
        error = NoMemoryError(node=office.name, what=f"a request: {error}"[:500])
    if isinstance(error, PSError):
        try:
            office.answer(request, Message(Kind.REPLY, flags=Flag.ERROR, body=error.to_wire()))
            return
        except ProtocolError:  # one of its fields is something that cannot travel; its text can
            pass
    trace = "".join(traceback.format_exception(error))[-4000:]
    remote = RemoteError(node=office.name, what=what, error=f"{type(error).__name__}: {error}"[:2000], trace=trace)
    office.answer(request, Message(Kind.REPLY, flags=Flag.ERROR, body=remote.to_wire()))

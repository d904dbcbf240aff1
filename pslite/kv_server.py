"""KVServer: answers key-value requests with a handle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .customer import Customer
from .kv_pairs import KVPairs, pack, unpack
from .postoffice import Postoffice
from .simple_app import answer_error
from .wire import Flag, Kind, Message


@dataclass(slots=True, eq=False)  # frozen would cost as much as the rest of its making
class KVMeta:
    """A request as its handle sees it."""

    cmd: int
    push: bool
    pull: bool
    sender: int  # node id
    timestamp: int
    customer_id: int
    priority: int
    meta: Any
    replay: bool  # a push that was applied already and whose answer was lost: answer it, do not apply it
    message: Message


Handle = Callable[[KVMeta, KVPairs, "KVServer"], None]


class KVServer:
    """Runs one handle for each request, on the leading thread.

    The handle calls ``server.response(meta, pairs)`` exactly once, now or later and from any thread, or
    ``server.error(meta, error)``; an exception that it raises goes to the caller as a RemoteError (a PSError as
    itself) and this process lives on. A duplicate of a request is never given to the handle as a push.
    """

    def __init__(self, app_id: int, office: Postoffice) -> None:
        self.office = office
        self.customer: Customer | None = None  # registered with the first handle: until then requests wait
        self._app = app_id
        self._handle: Handle | None = None

    def set_handle(self, handle: Handle) -> None:
        """Set the handle for key-value requests; those that came earlier are handled now."""
        self._handle = handle
        if self.customer is None:
            self.customer = Customer(self.office, self._app, 0, self._accept)

    def response(self, meta: KVMeta, pairs: KVPairs | None = None, note: Any = None, lend: bool = False) -> None:
        """Answer a request, with key-value pairs if it pulls. Their arrays must not change any more.

        ``note``: without pairs, anything small that msgpack carries; the worker finds it as ``KVPairs.meta``.
        ``lend``: nobody else keeps the arrays, which a worker of this host may read where they are: they are kept
        until it says that it has the answer.
        """
        flags = meta.message.flags & Flag.BY_VALUE
        reply = Message(Kind.REPLY, cmd=meta.cmd, priority=meta.priority, flags=flags, body=note, lent=lend)
        self.office.answer(meta.message, reply if pairs is None else pack(pairs, reply, pairs.meta))

    def error(self, meta: KVMeta, error: Exception, what: str = "the handle") -> None:
        """Answer a request with an error."""
        answer_error(self.office, meta.message, error, what)

    def _accept(self, message: Message) -> None:
        assert self._handle is not None
        try:
            self._handle(_meta(message), unpack(message), self)
        except Exception as error:  # a handle is user code: its caller gets the error, this process lives on
            answer_error(self.office, message, error, "the handle")

    def close(self) -> None:
        """Accept nothing any more."""
        if self.customer is not None:
            self.customer.close()


def _meta(message: Message) -> KVMeta:
    flags = message.flags
    replay = bool(flags & Flag.REPLAY)
    return KVMeta(
        cmd=message.cmd,
        push=bool(flags & Flag.PUSH) and not replay,
        pull=bool(flags & Flag.PULL),
        sender=message.sender,
        timestamp=message.timestamp,
        customer_id=message.customer,
        priority=message.priority,
        meta=message.body[1] if isinstance(message.body, list) and len(message.body) == 2 else None,
        replay=replay,
        message=message,
    )

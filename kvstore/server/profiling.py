"""What a server does, as events: each request, each round, and how much waits for other workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvstore.commands import BUNDLE, DATA, INIT, OUTCOME
from kvstore.rows import Received
from kvstore.rules import Rule
from kvstore.tracing import Args, Process, Recorder, nbytes
from kvstore.value import Value
from pslite import KVMeta, KVPairs, KVServer, rank_of
from pslite.errors import ProtocolError

from .store import Store
from .ticket import Ticket

Handle = Callable[[KVMeta, KVPairs, KVServer], None]


class Profile:
    """The hooks of one server. They run on the postoffice's leading thread, one at a time."""

    def __init__(self, node: int) -> None:
        self._node = node
        self._recorder = Recorder(time.monotonic_ns)
        self._open: dict[Any, tuple[int, Args]] = {}  # requests without an answer: since when, and their events' args

    def on_control(self, body: Any) -> list[str]:
        """What rank 0 asks for: [action, value]."""
        if not (isinstance(body, list) and len(body) == 2 and isinstance(body[0], str)):
            raise ProtocolError("a malformed request to the profiler")
        rank = rank_of(self._node)
        self._recorder.show(self._node, Process(f"server {rank}", f"rank{rank}_"))
        return self._recorder.do(*body)

    def requests(self, handle: Handle, store: Store) -> Handle:
        """The handle of requests, each of which becomes an event."""

        def traced(meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
            if self._recorder.running:
                self._request(meta, pairs, server, handle, store)
            else:
                handle(meta, pairs, server)

        return traced

    def _request(self, meta: KVMeta, pairs: KVPairs, server: KVServer, handle: Handle, store: Store) -> None:
        since = self._recorder.clock()
        args: Args = {"worker": rank_of(meta.sender), "keys": len(pairs.keys), "received": nbytes(pairs)}
        args |= dict.fromkeys(("sent", "waited_us", "error"))  # known when it is answered
        if meta.cmd in (INIT, DATA, BUNDLE, OUTCOME):  # others are answered by the handle itself
            self._open[meta] = since, args
        try:
            handle(meta, pairs, server)
        except Exception as error:
            self._open.pop(meta, None)
            args["error"] = type(error).__name__
            raise
        finally:
            self._add("X", _name(meta), args, since)
            self._add("C", "parked contributions", {"parked": store.parked}, self._recorder.clock())

    def answered(self, tickets: Iterable[Ticket]) -> None:
        """These requests get their answers now."""
        if not self._open:
            return
        for ticket in tickets:
            since, args = self._open.pop(ticket.token, (0, None))
            if args is not None:
                args["waited_us"] = (self._recorder.clock() - since) / 1000
                args["error"] = None if ticket.error is None else type(ticket.error).__name__
                args["sent"] = sum(a.nbytes for answer in ticket.answers if answer is not None for a in answer.arrays)

    def apply(self, value: Value, contents: Sequence[Received], rule: Rule | None, rank: int) -> None:
        """``Value.apply``, as an event."""
        if not self._recorder.running:
            value.apply(contents, rule, rank)
            return
        args = {"key": value.spec.key, "contributions": len(contents), "rule": "assign" if rule is None else rule.what}
        since = self._recorder.clock()
        try:
            value.apply(contents, rule, rank)
        except Exception as error:
            args["error"] = type(error).__name__
            raise
        finally:
            self._add("X", "round", args, since)

    def _add(self, phase: str, name: str, args: Args, since: int) -> None:
        self._recorder.add(phase, name, self._node, self._node, args, since, self._recorder.clock())


def _name(meta: KVMeta) -> str:
    """What a request is called."""
    if meta.cmd == INIT:
        return "init"
    if meta.cmd == OUTCOME:
        return "outcome"
    if meta.cmd not in (DATA, BUNDLE):
        return "checkpoint"
    return "pushpull" if meta.push and meta.pull else "push" if meta.push else "pull"

"""The servers that the launcher's agent gives a process, and takes from it while the job runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from pslite import Config, Postoffice, announce, beside
from pslite.errors import PSError
from pslite.failpoints import failpoint

from .hosting import Host
from .orders import Order, Orders

log = logging.getLogger("kvstore.server")


class Places:
    """Serves what it is given, until the job is over or nothing more will come. ``open`` makes postoffices."""

    def __init__(self, config: Config, orders: Orders, open: Callable[[Config], Postoffice] = Postoffice) -> None:
        self._config, self._orders, self._open = config, orders, open
        self._events: SimpleQueue[tuple[str, Any]] = SimpleQueue()  # what ``serve`` is to look at, from all threads
        self._offices: dict[int, Postoffice] = {}  # by rank; changed by ``serve`` only, like all below
        self._serving: set[int] = set()  # ranks that have joined
        self._statuses: list[int] = []  # of those that served until the end of the job
        self._closed = False  # no more orders will come
        self.first_failure: BaseException | None = None

    def serve(self) -> int:
        """Serve; returns the exit status of the process, the worst of all its servers."""
        announce(self._config)
        threading.Thread(target=self._listen, name="pslite-orders", daemon=True).start()
        self._orders.say("ready")
        try:
            while not self._done():
                self._on_event(*self._events.get())
        finally:
            self.close()  # if one has failed, or is joining a job that is over
            self._orders.close()
        return max(self._statuses, default=0)

    def close(self) -> None:
        """Close all connections to the job at once."""
        for office in self._offices.values():
            office.close(linger=0)

    def _done(self) -> bool:
        if any(self._statuses):
            return True  # the launcher ends a job of which a process failed
        return not (self._serving if self._closed else self._offices) and (self._closed or bool(self._statuses))

    def _listen(self) -> None:
        try:
            while (order := self._orders.next()) is not None:
                self._events.put((order.verb, order))
            self._events.put(("close", None))
        except PSError as error:
            self._events.put(("failure", error))

    # -- events -------------------------------------------------------------------------------------------------------

    def _on_event(self, what: str, value: Any) -> None:
        match what:
            case "adopt":
                self._on_adopt(value)
            case "release":
                self._on_release(value)
            case "serving":
                self._on_serving(value)
            case "end":
                self._on_end(*value)
            case "failure":
                self._on_failure(value)
            case "close":
                self._closed = True

    def _on_adopt(self, order: Order) -> None:
        failpoint("before_adopt")
        try:
            office = self._open(beside(self._config, order.rank, order.restarts, order.keeper_fd))
        except PSError as error:
            self._on_failure(error)
            return
        self._offices[order.rank] = office
        host = Host(office, on_serving=lambda: self._events.put(("serving", order.rank)))
        name = f"pslite-server-{order.rank}"
        threading.Thread(target=lambda: self._host(order.rank, host), name=name, daemon=True).start()

    def _host(self, rank: int, host: Host) -> None:
        status = 1
        try:
            status = host.serve()
        finally:
            self._events.put(("end", (rank, status, host.first_failure)))

    def _on_serving(self, rank: int) -> None:
        if rank in self._offices:
            self._serving.add(rank)
            self._orders.say(f"serving {rank}")

    def _on_release(self, order: Order) -> None:
        failpoint("before_release")
        if order.rank in self._offices:
            self._offices[order.rank].release()

    def _on_end(self, rank: int, status: int, failure: BaseException | None) -> None:
        office = self._offices.pop(rank)
        self._serving.discard(rank)
        if office.released and not status:
            failpoint("after_release")
            self._orders.say(f"released {rank}")
            return
        self.first_failure = self.first_failure or failure
        self._statuses.append(status)

    def _on_failure(self, error: PSError) -> None:
        log.error("%s", error)
        self.first_failure = self.first_failure or error
        self._statuses.append(1)

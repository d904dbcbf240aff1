"""A process's way into the job: reach the scheduler, listen, ask for a place, reach the servers."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable

from pslite import ids
from pslite.config import Config
from pslite.delivery import Pending
from pslite.errors import JoinError, RendezvousTimeout, UnreachableError
from pslite.van.causes import attempt

from . import addresses
from .core import Core
from .shell import Shell
from .supervised import LOOK_FOR_THE_END, has_ended

log = logging.getLogger("pslite")

SAY_UNREACHED_EVERY = 30.0  # seconds between two lines about who is not reached
SERVERS_WITHIN = 3.0  # seconds that connections to servers have at least: these listen already
LATER_THAN_SCHEDULER = 1.0  # seconds: it knows best who is missing, and has the same limit

Unreached = Callable[[], tuple[str, str, str] | None]  # name, address and role of one that is to be reached, if any


class Joining:
    """What a worker or server does to become a member; ``run`` once.

    ``ask``: the postoffice's, to ask the scheduler at the end who is missing.
    """

    def __init__(
        self, config: Config, identity: str, core: Core, shell: Shell, ask: Callable[[list[tuple[int, Pending]]], None]
    ) -> None:
        self._config, self._identity, self._core, self._shell, self._ask = config, identity, core, shell, ask
        self._begun = shell.now()

    def run(self) -> None:
        """Raises UnreachableError, RendezvousTimeout that names the missing, JoinError, BindError, ConfigError."""
        config, core, shell = self._config, self._core, self._shell
        limit = None if config.start_timeout is None else self._begun + config.start_timeout + LATER_THAN_SCHEDULER
        core.delivery.job = config.job
        addresses.check_consent(config)
        shell.van.connect(ids.SCHEDULER, config.root)
        shell.start()
        self._reach(self._scheduler, limit)
        own = self._listen()  # now the way to the scheduler is known
        wishes = config.rank, own, socket.gethostname(), os.getpid(), config.restarts, config.on_worker_lost
        shell.do(lambda now: core.join(now, *wishes))
        if not self._until(lambda: core.ready, limit) and not self._ask_who_is_missing():
            assert core.joining is not None
            missing = core.joining.waiting_for or [f"an answer of the scheduler at {config.root}"]
            raise RendezvousTimeout(missing=missing, seconds=config.start_timeout)
        shell.do(lambda now: core.connections())
        self._reach(self._server, None if limit is None else max(limit, shell.now() + SERVERS_WITHIN))

    def _listen(self) -> list[str]:
        """Listen, and return the addresses that others are told."""
        endpoints = addresses.to_listen(self._config, self._identity)
        with self._shell.lock:
            return [endpoint.announced(self._shell.van.bind(endpoint.address)) for endpoint in endpoints]

    def _scheduler(self) -> tuple[str, str, str] | None:
        return None if self._core.linked(ids.SCHEDULER) else ("scheduler", self._config.root, "scheduler")

    def _server(self) -> tuple[str, str, str] | None:
        unreached = [] if self._core.job_over else self._core.unreached()
        return next(((peer.name, addresses.pick(peer.addresses), "server") for peer in unreached), None)

    def _reach(self, unreached: Unreached, limit: float | None) -> None:
        """Wait for connections; says in the log, and in the error at the limit, why there is none."""
        while True:
            say_at = self._shell.now() + SAY_UNREACHED_EVERY
            if self._until(lambda: unreached() is None, say_at if limit is None else min(say_at, limit)):
                return
            over = limit is not None and self._shell.now() >= limit
            problem = self._problem(unreached)
            if problem is None:
                return
            if over:
                raise problem
            log.warning("%s", problem)

    def _problem(self, unreached: Unreached) -> UnreachableError | None:
        """Why somebody is not reached; None if all are by now."""
        if (found := unreached()) is None:
            return None
        name, address, role = found
        last = attempt(address, role)
        seconds = round(self._shell.now() - self._begun, 1)
        problem = UnreachableError(
            missing=[name], address=address, source=last.source, reason=last.reason, seconds=seconds
        )
        return None if unreached() is None else problem

    def _until(self, done: Callable[[], bool], limit: float | None) -> bool:
        """Wait until the limit; raises JoinError if the job is over."""
        look_at = 0.0
        while limit is None or look_at < limit:
            if has_ended(self._config.job_dir):
                raise JoinError(node="this process", reason="the job has ended")
            look_at = self._shell.now() + LOOK_FOR_THE_END
            if self._shell.wait_until(done, look_at if limit is None else min(look_at, limit)):
                return True
        return False

    def _ask_who_is_missing(self) -> bool:
        """The scheduler counts its time from its own start: it may be there and still wait. True if all came now."""
        assert self._core.joining is not None
        self._ask([(ids.SCHEDULER, self._core.joining)])
        return self._core.ready

"""A worker's place in a job: what it has under way, how failures reach its user, and how it ends."""

from __future__ import annotations

import abc
import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from pslite import ALL, SERVER_GROUP, WORKER_GROUP, KVWorker, Postoffice, SimpleApp, name_of, server_id
from pslite.errors import CheckpointError, ClosedError, JoinError, PSError, WorkerFinished

from .base import KVStore
from .commands import CHECKPOINT_APP, CONTROL_APP, DATA_APP, USER_APP
from .handle import Handle
from .profiler import opened
from .steps import STEP_BITS
from .team import Team
from .tracing import traced

log = logging.getLogger("kvstore")

SETTLE_WITHIN = 5.0  # seconds that a process may take to hand over its pushes when it ends without close()


class Member(KVStore):
    """The part of a distributed store that knows no keys. Its Postoffice has joined the job; ``close()`` leaves it."""

    def __init__(self, name: str, office: Postoffice) -> None:
        super().__init__(name)
        self._office = office
        self._worker = KVWorker(DATA_APP, 0, office)
        self._control = SimpleApp(CONTROL_APP, 0, office)
        self._user = SimpleApp(USER_APP, 0, office)
        self._checkpoints = SimpleApp(CHECKPOINT_APP, 0, office)
        self._lock = threading.Lock()  # the order of calls; guards all below, here and in subclasses
        self._in_flight: deque[Handle] = deque()  # pushes and pushpulls whose end the user has not seen
        self._failures_seen = 0  # of the customer's count: how many have been raised or looked for
        self._collective = threading.Lock()  # one collective call at a time
        self._pushing = threading.Lock()  # taken before the other for a push, and by who wants none to come between
        self._start_step = 0
        self._barriers = 0  # the number of the last one, which grows as those of pushes do
        self._team = Team(office, asks=office.elastic and "async" not in name)  # as of the last step
        self._asked: int | None = None  # timestamp of the question who is due in the next step
        self._closing = False  # close() was called: a second call does nothing
        self._closed = False
        try:
            self._agree("type", "async" if "async" in name else "sync")
        except BaseException as error:
            self._fail(error)
            raise
        opened(self)

    # -- the job ------------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        return self._office.rank

    @property
    def num_workers(self) -> int:
        return len(self._team.live)

    @property
    def live_ranks(self) -> list[int]:
        return list(self._team.live)

    @property
    def start_step(self) -> int:
        return self._start_step

    def step(self) -> int:
        self._raise_failed()
        with self._collective if self._team.asks else nullcontext():
            late = self._ask_who_is_due(self._step + 1) if self._team.asks else ()
            with self._pushing, self._lock:
                self._step += 1
                self._begin_step(self._step)
                if new := self._team.begin(late):  # before anything is pushed in this step
                    self._tell_servers("due", new)
        return self._step

    def _ask_who_is_due(self, step: int) -> Any:
        """Who came later and is due in a step. It is asked a step ahead, so that nobody waits for the answer."""
        asked, self._asked = self._asked, None
        if asked is None:
            asked = self._ask_first_server("begin", step)
        late = self._control.wait(asked)[0]
        self._asked = self._ask_first_server("begin", step + 1)
        return late

    def _join_steps(self) -> None:
        """Of a worker that came later or again: begin where it is due. A newcomer waits until the others are there."""
        if self._team.came_later:
            self._start_step = max(self._start_step, self._tell_first_server("join", None))
        with self._lock:
            self._step = self._start_step
            self._begin_step(self._step)
        late = self._ask_who_is_due(self._step)
        with self._lock:
            self._team.begin(late)
        try:
            self._ask_servers("start" if self._team.came_later else "due", late)
        except WorkerFinished as error:  # the others have come to their end before this one's first step
            self._office.leave("left")
            raise JoinError(node=self._office.name, reason=f"the job is ending: {error.node} has finished") from None

    def _begin_step(self, step: int) -> None:
        """Number the pushes to come; the lock is held."""

    def get_num_dead_node(self, node_id: int = WORKER_GROUP + SERVER_GROUP, timeout: float = 60) -> int:
        return sum(state not in ("up", "finished") for state in self._office.states(node_id).values())

    def status(self) -> dict[str, str]:
        return {name_of(node): state for node, state in self._office.states(ALL).items()}

    @traced
    def barrier(self, timeout: float | None = None) -> None:
        self._raise_failed()
        with self._lock:
            number = self._barriers = max(self._barriers, self._step << STEP_BITS) + 1
            late, is_new = self._team.at_barrier(self._step), self._team.is_new(self._step)
        if is_new:
            return
        limit = self._office.config.timeout if timeout is None else timeout
        self._office.barrier(WORKER_GROUP, timeout=limit, number=number, late=late)

    def send_command_to_servers(self, head: int, body: Any) -> None:
        self._raise_failed()
        self._user.wait(self._user.request(head, body, SERVER_GROUP))

    # -- collective calls ---------------------------------------------------------------------------------------------

    def _agree(self, what: str, value: Any) -> None:
        """A collective call: every server compares what the workers say with what the lead says."""
        self._ask_servers(what, value)

    def _ask_servers(self, what: str, value: Any) -> list[Any]:
        """Have every server do something; returns their answers, or raises the first error among them."""
        answers: list[Any] = self._control.wait(self._control.request(0, [what, value], SERVER_GROUP))
        return answers

    def _decided(self, what: str, act: Callable[[list[int]], Any]) -> Any:
        """When all are here, the lead acts, and everybody gets its result or its error; ``what`` must be the same.

        ``act`` gets the ranks that are here: some may have left. Server 0 says who the lead is.
        """
        ranks, told = self._tell_first_server("meet", [what, self._step])
        if ranks is None:
            return told
        try:
            self._take_over()
            result = act(ranks)
            self._tell_first_server("decide", [None, result])
        except BaseException as error:  # whatever it is, the others must not wait for it
            known = error if isinstance(error, PSError) else CheckpointError(path=what, reason=repr(error))
            self._tell_first_server("decide", [known.to_wire(), None])
            raise
        return result

    @abc.abstractmethod
    def _take_over(self) -> None:
        """Begin with what rank 0 does for all."""

    def _tell_servers(self, what: str, value: Any) -> None:
        """Tell all servers something ahead of what is pushed next; the lock is held."""
        timestamp, control = self._control.request(0, [what, value], SERVER_GROUP), self._control
        self._in_flight.append(
            Handle(lambda *timeout: control.wait(timestamp, *timeout), lambda: control.customer.done(timestamp))
        )

    def _tell_first_server(self, what: str, value: Any) -> Any:
        return self._control.wait(self._ask_first_server(what, value))[0]

    def _ask_first_server(self, what: str, value: Any) -> int:
        return self._control.request(0, [what, value], server_id(0))

    # -- failures -----------------------------------------------------------------------------------------------------

    def _raise_failed(self) -> None:
        """Raise what made an earlier push fail, once."""
        if self._closed:
            raise ClosedError(what="the store")
        self._office.check()
        with self._lock:
            while self._in_flight and (self._in_flight[0].reported or self._in_flight[0].done()):
                self._see(self._in_flight.popleft())
            if self._worker.customer.failures > self._failures_seen:  # behind a push that is not done
                self._failures_seen = self._worker.customer.failures
                ended = [handle for handle in self._in_flight if handle.done()]
                for handle in ended:
                    self._in_flight.remove(handle)
                    self._see(handle)

    def _see(self, handle: Handle) -> None:
        if not handle.reported:
            handle.wait()

    def _waited(self, handle: Handle) -> Any:
        """The result of a call, unless one of this worker's earlier pushes failed: then it does not include that."""
        result = handle.wait()
        self._raise_failed()
        return result

    def _check_closing(self) -> None:
        """No push may come after the last that ``close()`` waits for; the lock is held."""
        if self._closing:
            raise ClosedError(what="the store")

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self, join: bool = False) -> None:
        if self._closed:
            return
        self._office.check()
        with self._lock:
            if self._closing:
                return
            self._closing = True
        try:
            self._flush()
            self._closed = True
            self._office.leave("left" if join else "finished", wait=True, timeout=self._office.config.timeout)
        except BaseException as error:
            self._fail(error)
            raise
        self._office.close()

    def _flush(self) -> None:
        """Wait for all pushes made so far; raises the first error that the user has not seen."""
        for _ in range(len(self._in_flight)):
            with self._lock:
                if not self._in_flight:
                    return
                handle = self._in_flight.popleft()
            try:
                self._see(handle)
            except TimeoutError:
                if not handle.done():  # how it ends must be seen, by close() at the latest
                    with self._lock:
                        self._in_flight.appendleft(handle)
                raise

    def _leave_without_waiting(self) -> None:
        """The end of a process that did not call ``close()``: the servers get its pushes, nobody is waited for."""
        if self._closed:
            return
        try:
            self._worker.customer.settle(SETTLE_WITHIN)
            self._raise_failed()
            self._closed = True
            self._office.leave("finished")
            self._office.close()
        except PSError as error:
            log.error("%s", error)
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._office.forked:
            return  # the parent's store is none of this process's business
        self._closed = True
        try:
            self._office.leave("failed", f"{type(error).__name__}: {error}"[:1000], timeout=2.0)
        except PSError:  # the job is gone, or it knows already: there is nobody left to tell
            pass
        finally:
            self._office.close(linger=0)  # pushes on their way to a stopped server would hold this process up

"""The shell around a process's brain: it owns the van, the lock and the threads, and carries out actions.

One thread at a time leads: it receives, lets the core decide, sends, and runs handlers and callbacks. A caller that
waits leads itself, because a reply then costs no switch of threads; when nobody waits, a background thread leads.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random

from pslite.delivery import Pending, Send
from pslite.errors import ClosedError, ForkError, PeerError, PSError
from pslite.failpoints import failpoint
from pslite.flow import Arrivals
from pslite.van.base import Received, Van, VanEvent
from pslite.wire import Kind, Message

from .actions import Action, Connect, Deliver, Disconnect, Forget, Log, PeerAway, PeerBack, PeerEnded, Refuse
from .core import FOR_EVER, LOOPBACK, Core
from .strikes import printable

log = logging.getLogger("pslite")

IDLE_BEFORE_BACKGROUND = 0.005  # seconds: a caller that comes back at once finds the lead free
LOOK_FOR_IDLE = 0.02  # seconds between the background thread's looks while callers lead
HANDLER_WITHIN = 5.0  # seconds that closing waits for a callback or handler that is running
LOOK_AT_TIMERS = 0.25  # seconds: how late a timer may be while there is always something to do
LONG = 0.0005  # seconds of a handler, after which the leader looks for messages before the next
BATCH = 64  # deliveries after which handlers run before more is received

Clock = Callable[[], float]
_LIVE: weakref.WeakSet[Shell] = weakref.WeakSet()  # for the fork hook; changed by __init__ only


def _after_fork_in_child() -> None:
    for shell in _LIVE:
        shell.forked = True


os.register_at_fork(after_in_child=_after_fork_in_child)


class Shell:
    """Runs a Core on a Van.

    ``lock`` guards the core, the van and the queues. Handlers and callbacks run without it, on the leading thread.
    """

    def __init__(
        self, core: Core, van: Van, clock: Clock, drop_rate: float, rng: Random, pick: Callable[[list[str]], str]
    ) -> None:
        self.core = core
        self.van = van
        self.lock = threading.Lock()
        self.on_deliver: Callable[[Message], None] = lambda message: None
        self.on_peer_ended: list[Callable[[int, PeerError], None]] = []
        self.on_peer_moved: list[Callable[[PeerAway | PeerBack], None]] = []
        self.now = clock  # of all deadlines, in seconds
        self.look_for = 0.0  # seconds that a leader looks for messages before it sleeps; set when the job is complete
        self._drop_rate = drop_rate
        self._rng = rng
        self._pick = pick
        self._followers = threading.Condition(self.lock)  # callers that wait while another thread leads
        self._idle = threading.Condition(self.lock)  # where the background thread rests
        self._leader: int | None = None  # ident of the leading thread
        self._timer_due = 0.0  # when the core's next timer is due, as of the last time a leader went to sleep
        self._poll_until = 0.0  # when the leader that sleeps will wake up by itself
        self._callers = 0  # threads inside wait_until
        self._last_led = 0.0  # when a caller led last
        self._local: deque[Message] = deque()  # messages to ourselves
        self._deliveries: Arrivals[Callable[[], None]] = Arrivals()  # requests for the application
        self._callbacks: deque[Callable[[], None]] = deque()  # completions that run user code
        self._planned: list[tuple[float, Callable[[], None]]] = []  # callbacks for later, with when
        self._closed = False
        self.forked = False  # set in a forked child, where sockets, threads and locks are not usable
        _LIVE.add(self)
        self._thread = threading.Thread(target=self._background, name="pslite-io", daemon=True)

    def start(self) -> None:
        """Start the background thread."""
        self._thread.start()

    def check(self, what: str) -> None:
        """Raise if this process cannot use the connection (any more)."""
        if self.forked:
            raise ForkError(what=what)
        if self._closed:
            raise ClosedError(what=what)

    # -- actions ------------------------------------------------------------------------------------------------------

    def run(self, actions: list[Action]) -> None:
        """Carry out actions; the lock is held."""
        for action in actions:
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, Deliver):
                self._deliveries.add(partial(self.on_deliver, action.message), action.message)
            elif isinstance(action, Connect):
                self.van.connect(action.node, self._pick(action.addresses))
            elif isinstance(action, Disconnect):
                self.van.disconnect(action.node)
            elif isinstance(action, PeerEnded):
                for call in self.on_peer_ended:
                    self._deliveries.add(partial(call, action.node, action.error))
            elif isinstance(action, (PeerAway, PeerBack)):
                for tell in self.on_peer_moved:
                    self._deliveries.add(partial(tell, action))
            elif isinstance(action, Forget):
                self.van.forget(action.incarnation)
            elif isinstance(action, Refuse):
                self.van.refuse(action.link)
            else:
                assert isinstance(action, Log)
                log.log(logging.getLevelName(action.level.upper()), "%s", printable(action.text))

    def _send(self, send: Send) -> None:
        if send.link == LOOPBACK:
            self._local.append(send.message)
            return
        if log.isEnabledFor(logging.DEBUG):
            log.debug("send %s", send.message)
        failpoint("before_send")
        if not self.van.send(send.link, send.message) and send.message.kind == Kind.BEAT:
            self.core.on_unreachable(self.now(), send.link)

    def request(self, node: int, message: Message, on_reply: Callable[[Message | PSError], None]) -> Pending | None:
        """Send a request; ``on_reply`` runs under the lock and must not block or call user code."""
        if self.forked:
            raise ForkError(what="the connection to the job")
        with self.lock:
            if self._closed:
                raise ClosedError(what="the connection to the job")
            pending, actions = self.core.request(self.now(), node, message, on_reply)
            self.run(actions)
            self._notice_timer()
        return pending

    def do(self, step: Callable[[float], list[Action]]) -> None:
        """Let the core take a step."""
        with self.lock:
            if not self._closed:
                self.run(step(self.now()))
                self._notice_timer()

    def after(self, callback: Callable[[], None]) -> None:
        """Run user code for a completed request, on the leading thread; the lock is held."""
        self._callbacks.append(callback)

    def later(self, callback: Callable[[], None]) -> None:
        """``after``, from any thread."""
        with self.lock:
            self._callbacks.append(callback)
            self._notice_timer()

    def soon(self, callback: Callable[[], None], within: float) -> None:
        """Run user code on the leading thread in so many seconds, from any thread."""
        with self.lock:
            self._planned.append((self.now() + within, callback))
            self._notice_timer()
            if self._leader is None:
                self._idle.notify()

    def deliver(self, job: Callable[[], None]) -> None:
        """Run a job on the leading thread, after what was delivered before; the lock is held."""
        self._deliveries.add(job)
        self._notice_timer()

    def _notice_timer(self) -> None:
        """Wake the leader if it would sleep past a new timer, or past work that came from this thread."""
        if self._leader is None or self._leader == threading.get_ident():
            return
        if self._local or self._deliveries.count or self._callbacks or self._next_timer() < self._poll_until:
            self.van.wake()

    def _next_timer(self) -> float:
        timer = self.core.next_timer()
        return min(timer, min(due for due, _ in self._planned)) if self._planned else timer

    # -- leading ------------------------------------------------------------------------------------------------------

    def wait_until(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Wait until ``done()`` (called under the lock) or the deadline; raises what makes waiting pointless."""
        me = threading.get_ident()
        with self.lock:
            if done():
                return True
            self._callers += 1
            try:
                while not done():
                    if self.core.fatal is not None:
                        raise self.core.fatal
                    if self._closed:
                        raise ClosedError(what="the connection to the job")
                    now = self.now()
                    if deadline is not None and now >= deadline:
                        return False
                    if self._leader is None or self._leader == me:
                        # What ends the wait with an error ends it before the leader sleeps, too.
                        self._lead(deadline, lambda: done() or self.core.fatal is not None)
                    else:
                        if self._leader == self._thread.ident:
                            self.van.wake()  # it makes way: a caller that leads gets its reply without a switch
                        self._followers.wait(None if deadline is None else deadline - now)
                return True
            finally:
                self._callers -= 1
                self._last_led = self.now()

    def _lead(self, deadline: float | None, done: Callable[[], bool]) -> None:
        """Work once: receive, decide, send, run handlers; if there was nothing to do, wait for something."""
        nested = self._leader is not None  # a handler or callback of this very thread waits
        self._leader = threading.get_ident()
        try:
            self._pump(nested)
            if self._run_queues(nested) or done() or self._local:
                self._timer_due = min(self._timer_due, self.now() + LOOK_AT_TIMERS)  # it may be busy for long
                return
            self._timer_due = self._next_timer()
            self._poll_until = self._timer_due if deadline is None else min(self._timer_due, deadline)
            timeout = None if self._poll_until == FOR_EVER else max(0.0, self._poll_until - self.now())
            self.lock.release()
            try:
                self._sleep(timeout)
            finally:
                self.lock.acquire()
            self._pump(nested)
            self._run_queues(nested)
        finally:
            if not nested:
                self._leader = None
            if self._callers > 1 or self._thread.ident == threading.get_ident():
                self._followers.notify_all()

    def _sleep(self, timeout: float | None) -> None:
        """Wait for the van, if need be after a while of looking: to be woken up costs more than a small request."""
        look_until = self.now() + (self.look_for if timeout is None else min(self.look_for, timeout))
        while self.look_for and self.now() < look_until:
            if self.van.wait(0):
                return
        self.van.wait(timeout)

    def progress(self) -> None:
        """Receive and decide, unless a thread leads; what is to be run waits for one that does."""
        with self.lock:
            if self._leader is None and not self._closed:
                self._leader = threading.get_ident()
                try:
                    self.van.wait(0)
                    self._pump(nested=False)
                finally:
                    self._leader = None
                    self._followers.notify_all()

    def _pump(self, nested: bool) -> None:
        """Receive and decide, and look at the timers."""
        self._take_in(nested)
        if self.now() >= self._timer_due:
            self.van.wait(0)
            self._take_in(nested)  # who would be judged now may just have come back
            now = self.now()
            self.run(self.core.on_timer(now))
            self._callbacks.extend(callback for due, callback in self._planned if due <= now)
            self._planned = [planned for planned in self._planned if planned[0] > now]

    def _take_in(self, nested: bool) -> None:
        """Receive and decide until there is nothing more, or enough for the handlers to do."""
        while nested or self._deliveries.count < BATCH:
            event = self._next_event()
            if event is None:
                break
            if self._drop_rate and isinstance(event, Received) and self._rng.random() < self._drop_rate:
                continue  # PS_DROP_MSG: a fault that tests inject
            self._handle(event)

    def _handle(self, event: VanEvent) -> None:
        failpoint("after_recv")
        try:
            actions = self.core.on_event(self.now(), event)
        except (PSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A body of another form than its operation has: it costs its sender, never this process.
            actions = self.core.on_malformed(self.now(), event, error)
        self.run(actions)

    def _next_event(self) -> VanEvent | None:
        if self._local:
            return Received(LOOPBACK, self._local.popleft())
        return self.van.receive()

    def _run_queues(self, nested: bool) -> bool:
        """Run what is queued, without the lock. A nested leader runs callbacks only: its handler is not done."""
        ran = False
        while self._callbacks or (self._deliveries.count and not nested):
            begun = self.now()
            job = self._callbacks.popleft() if self._callbacks else self._deliveries.pop()
            self.lock.release()
            try:
                job()
            except Exception:  # user code: a failing callback must not stop the thread that serves all others
                log.exception("a callback or handler raised")
            finally:
                self.lock.acquire()
            ran = True
            if self._deliveries.count and self.now() - begun > LONG:  # what came meanwhile may be more urgent
                self.van.wait(0)
                self._pump(nested)
        return ran

    def _background(self) -> None:
        try:
            self._serve_when_idle()
        except BaseException as error:  # this thread has no caller: whoever waits must hear of it
            log.exception("the I/O thread failed")
            with self.lock:
                self.core.fatal = self.core.fatal or PSError(f"the I/O thread failed: {error!r}")
                self._followers.notify_all()

    def _serve_when_idle(self) -> None:
        with self.lock:
            while not self._closed:
                rest = self._last_led + IDLE_BEFORE_BACKGROUND - self.now()
                if self._callers or self._leader is not None:
                    self._idle.wait(LOOK_FOR_IDLE)
                elif rest > 0:
                    self._idle.wait(rest)
                else:
                    self._lead(None, lambda: self._closed or self._callers > 0)

    def close(self, linger: float, within: float = HANDLER_WITHIN) -> None:
        """Stop the thread and close the van; in a forked child there is nothing that could be closed.

        A handler that is running has ``within`` seconds to return.
        """
        if self.forked:
            return
        with self.lock:
            if self._closed:
                return
            if linger:  # what waits for room counts as queued
                self.run(list(self.core.delivery.flush(self.now())))
            self._closed = True
            self._idle.notify_all()
            self._followers.notify_all()
            self.van.wake()
            limit = self.now() + within
            while self._leader not in (None, threading.get_ident()):
                if self.now() > limit:
                    log.warning("a callback or handler does not return: the connection is left to it")
                    return
                self._followers.wait(LOOK_FOR_IDLE)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self.van.close(linger)

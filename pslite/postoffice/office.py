"""The postoffice: a process's membership in a job, and the door through which everything above talks to peers."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from pslite import ids, wire
from pslite.config import Config
from pslite.delivery import Delivery, Pending, error_of
from pslite.errors import (
    BarrierTimeout,
    ConfigError,
    PeerError,
    PSError,
    RequestTimeout,
    UnknownKeyError,
    WaitTimeout,
)
from pslite.memory import KeptMemory, Memory
from pslite.van.base import Van
from pslite.van.shared import Keeper, KeptArena
from pslite.wire import Kind, Message, Op

from . import addresses, place
from .actions import PeerAway, PeerBack
from .core import FOR_EVER, Core
from .joining import Joining
from .membership import Membership, Policy
from .placement import key_ranges
from .recovery import Recovery, routing_id
from .scheduler import Scheduler
from .shell import HANDLER_WITHIN, Shell
from .supervised import Supervised

log = logging.getLogger("pslite")

SAY_SLOW_EVERY = 30.0  # seconds between two lines about a wait that takes long
LAST_QUESTION = 1.0  # seconds that a peer has, at the deadline, to say what it waits for
LEAVE_WITHIN = 5.0  # seconds that leaving and closing may take
_GROUPS = {ids.SERVER_GROUP: "all servers", ids.WORKER_GROUP: "all workers", ids.ALL: "all processes"}
BEAT_WHEN_LEAVING = 0.02  # at most so many seconds between the scheduler's looks at who is still connected, at the end
LOOK_FOR = 0.0003  # seconds: twice what a small request takes
LOOK_AT_PROCESSES = 0.1  # seconds between the scheduler's looks at what the launcher knows
SAME_AS_CONFIG = object()  # the default of timeouts: Config.timeout


@dataclass(slots=True)
class _Turn:
    """At one barrier: whose turn it is, and the number of the last one, which changes under that lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    number: int = 0


class Postoffice:
    """One process's place in the job: its id, its peers, barriers, the directory, and its customers.

    ``start()`` joins, ``finalize()`` leaves; a new Postoffice may then be started in the same process. There is no
    process-wide instance: a process may hold several (LocalCluster does). Thread-safe.
    """

    def __init__(self, config: Config, van: Van | None = None, clock: Callable[[], float] = time.monotonic,
                 rng: Random | None = None) -> None:  # fmt: skip
        place.announce(config)
        config, keys = place.checked(config)
        self.config = config
        self._rng = rng or Random(int.from_bytes(os.urandom(16), "big"))
        self._clock = clock
        incarnation = self._rng.getrandbits(63)
        self._identity = routing_id(config.job, config.role, incarnation)
        delivery = Delivery(incarnation, config.resend_timeout, lambda *sent: self._shell.van.weigh(*sent))
        self._core = Core(config.role, delivery, returns=config.max_restarts > 0, patience=config.start_timeout)
        self._core.replicas = config.replicas
        self._core.has_room = lambda *asked: self._shell.van.has_room(*asked)
        self._shell = Shell(
            self._core,
            van or addresses.open_van(config, self._identity, clock, keys),
            clock,
            config.drop_rate,
            self._rng,
            addresses.pick,
        )
        self._shell.on_deliver = self._deliver
        self._customers: dict[tuple[int, int], Callable[[Message], None]] = {}  # (app, customer); under the lock
        self._unclaimed: list[Message] = []  # requests for customers that do not exist yet; under the lock
        # Threads at one barrier take turns: to the scheduler a node that comes again has given up before.
        self._barriers: dict[tuple[int, int], _Turn] = {}  # by (group, customer); under the lock
        self._exit_callbacks: list[Callable[[], None]] = []
        self._left = False
        self.released = False  # whether it has given up its place, for a successor to take; set on the leading thread
        self._kept: tuple[KeptArena, Keeper] | None = None  # set by open_kept
        watched = config.role == "scheduler" and config.job_dir
        self._supervised = Supervised(Path(config.job_dir)) if watched else None
        self.open: Callable[[Config], Postoffice] = Postoffice  # another one in this process; replaced on other vans

    # -- who and where ------------------------------------------------------------------------------------------------

    @property
    def van(self) -> Van:
        """The van that carries the messages."""
        return self._shell.van

    @property
    def memory(self) -> Memory:
        """Where arrays are made that cost least to send."""
        return self._shell.van.memory

    def open_kept(self) -> KeptMemory | None:
        """Memory that a successor of this process finds again, with what a predecessor left; None if nobody keeps it.

        To be called once. Raises KeeperError, ConfigError.
        """
        keeper = Keeper.from_config(self.config)
        if keeper is None:
            return None
        memory = KeptArena(self._clock, keeper, keeper.take())
        self._kept = memory, keeper
        self._shell.van.lend_from(memory)
        return memory

    def transport(self, node: int) -> str:
        """How messages to a node travel: 'shm', 'ipc', 'tcp', or 'in process'."""
        return self._shell.van.transport(node)

    @property
    def role(self) -> str:
        return self.config.role

    @property
    def node(self) -> int:
        """Our node id: 1, 8 + 2 rank or 9 + 2 rank."""
        return self._core.node

    @property
    def rank(self) -> int:
        """Our rank among the nodes of our role; stays with a restarted process."""
        return ids.rank_of(self._core.node)

    @property
    def num_workers(self) -> int:
        """How many the job began with; ``node_ids`` has those that came later, too."""
        return self._core.num_workers

    @property
    def num_servers(self) -> int:
        return self._core.num_servers

    @property
    def name(self) -> str:
        return ids.name_of(self._core.node)

    @property
    def job_over(self) -> bool:
        """Whether every worker has left; ``job_clean`` then says whether none of them failed."""
        return self._core.job_over

    @property
    def job_clean(self) -> bool:
        return self._core.job_clean

    @property
    def first_failure(self) -> PSError | None:
        """What went wrong in the job, as far as this process knows: its own fatal error, or a peer's end."""
        return self._core.first_failure or self._core.fatal

    @property
    def forked(self) -> bool:
        """Whether this is the copy in a forked child, which cannot be used."""
        return self._shell.forked

    def server_key_ranges(self) -> list[tuple[int, int]]:
        """The half-open range of uint64 keys of each server, by rank."""
        return key_ranges(self.num_servers).copy()

    def node_ids(self, group: int) -> list[int]:
        """The node ids of a group (a sum of 1, 2 and 4) or of one node."""
        nodes = ids.members(group, self.num_servers, self.num_workers)
        late = [n for n in self._core.roster if n >= ids.worker_id(self.num_workers) and ids.role_of(n) == "worker"]
        return nodes + sorted(late) if group < 8 and group & ids.WORKER_GROUP else nodes

    @property
    def elastic(self) -> bool:
        """Whether workers may join the running job."""
        return self._core.most > 0

    def name_of(self, node: int) -> str:
        """How errors call a node: role, rank, pid and host."""
        peer = self._core.roster.get(node)
        return ids.name_of(node) if peer is None else peer.name

    def ended(self, node: int) -> PeerError | None:
        """Why a node will not contribute any more, or None while it is in the job."""
        peer = self._core.roster.get(node)
        return None if peer is None else peer.ended

    def states(self, group: int) -> dict[int, str]:
        """Of each node of a group: 'up', 'away' (it died and is awaited), 'finished', or 'lost'."""
        roster = self._core.roster
        return {node: roster[node].state if node in roster else "up" for node in self.node_ids(group)}

    def away(self) -> dict[int, str]:
        """The nodes that died and are awaited, with their names."""
        return {node: peer.name for node, peer in self._core.roster.items() if peer.away}

    @property
    def again(self) -> bool:
        """Whether this process took the place of one that died."""
        return self._core.again

    @property
    def policy(self) -> str:
        """What becomes of the others when a worker dies: 'raise', 'wait' or 'shrink'."""
        return self._core.policy

    @property
    def backup(self) -> int | None:
        """The server that this one replicates to; None if there is none, or it has ended."""
        return self._core.backup

    # -- joining ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Join the job; returns when every process of it has.

        Raises RendezvousTimeout that names the missing, UnreachableError that says why there is no connection to one,
        JoinError if the scheduler refuses, BindError, PeerLost.
        """
        try:
            if self.role == "scheduler":
                self._open_job()
                self._await_members()
            else:
                Joining(self.config, self._identity, self._core, self._shell, self._ask_scheduler).run()
        except BaseException:
            self._shell.close(linger=1.0)
            raise
        self._shell.look_for = LOOK_FOR if self._has_a_processor() else 0.0
        log.info("joined job %s as %s", self._core.delivery.job, self.name)

    def _has_a_processor(self) -> bool:
        """Whether each worker and server of this host may have one for itself, so that waiting on it costs nobody."""
        if not self.config.job_dir or self.role == "scheduler":
            return False
        mine = [peer for peer in self._core.roster.values() if peer.host == socket.gethostname()]
        return len(mine) <= len(os.sched_getaffinity(0))

    def _open_job(self) -> None:
        config = self.config
        delivery = self._core.delivery
        delivery.node, delivery.job = ids.SCHEDULER, config.job or f"{self._rng.getrandbits(64):016x}"
        now = self._clock()
        deadline = None if config.start_timeout is None else now + config.start_timeout
        servers = "wait" if config.servers_return else "raise"
        policy = Policy(servers, config.policy, config.start_timeout, config.replicas)
        counts = config.num_workers, config.num_servers
        membership = Membership(*counts, delivery.job, deadline, now, policy, config.max_workers)
        recovery = Recovery(delivery.job, membership.wanted, now, config.restarts > 0) if config.max_restarts else None
        self._core.scheduler = Scheduler(membership, recovery)
        [root] = addresses.to_listen(config, self._identity)
        self._shell.van.bind(root.address, config.root_fd)
        self._shell.start()

    def _await_members(self) -> None:
        assert self._core.scheduler is not None
        self._look_at_processes()
        while not self._shell.wait_until(lambda: self._core.ready, self._clock() + 0.5):
            log.info("waiting for %s", ", ".join(self._core.scheduler.membership.missing()))
            self._look_at_processes()

    def _look_at_processes(self) -> None:
        """Take in what the launcher knows about the processes of the job, and say which of them are lost to us."""
        if self._supervised is not None:
            hints = self._supervised.read()
            self._shell.do(lambda now: self._core.on_hints(now, hints))
            self._supervised.report(self._core.given_up())

    # -- requests and waiting -----------------------------------------------------------------------------------------

    def request(self, node: int, message: Message, on_reply: Callable[[Message | PSError], None]) -> Pending | None:
        """Send a request that passed ``wire.check`` to a node.

        ``on_reply`` runs under the lock: it may only note the result.
        """
        return self._shell.request(node, message, on_reply)

    def answer(self, request: Message, reply: Message) -> None:
        """Answer a request that was delivered; nothing happens if its sender is gone.

        Raises DTypeError or ProtocolError if the reply cannot travel; then the request still waits for one.
        """
        wire.check(reply)
        self._shell.do(lambda now: list(self._core.delivery.reply(request, reply)))

    def after(self, callback: Callable[[], None]) -> None:
        """Queue user code that a reply triggers; called from ``on_reply``."""
        self._shell.after(callback)

    def later(self, callback: Callable[[], None]) -> None:
        """Queue user code, from any thread."""
        self._shell.later(callback)

    def soon(self, callback: Callable[[], None], within: float) -> None:
        """Run user code in so many seconds, from any thread."""
        self._shell.soon(callback, within)

    def progress(self) -> None:
        """Take in what has come, without waiting: for a thread that sends much, and so may wait for room."""
        self._shell.progress()

    def wait(self, done: Callable[[], bool], what: str, pending: Callable[[], Iterable[tuple[int, Pending]]],
             timeout: Any = SAME_AS_CONFIG, error: type[WaitTimeout] = RequestTimeout) -> None:  # fmt: skip
        """Wait until ``done()``; says every 30 s, and in the error at the deadline, who is missing.

        ``pending()`` gives the requests concerned with the nodes they went to. ``timeout`` is seconds, None for ever.
        """
        self.check()
        if timeout is SAME_AS_CONFIG:
            timeout = self.config.timeout
        start = self._clock()
        deadline = None if timeout is None else start + timeout
        say_at = start + SAY_SLOW_EVERY
        while not self._shell.wait_until(done, say_at if deadline is None else min(deadline, say_at)):
            now = self._clock()
            if deadline is None or now < deadline:
                log.warning(
                    "%s is not done after %.0f s, waiting for %s",
                    what,
                    now - start,
                    ", ".join(self._missing(pending())),
                )
                say_at = now + SAY_SLOW_EVERY
                continue
            self.ask(done, pending, LAST_QUESTION)
            if done():
                return
            raise error(what=what, missing=self._missing(pending()), seconds=timeout)

    def ask(
        self, done: Callable[[], bool], pending: Callable[[], Iterable[tuple[int, Pending]]], within: float
    ) -> bool:
        """Ask the peers which of these requests they have and what those wait for, and give them a moment to say it.

        True if ``done()``, or if every request is answered or known to be in the hands of its receiver.
        """
        now = self._clock()
        asked = list(pending())
        nodes = {node for node, _ in asked}
        self._shell.do(lambda at: [send for node in nodes for send in self._core.delivery.probe(at, node)])
        return self._shell.wait_until(lambda: done() or all(p.asked_at >= now for _, p in pending()), now + within)

    def _ask_scheduler(self, joining: list[tuple[int, Pending]]) -> None:
        """Ask it who is missing, and give it a moment to say so."""
        self.ask(lambda: self._core.ready, lambda: joining, LAST_QUESTION)

    def hand_over(self) -> None:
        """Send at once what waits for room, because this process ends and nothing more urgent will come."""
        self._shell.do(lambda now: list(self._core.delivery.flush(now)))

    def _missing(self, pending: Iterable[tuple[int, Pending]]) -> list[str]:
        names: dict[str, None] = {}
        for node, request in pending:
            told = request.waiting_for if request.asked_at > float("-inf") else []
            names.update(dict.fromkeys(told or [self.name_of(node)]))
        return list(names)

    def call(self, node: int, op: Op, body: Any, what: str, customer: int = 0, timeout: Any = SAME_AS_CONFIG,
             error: type[WaitTimeout] = RequestTimeout) -> Any:  # fmt: skip
        """Send a request to a service and wait for its answer; raises the error it answers with."""
        result: list[Message | PSError] = []
        message = Message(Kind.REQUEST, op=op, customer=customer, body=body)
        wire.check(message)
        pending = self.request(node, message, result.append)
        asked = [] if pending is None else [(node, pending)]
        self.wait(lambda: bool(result), what, lambda: asked, timeout, error)
        problem = error_of(result[0])
        if problem is not None:
            raise problem
        assert isinstance(result[0], Message)
        return result[0].body

    def barrier(self, group: int, customer: int = 0, timeout: Any = SAME_AS_CONFIG, number: int | None = None,
                late: Sequence[int] | None = None) -> None:  # fmt: skip
        """Wait until every node of the group is at this barrier; barriers of different customers are separate.

        ``number``: grows with each barrier, and is the same for a process that was restarted and comes to it again; the
        default counts. One that this node has passed before it was restarted is passed at once. ``late``: the ranks of
        the workers that came later and count, the same for all members; None: those there are when the first one comes.

        Raises BarrierTimeout that names the missing, or the PeerError of a member that will not come.
        """
        if self.node not in self.node_ids(group):
            raise ConfigError(
                name="group", value=group, allowed=f"{self.name} must be a member: use a sum of 1, 2 and 4 that has it"
            )
        what = f"the barrier of {_GROUPS.get(group, group)}"
        with self._shell.lock:
            turn = self._barriers.setdefault((group, customer), _Turn())
        with turn.lock:
            turn.number = turn.number + 1 if number is None else number
            body = [group, turn.number] if late is None else [group, turn.number, list(late)]
            self.call(ids.SCHEDULER, Op.BARRIER, body, what, customer, timeout, BarrierTimeout)

    def publish(self, records: dict[str, Any]) -> None:
        """Add records to the job's directory; raises ConflictError if one exists with another content."""
        self.call(ids.SCHEDULER, Op.PUBLISH, records, "publishing keys")

    def lookup(self, names: list[str], timeout: Any = SAME_AS_CONFIG) -> dict[str, Any]:
        """The records of these names. Waits until each is published, unless that has become this process's part."""
        found = self.call(ids.SCHEDULER, Op.LOOKUP, names, "the look-up of keys", timeout=timeout)
        if not isinstance(found, dict) or not found.keys() <= set(names):
            raise UnknownKeyError(key=", ".join(names))
        return found

    # -- customers ----------------------------------------------------------------------------------------------------

    def register(self, app: int, customer: int, accept: Callable[[Message], None]) -> None:
        """Requests for this app and customer go to ``accept``, on the leading thread, in each sender's order."""
        with self._shell.lock:
            if (app, customer) in self._customers:
                raise ConfigError(
                    name="customer_id", value=customer, allowed=f"app {app} has this customer already: give another id"
                )
            self._customers[app, customer] = accept
            if self._unclaimed:
                self._shell.deliver(self._claim)

    def unregister(self, app: int, customer: int) -> None:
        """Remove a customer; requests for it wait until it is registered again."""
        with self._shell.lock:
            self._customers.pop((app, customer), None)

    def _deliver(self, message: Message) -> None:
        with self._shell.lock:
            accept = None if self._unclaimed else self._find_customer(message)
            if accept is None:
                self._unclaimed.append(message)
        if accept is None:
            self._claim()
        else:
            accept(message)

    def _claim(self) -> None:
        """Give every request whose customer exists to it, oldest first; runs on the leading thread."""
        while True:
            with self._shell.lock:
                found = next(((m, a) for m in self._unclaimed if (a := self._find_customer(m)) is not None), None)
                if found is None:
                    return
                self._unclaimed.remove(found[0])
            found[1](found[0])

    def _find_customer(self, message: Message) -> Callable[[Message], None] | None:
        exact = self._customers.get((message.app, message.customer))
        if exact is not None or self.role == "worker":
            return exact
        return next((accept for (app, _), accept in self._customers.items() if app == message.app), None)

    def on_parked(self, why: Callable[[Message], list[str]]) -> None:
        """``why(request)`` names what a request that was delivered but not answered waits for."""
        self._core.why = why

    def on_peer_ended(self, callback: Callable[[int, PeerError], None]) -> None:
        """``callback(node, error)`` runs on the leading thread when a node finished, failed or was lost.

        It also runs for those that have ended already.
        """
        with self._shell.lock:
            self._shell.on_peer_ended.append(callback)
            for peer in self._core.roster.values():
                if peer.ended is not None:
                    self._shell.deliver(partial(callback, peer.node, peer.ended))

    def on_peer_moved(self, callback: Callable[[PeerAway | PeerBack], None]) -> None:
        """``callback`` runs on the leading thread when a node died and is awaited, and when it is back."""
        with self._shell.lock:
            self._shell.on_peer_moved.append(callback)

    def beside(self, rank: int) -> Postoffice:
        """Another place in the job for this process: that of a server that died. ``start()`` it.

        Raises ConfigError if that needs a key which this process does not have.
        """
        return self.open(place.beside(self.config, rank, self._core.roster[ids.server_id(rank)].restarts + 1))

    def release(self) -> None:
        """Stop serving between two requests, without a word to the job: a successor takes this place.

        From any thread. ``wait_job_over`` returns then; after ``finalize`` nothing is written to kept memory any more.
        """
        self._shell.later(partial(setattr, self, "released", True))

    # -- leaving ------------------------------------------------------------------------------------------------------

    def add_exit_callback(self, callback: Callable[[], None]) -> None:
        """Run ``callback`` at the end of ``finalize``; several run in the order they were added."""
        self._exit_callbacks.append(callback)

    def leave(self, how: str = "finished", reason: str = "", wait: bool = False, timeout: Any = LEAVE_WITHIN) -> None:
        """Tell the job that this process will send nothing more; ``wait`` waits until all workers have left.

        Raises the PeerError of a worker that failed or was lost meanwhile, if ``wait``.
        """
        if self._left or self.role == "scheduler":
            return
        self._left = True
        self.call(
            ids.SCHEDULER, Op.LEAVE, [how, reason, wait], "leaving the job", timeout=timeout, error=BarrierTimeout
        )

    def wait_job_over(self) -> None:
        """Serve until every worker has left, or until ``release``; raises what ended this process's part early."""
        survives = self.config.servers_return or self.config.max_workers > 0 or self._core.policy == "shrink"
        supervised = self._supervised is not None and survives
        while not self._shell.wait_until(
            lambda: self._core.job_over or self.released, self._clock() + LOOK_AT_PROCESSES if supervised else None
        ):
            self._look_at_processes()
        if supervised:  # whoever was given up at the very end must be ended, too
            self._look_at_processes()

    def finalize(self, do_barrier: bool = True) -> None:
        """Leave the job and close everything; with ``do_barrier`` only when all processes have come here."""
        try:
            if do_barrier and self._core.fatal is None:
                self.barrier(ids.ALL)
            self._part()
        finally:
            self.close()
            for callback in self._exit_callbacks:
                callback()

    def _part(self) -> None:
        """Leave, unless the place was released; the scheduler stays until all members have left or died."""
        if self._core.scheduler is None:
            if self._core.fatal is None and not self.released:
                self.leave()
            return
        # A member whose answer to LEAVE got lost asks again: stay until every one has closed its connection.
        limit, pause = self._clock() + LEAVE_WITHIN, BEAT_WHEN_LEAVING / 16
        while self._clock() < limit and not self._core.scheduler.alone:
            self._shell.do(self._core.beat_all)
            self._shell.wait_until(lambda: False, min(limit, self._clock() + pause))
            pause = min(2 * pause, BEAT_WHEN_LEAVING)

    def close(self, linger: float = 2.0) -> None:
        """Close the connection at once, without telling anybody; what is queued has ``linger`` seconds to leave.

        Once this process has lost the job nothing queued matters, and a stopped scheduler would not take it. After
        ``release`` a handler that is running is waited for, and what it answers is asked of the successor again.
        """
        hurry = self._core.fatal is not None or self.released
        self._shell.close(0 if hurry else linger, FOR_EVER if self.released else HANDLER_WITHIN)
        for kept in self._kept or ():
            kept.close()

    def check(self) -> None:
        """Raise ClosedError or ForkError if this process cannot use the connection (any more)."""
        self._shell.check("the connection to the job")

    def __repr__(self) -> str:
        state = "joined" if self._core.ready else "joining"
        return f"<Postoffice {self.name if self._core.ready else self.role} {state} {self._core.delivery!r}>"

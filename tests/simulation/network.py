"""The network: connections as ZeroMQ's, that lose, double, delay and reorder messages, break, and are cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pslite import ids
from pslite.van.base import LinkDown, LinkUp
from pslite.wire import Frame, Kind, Link, Message, encode

if TYPE_CHECKING:
    from .job import Job
    from .process import Process

HEARTBEAT = 1.0  # seconds after which an end of a connection to the scheduler drops a peer that is cut off or stopped
ACKNOWLEDGED = 2.0  # seconds after which TCP gives up the other connections


class Connection:
    """What a process made to a node. ``up``: as each end sees it."""

    def __init__(self, client: Process, node: int, address: str) -> None:
        self.client, self.node, self.address = client, node, address
        self.server: Process | None = None  # the last one that it reached
        self.up = {True: False, False: False}  # by end: True is the client's
        self.age = 0  # of the TCP connection: what was sent on an earlier one is lost
        self.queue: list[list[Frame]] = []  # sent by the client while there was none
        self.held: dict[bool, list[list[Frame]]] = {True: [], False: []}  # behind a cut, by the end that sent
        self.busy_until = {True: 0.0, False: 0.0}  # what is sent later arrives later
        self.dropped = False  # the client has made another one in its place

    @property
    def patience(self) -> float:
        return HEARTBEAT if self.node == ids.SCHEDULER else ACKNOWLEDGED


class Network:
    """All connections of a job."""

    def __init__(self, job: Job) -> None:
        self._job, self._world, self._plan = job, job.world, job.plan
        self._bound: dict[str, Process] = {}
        self._connections: list[Connection] = []
        self.cut_off: set[str] = set()  # roles and ranks that ever were
        self._cuts: dict[tuple[str, str], int] = {}  # how many cuts there are, from a role and rank to another

    def bind(self, process: Process) -> None:
        """Others may connect to this process."""
        self._bound[process.address] = process

    # -- connections --------------------------------------------------------------------------------------------------

    def connect(self, client: Process, node: int, address: str) -> None:
        """Make a connection in place of that to this node."""
        before = client.connections.get(node)
        if before is not None:
            self._drop(before)
            before.dropped = True
            self._connections.remove(before)
        made = client.connections[node] = Connection(client, node, address)
        self._connections.append(made)
        self._world.after(self._world.rng.uniform(0.0005, 0.02), partial(self._try, made))

    def _try(self, connection: Connection) -> None:
        client, server = connection.client, self._bound.get(connection.address)
        if connection.dropped or connection.up[True] or not client.alive:
            return
        if server is not None and not server.alive and connection.node != ids.SCHEDULER:
            return  # its successor has another address
        gone = server is None or not server.alive
        if server is None or gone or client.stopped or server.stopped or self._is_cut(connection):
            self._world.after(self._world.rng.uniform(0.05, 0.4), partial(self._try, connection))
            return
        connection.server, connection.age = server, connection.age + 1
        connection.up = {True: True, False: True}
        server.routes[client.link] = connection
        client.arrive(LinkUp(connection.node))
        queue, connection.queue = connection.queue, []
        for frames in queue:
            self._post(connection, True, frames)

    def break_(self, connection: Connection) -> None:
        """The TCP connection is reset, which the server may notice later; the client makes another one."""
        if not connection.up[True]:
            return
        self._world.note(connection.client.name, f"loses its connection to {ids.name_of(connection.node)}")
        connection.client.excused = True
        age = connection.age
        self._drop(connection)
        connection.up[False] = True
        self._world.after(self._world.rng.choice((0.0, 0.3)), lambda: self._notice(connection, age))
        connection.client.arrive(LinkDown(connection.node))
        self._world.after(self._world.rng.uniform(0.05, 0.4), partial(self._try, connection))

    def _notice(self, connection: Connection, age: int) -> None:
        if connection.age == age + 1 and not connection.up[True]:
            connection.up[False] = False

    def _drop(self, connection: Connection) -> None:
        connection.up = {True: False, False: False}
        connection.age += 1
        connection.held = {True: [], False: []}

    def on_death(self, process: Process) -> None:
        """A process is gone; what it sent before may still arrive."""
        for connection in [c for c in self._connections if process in (c.client, c.server)]:
            if connection.client is process:
                connection.up = {True: False, False: connection.up[False]}
                self._connections.remove(connection)
                self._world.after(self._world.rng.uniform(0, 0.05), partial(connection.up.__setitem__, False, False))
            elif connection.up[True]:
                self._lose(connection)

    def _lose(self, connection: Connection) -> None:
        """Who accepted this connection is dead. A scheduler's successor accepts it on the same listening socket."""
        noticed = self._world.rng.uniform(0, 0.05)
        self._world.after(noticed, partial(connection.client.arrive, LinkDown(connection.node)))
        if connection.node == ids.SCHEDULER:
            self._drop(connection)
            self._world.after(noticed + self._world.rng.uniform(0.05, 0.4), partial(self._try, connection))
        else:
            connection.up = {True: False, False: False}

    def some(self, choose: Callable[[list[Connection]], Connection]) -> Connection | None:
        """One of the connections that are up."""
        up = [connection for connection in self._connections if connection.up[True]]
        return choose(up) if up else None

    # -- messages -----------------------------------------------------------------------------------------------------

    def send(self, sender: Process, link: Link, message: Message) -> bool:
        """Send; False if there is no connection to a peer that made one."""
        by_client = isinstance(link, int)
        connection = sender.connections.get(link) if isinstance(link, int) else sender.routes.get(link)
        if connection is None or (not by_client and not connection.up[False]):
            return False
        if message.kind == Kind.BEAT:  # it says nothing to whom it reaches
            return True
        frames = encode(message)
        if by_client and not connection.up[True]:
            connection.queue.append(frames)
        elif connection.up[not by_client]:
            self._post(connection, by_client, frames)
        return True

    def _post(self, connection: Connection, by_client: bool, frames: list[Frame]) -> None:
        plan, rng = self._plan, self._world.rng
        if plan.loss and rng.random() < plan.loss:
            return
        for _ in range(2 if plan.double and rng.random() < plan.double else 1):
            when = self._world.now + 0.0002 + rng.random() * plan.delay
            if plan.in_order:
                when = connection.busy_until[by_client] = max(when, connection.busy_until[by_client])
            self._world.at(when, partial(self._arrive, connection, connection.age, by_client, frames))

    def _arrive(self, connection: Connection, age: int, by_client: bool, frames: list[Frame]) -> None:
        if connection.age != age or connection.server is None:
            return
        ends = connection.client, connection.server
        sender, receiver = ends if by_client else ends[::-1]
        if self._cuts and (sender.place, receiver.place) in self._cuts:
            connection.held[by_client].append(frames)
        else:
            receiver.arrive((connection.client.link if by_client else connection.node, frames))

    # -- faults -------------------------------------------------------------------------------------------------------

    def _is_cut(self, connection: Connection) -> bool:
        ends = connection.client.place, ids.name_of(connection.node)
        return ends in self._cuts or ends[::-1] in self._cuts

    def cut(self, pairs: list[tuple[str, str]], seconds: float) -> None:
        """Nothing gets from the first to the second of each pair for so long; connections break if that is too long."""
        for pair in pairs:
            self._cuts[pair] = self._cuts.get(pair, 0) + 1
            self.cut_off.update(pair)
        for connection in [c for c in self._connections if self._is_cut(c)]:
            self._world.after(connection.patience, partial(self._give_up, connection, connection.age))
        self._world.after(seconds, partial(self._heal, pairs))

    def _give_up(self, connection: Connection, age: int) -> None:
        if connection.age == age and not connection.dropped and self._is_cut(connection):
            self.break_(connection)

    def _heal(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            self._cuts[pair] -= 1
            if not self._cuts[pair]:
                del self._cuts[pair]
        for connection in list(self._connections):
            if not self._is_cut(connection):
                for by_client, held in connection.held.items():
                    connection.held[by_client] = []
                    for frames in held:
                        self._arrive(connection, connection.age, by_client, frames)

    def on_pause(self, process: Process, until: float) -> None:
        """ZeroMQ's heartbeats are not answered by a process that is stopped."""
        if until - self._world.now > HEARTBEAT:
            for connection in [c for c in self._connections if process is c.client and c.node == ids.SCHEDULER]:
                self._world.after(HEARTBEAT, partial(self._miss, connection, connection.age))

    def _miss(self, connection: Connection, age: int) -> None:
        if connection.age == age and connection.client.stopped:
            self.break_(connection)


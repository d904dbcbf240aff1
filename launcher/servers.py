"""The servers of a host: the memory of each rank, the orders to each process, and what moves between them."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Container, Sequence
from functools import partial
from time import monotonic

from .keeper import Keeper
from .moves import Action, Adopt, Done, Moves, Release, Retire, Start
from .orders import Orders


class Servers:
    """What an agent has of the servers whose memory it keeps. Used by its one thread only.

    Processes are numbered like ranks. ``start`` starts one, ``done`` is told when ranks have moved, or why not.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        processes: int,
        start: Callable[[int], None],
        done: Callable[[Done], None],
        notice: Callable[[int, str], None],
    ) -> None:
        self.moves = Moves(ranks, processes)
        self.restarts = dict.fromkeys(ranks, 0)  # how many processes have had a rank before
        self._start, self._done = start, done
        self._keepers = {rank: Keeper(partial(notice, rank)) for rank in ranks}
        self._orders: dict[int, Orders] = {}  # by process; those that listen
        self._acted = False  # since ``serve`` began

    def connect(self, process: int) -> socket.socket:
        """A connection for a process that is about to start, and is told its ranks: its end, to be inherited."""
        orders = self._orders[process] = Orders()
        for rank in self.moves.ranks_of(process):
            self._adopt(process, rank)
        return orders.take_end()

    def scale(self, processes: int) -> None:
        """Have so many processes serve; raises ScaleError."""
        self._act(self.moves.scale(processes, monotonic()))

    def ended(self, process: int, because: str) -> None:
        """A process has ended. What ranks it has are its successor's, which is to be started next."""
        self._close(process)
        for rank in self.moves.ranks_of(process):
            self.restarts[rank] += 1
        self._act(self.moves.ended(process, monotonic(), because))

    def over(self) -> None:
        """The job is over: no process will have another rank."""
        self._act(self.moves.job_over())
        for process in list(self._orders):
            self._close(process)

    def forget(self, process: int) -> None:
        """Nobody follows a process that has ended: nothing of its ranks is kept any more."""
        for rank in self.moves.ranks_of(process):
            self._keepers[rank].close()

    # -- sockets ------------------------------------------------------------------------------------------------------

    def register(self, poller: select.poll) -> None:
        """Wait for all that may come, or may be sent."""
        for keeper in self._keepers.values():
            if keeper.connected:
                poller.register(keeper, select.POLLIN | (select.POLLOUT if keeper.wants_to_send else 0))
        for orders in self._orders.values():
            poller.register(orders, select.POLLIN)

    def serve(self, ready: Container[int]) -> bool:
        """Take in what has come. Returns whether anything has moved, or will."""
        self._acted = False
        for keeper in self._keepers.values():
            if keeper.fileno() in ready:
                keeper.serve()
        for process, orders in list(self._orders.items()):
            if orders.fileno() in ready:
                self._hear(process, orders)
        return self._acted

    def _hear(self, process: int, orders: Orders) -> None:
        for word, rank in orders.receive():
            mine = self.moves.home.get(rank) == process
            if word == "ready":
                self._act(self.moves.ready(process, monotonic()))
            elif word == "serving" and mine:
                self._act(self.moves.serving(rank, monotonic()))
            elif word == "released" and mine:
                self.restarts[rank] += 1
                self._act(self.moves.released(rank))
        if orders.ended:
            self._close(process)

    def _close(self, process: int) -> None:
        if process in self._orders:
            self._orders.pop(process).close()

    # -- actions ------------------------------------------------------------------------------------------------------

    def _act(self, actions: list[Action]) -> None:
        self._acted = self._acted or bool(actions)
        for action in actions:
            match action:
                case Start(process):
                    self._start(process)
                case Release(process, rank):
                    if process in self._orders:
                        self._orders[process].release(rank)
                case Adopt(process, rank):
                    self._adopt(process, rank)
                case Retire(process):
                    self._close(process)
                case Done():
                    self._done(action)

    def _adopt(self, process: int, rank: int) -> None:
        """Have a process serve a rank, with the memory that its predecessors have left."""
        if process in self._orders:
            with self._keepers[rank].connect() as connection:
                self._orders[process].adopt(rank, self.restarts[rank], connection)

"""Which server rank is in which process, and how ranks move while the job runs. No I/O; time is an argument.

The processes are numbered like ranks. Of N processes the r % N-th has the r-th rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


class ScaleError(Exception):
    """The number of servers cannot be changed; the text says why."""


@dataclass(frozen=True)
class Start:
    """Action: start this process, with the ranks that it has, if any."""

    process: int


@dataclass(frozen=True)
class Release:
    """Action: have this process stop serving a rank."""

    process: int
    rank: int


@dataclass(frozen=True)
class Adopt:
    """Action: have this process serve a rank."""

    process: int
    rank: int


@dataclass(frozen=True)
class Retire:
    """Action: tell this process, which has no rank, that no more will come."""

    process: int


@dataclass(frozen=True)
class Moved:
    """A rank that is served elsewhere now. ``seconds``: from the order to release it until it was served again."""

    rank: int
    source: int
    goal: int
    seconds: float


@dataclass(frozen=True)
class Done:
    """Action: say that the ranks have moved; ``error``: why only these have, if so."""

    moved: tuple[Moved, ...]
    error: str = ""


Action = Start | Release | Adopt | Retire | Done


@dataclass
class _Move:
    rank: int
    source: int
    goal: int
    since: float
    released: bool = False


class Moves:
    """State machine over the server processes of a host. One change of their number at a time."""

    def __init__(self, ranks: Sequence[int], processes: int) -> None:
        self._ranks = ranks
        self.home = self._spread(processes)  # the process that has it, or is to adopt it
        self._there = set(self.home.values())  # processes that run, or are being started
        self._over = False  # the job is
        self._scaling = False
        self._starting: set[int] = set()  # those of them that are to become ready before any rank moves
        self._retiring: set[int] = set()  # those that are to end
        self._queue: deque[tuple[int, int]] = deque()  # ranks that are still to move, with their goals
        self._move: _Move | None = None  # the one under way
        self._moved: list[Moved] = []
        self._error = ""

    def ranks_of(self, process: int) -> list[int]:
        """The ranks that a process has."""
        return [rank for rank, home in self.home.items() if home == process]

    def served_by(self) -> int:
        """How many processes have ranks."""
        return len(set(self.home.values()))

    # -- events -------------------------------------------------------------------------------------------------------

    def scale(self, processes: int, now: float) -> list[Action]:
        """Have so many processes serve; raises ScaleError."""
        if self._over:
            raise ScaleError("the job is over")
        if self._scaling:
            raise ScaleError("the number of servers is being changed: try again when that is done")
        if not 1 <= processes <= len(self.home):
            most = f"this job has {len(self.home)} shards: give 1 to {len(self.home)}"
            raise ScaleError(f"{processes} servers: {most}, or start it with another --max-servers")
        self._scaling, self._moved, self._error = True, [], ""
        self._queue = deque((rank, goal) for rank, goal in self._spread(processes).items() if self.home[rank] != goal)
        return self._next(now)

    def ready(self, process: int, now: float) -> list[Action]:
        """A process can adopt ranks."""
        if process not in self._starting:
            return []
        self._starting.discard(process)
        return [] if self._starting else self._next(now)

    def released(self, rank: int) -> list[Action]:
        """Nobody serves a rank any more, as it was told."""
        move = self._move
        if move is None or move.rank != rank or move.released:
            return []
        move.released, self.home[rank] = True, move.goal
        actions: list[Action] = [Adopt(move.goal, rank)] if move.goal in self._there else [Start(move.goal)]
        self._there.add(move.goal)
        return [*actions, *self._retire()]

    def serving(self, rank: int, now: float) -> list[Action]:
        """A process serves a rank."""
        move = self._move
        if move is None or move.rank != rank or not move.released:
            return []
        self._moved.append(Moved(rank, move.source, move.goal, now - move.since))
        self._move = None
        return self._next(now)

    def ended(self, process: int, now: float, because: str) -> list[Action]:
        """A process ended. If it has ranks it is started again with them.

        ``because``: what its end was, ``exit code 1``.
        """
        actions: list[Action] = []
        move = self._move
        if move is not None and move.source == process and not move.released:
            actions = self.released(move.rank)
        if self.ranks_of(process):
            return actions
        self._there.discard(process)
        self._retiring.discard(process)
        if process in self._starting:
            return self._give_up(f"server {process} ended before it could serve: {because}")
        return actions if self._move else [*actions, *self._next(now)]

    def job_over(self) -> list[Action]:
        """Nothing moves any more."""
        self._move, self._over = None, True
        return self._give_up("the job is over")

    def _spread(self, processes: int) -> dict[int, int]:
        return {rank: self._ranks[at % processes] for at, rank in enumerate(self._ranks)}

    # -- steps --------------------------------------------------------------------------------------------------------

    def _next(self, now: float) -> list[Action]:
        """Start what is missing; then move one rank; then all is done when those without ranks have ended."""
        if not self._scaling:
            return []
        if missing := {goal for _, goal in self._queue} - self._there:
            self._starting, self._there = missing, self._there | missing
            return [Start(process) for process in sorted(missing)]
        if self._queue:
            rank, goal = self._queue.popleft()
            self._move = _Move(rank, self.home[rank], goal, now)
            return [Release(self._move.source, rank)]
        if self._retiring:
            return []
        self._scaling = False
        return [Done(tuple(self._moved), self._error)]

    def _retire(self) -> list[Action]:
        """End those without a rank that will not get one."""
        wanted = {*self.home.values(), *(goal for _, goal in self._queue)}
        idle = self._there - wanted
        self._there -= idle
        self._retiring |= idle
        return [Retire(process) for process in sorted(idle)]

    def _give_up(self, error: str) -> list[Action]:
        if not self._scaling:
            return []
        self._error, self._starting = error, set()
        self._queue.clear()
        return [*self._retire(), *self._next(0.0)]


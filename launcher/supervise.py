"""The launcher's judgement: who runs, what failed first, when to stop whom.

No I/O and no clock: events come in with their time, actions go out.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .error_record import ErrorRecord
from .spec import ProcessSpec

_ROOT_CAUSE_WAIT = 1.0  # seconds from a failure that another process has caused to the stop of all: time for the cause
_ROOT_CAUSE_WAIT_ELSEWHERE = 3.0  # the same if it may be a host, which is missed later than its processes
_ABANDON_AFTER = 5.0  # seconds after SIGKILL: a process that still has not ended never will


@dataclass
class Process:
    """What is known of one process. Changed by its Supervisor only; times are those of the supervisor's clock."""

    spec: ProcessSpec
    pid: int | None = None
    exit: int | None = None  # the return code, negative for a signal; 126 or 127 if it could not be started
    ended: float | None = None
    error: str = ""  # why it could not be started
    record: ErrorRecord | None = None  # what it left about its error
    host: str = ""  # where it runs, if the host of its spec stands for a cluster
    restarts: int = 0  # how often it was started again
    dropped: bool = False  # a signal ended it, and the others go on without it
    lost: bool = False  # it was to be killed, because it exists but does not answer
    late: bool = False  # it was started when the job ran
    ending: bool = False  # it was told to end, and the others go on without it

    @property
    def where(self) -> str:
        """``worker 1 on localhost (pid 4711)``."""
        return f"{self.spec.label} on {self.host or self.spec.host} (pid {self.pid})"

    @property
    def caused_by(self) -> str | None:
        """The label of the other process whose end was its error, if it says so."""
        return self.record.caused_by if self.record and self.record.caused_by != self.spec.label else None

    @property
    def is_consequence(self) -> bool:
        """Whether it failed because another process had. Servers and scheduler follow the workers if they say nothing
        else."""
        if self.record:
            return self.caused_by is not None
        return self.exit is not None and self.exit > 0 and not self.error and self.spec.role != "worker"


@dataclass(frozen=True)
class Failed:
    """Processes ended with something other than 0: this one, as the root cause, and these."""

    process: Process
    others: tuple[Process, ...]  # that failed too before the stop
    stopped: tuple[Process, ...]  # that ran at that moment


@dataclass(frozen=True)
class Interrupted:
    """The launcher was told to stop, by a signal."""

    signum: int


@dataclass(frozen=True)
class Overstayed:
    """All workers had ended, but these did not."""

    processes: tuple[Process, ...]


@dataclass(frozen=True)
class HostLost:
    """There is no agent on a host, or none any more, and nobody looks after its processes."""

    host: str
    reason: str
    processes: tuple[Process, ...]  # that it had


Cause = Failed | Interrupted | Overstayed | HostLost


@dataclass(frozen=True)
class Send:
    """Action: send this signal to all process groups."""

    signum: int


@dataclass(frozen=True)
class Kill:
    """Action: kill this process, unless it has ended already and has another pid."""

    index: int
    pid: int


@dataclass(frozen=True)
class Say:
    """Action: tell the user."""

    text: str


Action = Send | Kill | Say


class Supervisor:
    """State machine over the processes of a job. Times are seconds on any clock that only goes forward."""

    def __init__(self, specs: Sequence[ProcessSpec], grace: float, now: float, max_restarts: int = 0,
                 shrinks: bool = False, replicas: int = 0, elsewhere: bool = False) -> None:  # fmt: skip
        self.processes = [Process(spec, exit=None if spec.starts else 0) for spec in specs]
        self.started_at = now
        self.grace = grace
        self.max_restarts = max_restarts  # of each process; its agent counts them
        self.shrinks = shrinks  # the job goes on without workers that a signal ended
        self.replicas = replicas  # the next server goes on for one that a signal ended
        self._root_cause_wait = _ROOT_CAUSE_WAIT_ELSEWHERE if elsewhere else _ROOT_CAUSE_WAIT
        self.cause: Cause | None = None  # why the job was stopped: the first reason, never changed
        self._steps: deque[tuple[float, int]] = deque()  # signals still to send, and when
        self._failures: list[Process] = []  # before the stop, in order
        # When to stop what still runs: for servers and scheduler once all workers have ended, and for a root cause.
        self._stop_at: float | None = None
        self._abandon_at: float | None = None

    # Events

    def add(self, spec: ProcessSpec) -> int:
        """One more process is being started; returns its index."""
        self.processes.append(Process(spec, late=True))
        return len(self.processes) - 1

    def started(self, index: int, pid: int, host: str = "") -> None:
        """A process runs; it may have ended before. ``host``: where, if its agent has several hosts."""
        process = self.processes[index]
        process.host = host
        process.pid, process.exit, process.ended, process.record = pid, None, None, None

    def could_not_start(self, index: int, error: str, code: int, now: float) -> list[Action]:
        """A process does not run, and never did."""
        self.processes[index].error = error
        return self.exited(index, code, now)

    def died(self, index: int, code: int) -> list[Action]:
        """A signal ended a process, and its agent starts it again."""
        process = self.processes[index]
        place = process.where
        process.restarts += 1
        process.pid, process.lost = None, False
        if self.cause is not None:
            return []
        return [Say(f"{place} died: {signal_text(-code)}; restart {process.restarts} of {self.max_restarts}")]

    def lost(self, role: str, rank: int, pid: int) -> list[Action]:
        """The scheduler has given up a process that may still exist (SIGSTOP): it must end to be started again."""
        for index, process in enumerate(self.processes):
            if (process.spec.role, process.spec.rank, process.pid) != (role, rank, pid):
                continue
            if process.exit is None and not process.lost and self.cause is None:
                process.lost = True
                return [Say(f"{process.where} does not answer: killing it"), Kill(index, pid)]
        return []

    def exited(self, index: int, code: int, now: float, record: ErrorRecord | None = None) -> list[Action]:
        """A process ended."""
        process = self.processes[index]
        process.exit, process.ended, process.record = code, now, record
        if self.cause is not None:
            return []
        if process.late and record is not None and record.error.startswith("JoinError"):
            process.dropped = True
            return [Say(f"{process.where} did not join: {record.error}"), *self._at_end(now)]
        if self._can_do_without(process):
            process.dropped = True
            died = f"{process.where} died: {signal_text(-code)}"
            return [Say(f"{died}; {self._who_goes_on(process)}"), *self._at_end(now)]
        if code != 0:
            self._failures.append(process)
            if len(self._failures) == 1:
                self._stop_at = now + self._root_cause_wait
            if not process.is_consequence:
                return self._stop_failed(now)
        if self._failures and not self.running():
            return self._stop_failed(now)
        return self._at_end(now)

    def _at_end(self, now: float) -> list[Action]:
        """Give the rest time to end once all workers have."""
        workers = [p for p in self.processes if p.spec.role == "worker"]
        if self._stop_at is None and all(p.exit == 0 or p.dropped for p in workers):
            self._stop_at = now + self.grace
        return []

    def _can_do_without(self, process: Process) -> bool:
        """Whether a signal ended this process, and others go on for it or without it, or have done their work."""
        if process.exit is None or process.exit >= 0:
            return False
        if process.spec.role == "server" and self.replicas:
            return all(p.exit in (None, 0) for p in self._beside(process))
        if process.spec.role != "worker" or not self.shrinks:
            return False
        return any(p.exit in (None, 0) for p in self.processes if p.spec.role == "worker" and p is not process)

    def _beside(self, server: Process) -> list[Process]:
        """The server that has a replica of this one, and the one whose replica this one had: its next and its last."""
        servers = [p for p in self.processes if p.spec.role == "server"]
        at = servers.index(server)
        return [servers[(at + 1) % len(servers)], servers[at - 1]]

    def _who_goes_on(self, process: Process) -> str:
        if process.spec.role == "worker":
            return "the others go on without it"
        alone = list(dict.fromkeys(p.spec.label for p in self._beside(process)))
        return f"{alone[0]} goes on for it, and the job would not survive the death of {' or '.join(alone)}"

    def signalled(self, signum: int, now: float) -> list[Action]:
        """The launcher got a signal: the first stops everything, Ctrl-C during that kills at once."""
        if self.cause is None and self._failures:
            return self._stop_failed(now)  # it was to be stopped anyway: wait no longer
        if self.cause is None:
            name = signal.Signals(signum).name
            say = Say(f"{name}: stopping {_count(len(self.running()))}; press Ctrl-C to kill at once")
            forwarded = signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
            return [say, *self._stop(Interrupted(signum), forwarded, now)]
        if signum == signal.SIGINT and self.running():
            self._steps = deque([(now, signal.SIGKILL)])
            return [Say(f"killing {_count(len(self.running()))}"), *self.tick(now)]
        return []

    def host_lost(self, host: str, reason: str, now: float, needed: bool = False) -> list[Action]:
        """Nobody looks after the processes of a host any more: they have ended, or will by themselves.

        ``needed``: the job cannot go on without this host, whatever ran there.
        """
        lost = [process for process in self.running() if process.spec.host == host]
        for process in lost:
            process.exit, process.ended = -signal.SIGKILL, now
        if self.cause is not None:
            return []
        if needed or not all(map(self._can_do_without, lost)):
            started = tuple(process for process in lost if process.pid is not None)
            return self._stop(HostLost(host, reason, started), signal.SIGTERM, now)
        for process in lost:
            process.dropped = True
        names = ", ".join(process.spec.label for process in lost) or "it"
        return [Say(f"{host}: {reason}; the others go on without {names}"), *self._at_end(now)]

    def tick(self, now: float) -> list[Action]:
        """What is due at this time."""
        if self.finished(now):
            return []
        if self.cause is None and self._stop_at is not None and now >= self._stop_at:
            if self._failures:
                return self._stop_failed(now)
            return self._stop(Overstayed(self._alive()), signal.SIGTERM, now)
        actions: list[Action] = []
        while self._steps and now >= self._steps[0][0]:
            signum = self._steps.popleft()[1]
            actions.append(Send(signum))
            if signum == signal.SIGKILL:
                self._abandon_at = now + _ABANDON_AFTER
        return actions

    # State

    def running(self) -> list[Process]:
        """Those that have not ended, in launch order, also before they have started."""
        return [p for p in self.processes if p.exit is None]

    def finished(self, now: float) -> bool:
        """Whether there is nothing left to wait for."""
        return not self.running() or (self._abandon_at is not None and now >= self._abandon_at)

    def deadline(self) -> float | None:
        """When ``tick`` has something to do next."""
        if self._steps:
            return self._steps[0][0]
        return self._stop_at if self.cause is None else self._abandon_at

    def status(self) -> int:
        """The launcher's exit status."""
        match self.cause:
            case None:
                return 0
            case Failed(process):
                assert process.exit is not None
                return process.exit if process.exit > 0 else 128 - process.exit
            case Interrupted(signum):
                return 128 + signum
            case _:
                return 1

    def _alive(self) -> tuple[Process, ...]:
        return tuple(p for p in self.running() if p.pid is not None)

    def _stop_failed(self, now: float) -> list[Action]:
        """Stop what still runs, because of the first failure that no other one has caused."""
        root = self._root_cause()
        others = tuple(p for p in self._failures if p is not root)
        return self._stop(Failed(root, others, self._alive()), signal.SIGTERM, now)

    def _root_cause(self) -> Process:
        """The first failure that is nobody's consequence, else the one that was recorded first, else the first."""
        own = [p for p in self._failures if not p.is_consequence]
        recorded = sorted((p.record.time, i) for i, p in enumerate(self._failures) if p.record is not None)
        return own[0] if own else self._failures[recorded[0][1] if recorded else 0]

    def _stop(self, cause: Cause, signum: int, now: float) -> list[Action]:
        self.cause = cause
        ladder = [signum] if signum != signal.SIGTERM else []
        ladder += [signal.SIGTERM, signal.SIGKILL]
        self._steps = deque((now + step * self.grace, number) for step, number in enumerate(ladder))
        return self.tick(now)


def signal_text(signum: int) -> str:
    """``signal 9 (SIGKILL)``."""
    return f"signal {signum} ({signal_name(signum)})"


def signal_name(signum: int) -> str:
    """``SIGKILL``; ``signal 40`` for one without a name."""
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"


def _count(number: int) -> str:
    return f"{number} process" if number == 1 else f"{number} processes"

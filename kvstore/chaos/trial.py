"""One job that is done harm, and what became of it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .findings import find
from .garbage import throw
from .plan import LASTS, Injection
from .stores import OURS, Store
from .worker import STACKS, Job

START_WITHIN = 60.0  # seconds to the first acknowledged push of every worker
DIE_WITHIN = 30.0  # seconds for a job that kills itself to do so
_SUCCESSOR_WITHIN = 5.0  # seconds to wait for a process that is being started again when it shall be harmed
_STACKS_WITHIN = 1.0  # seconds for processes to write their stacks
_POLL = 0.005  # seconds between two looks at the ledger
_RECOVERED = 4  # pushes that were acknowledged since: more than were under way
_LAST_WORDS = 20  # lines
_DEATH = re.compile(
    r"^pslite: ((?:worker|server) \d+|scheduler) on .* died: .* (?:restart \d+ of \d+$|goes on for it)", re.MULTILINE
)


@dataclass
class Outcome:
    """What a trial showed. Times are seconds since the fault; of each fault, where it has one."""

    case: str
    seed: int
    store: str = OURS
    status: int = 0  # of the launcher
    pushes: int = 0  # acknowledged, in each key, of all workers
    lost: int = 0
    doubled: int = 0
    hung: bool = False  # the watchdog had to end it
    faults: int = 0  # that were done
    detected: list[float] = field(default_factory=list)  # the launcher says so, or somebody raised an error
    recovered: list[float] = field(default_factory=list)  # every worker goes on
    deaths: list[str] = field(default_factory=list)  # those that the job has survived, as the launcher calls them
    ended: float | None = None  # the launcher ended, if the job could not go on
    problems: list[str] = field(default_factory=list)
    stacks: str = ""  # the job's output when the watchdog fired, with the stacks of all processes

    @property
    def ok(self) -> bool:
        """Whether all promises were kept."""
        return not (self.lost or self.doubled or self.hung or self.problems)


@dataclass
class _Harm:
    """A fault that was done to a process. ``marks``: what of each worker was acknowledged by then."""

    fault: Injection
    pid: int
    at: float
    marks: dict[int, int]
    detected: float | None = None  # seconds; set once
    recovered: float | None = None


class Trial:
    """A running job. ``with Trial(...) as trial: outcome = trial.run(...)``; at the end nothing of it is left.

    ``within``: seconds from the last fault and the order to stop to the end of the job; then it hangs.
    """

    def __init__(self, job: Job, store: Store, within: float) -> None:
        self._job, self._store, self._within = job, store, within
        self._scratch = tempfile.TemporaryDirectory(prefix="pslite-chaos-")
        self._directory = Path(self._scratch.name)
        self._ledger = job.write(self._directory)
        self._output = self._directory / "output"
        self._harms: list[_Harm] = []
        with open(self._output, "wb") as output:
            self._launcher = subprocess.Popen(
                store.command(self._directory), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._ended = os.pidfd_open(self._launcher.pid)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._launcher.poll() is None:
            self._launcher.terminate()  # it ends all others
            self._launcher.wait()
        os.close(self._ended)
        self._scratch.cleanup()

    def run(
        self, case: str, seed: int, seconds: float, rounds: Sequence[Sequence[Injection]], must_survive: bool,
        deaths: int = 0,
    ) -> Outcome:  # fmt: skip
        """Let the job run, do it harm, and judge it. A round of faults takes so long, and until everybody goes on.

        ``deaths``: also until so many processes have died; the job may be one that kills itself.
        """
        outcome = Outcome(case, seed, self._store.name)
        self._until(time.monotonic() + START_WITHIN, self._all_have_pushed)
        if self._launcher.poll() is not None or not self._all_have_pushed():
            outcome.problems.append(self._words("the job did not start"))
            return outcome
        for faults in rounds:
            self._round(faults, seconds)
        self._until(time.monotonic() + DIE_WITHIN, lambda: len(self._deaths()) >= deaths)
        self._ledger.stop = True
        self._until(time.monotonic() + self._within)
        if self._launcher.poll() is None:
            self._watchdog(outcome)
        self._judge(outcome, must_survive or all(fault.survivable for faults in rounds for fault in faults))
        return outcome

    def _all_have_pushed(self) -> bool:
        return all(self._ledger.acked(rank).min() > 0 for rank in range(self._job.workers))

    # -- harm ---------------------------------------------------------------------------------------------------------

    def _deaths(self) -> list[str]:
        return _DEATH.findall(self._output.read_text(errors="replace"))

    def _round(self, faults: Sequence[Injection], seconds: float) -> None:
        begin = time.monotonic()
        for fault in faults:
            self._until(begin + fault.at)
            self._harm(fault)
        self._until(begin + seconds)
        self._until(time.monotonic() + self._within, lambda: all(harm.recovered is not None for harm in self._harms))

    def _harm(self, fault: Injection) -> None:
        """Harm the process that runs in this place; its predecessor may just have been killed."""
        marks = {rank: int(self._ledger.acked(rank).min()) for rank in range(self._job.workers)}
        signum = signal.SIGKILL if fault.how in ("kill", "restart") else signal.SIGSTOP
        note = self._directory / f"{fault.role}{fault.rank}.pid"
        self._until(time.monotonic() + _SUCCESSOR_WITHIN, lambda: _sent(int(note.read_text()), 0))
        pid, at = int(note.read_text()), time.monotonic()
        if fault.how == "garbage":
            throw(pid)
        if fault.how == "garbage" or _sent(pid, signum):
            self._harms.append(_Harm(fault, pid, at, marks))
            if fault.how in LASTS:
                self._until(at + LASTS[fault.how])
                _sent(pid, signal.SIGCONT)

    def _look(self) -> None:
        """Note who has noticed a fault, and who goes on after it."""
        now = time.monotonic()
        for harm in self._harms:
            if harm.recovered is None and all(
                self._ledger.acked(rank).min() >= mark + _RECOVERED for rank, mark in harm.marks.items()
            ):
                harm.recovered = now - harm.at
            if harm.detected is None and f"(pid {harm.pid})" in self._output.read_text(errors="replace"):
                harm.detected = now - harm.at

    def _until(self, deadline: float, condition: Callable[[], bool] = lambda: False) -> None:
        """Wait until the condition, the deadline or the launcher's end."""
        while not condition() and time.monotonic() < deadline:
            if select.select([self._ended], [], [], min(_POLL, max(0.0, deadline - time.monotonic())))[0]:
                return
            self._look()

    def _watchdog(self, outcome: Outcome) -> None:
        outcome.hung = True
        if self._store.name == OURS:  # a peer's launcher says who still ran
            for note in self._directory.glob("*.pid"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(note.read_text()), STACKS)
            self._until(time.monotonic() + _STACKS_WITHIN)
        self._launcher.terminate()
        self._launcher.wait()
        outcome.stacks = self._output.read_text(errors="replace")

    # -- judgement ----------------------------------------------------------------------------------------------------

    def _judge(self, outcome: Outcome, must_survive: bool) -> None:
        outcome.status = self._launcher.wait()
        outcome.faults = len(self._harms)
        outcome.deaths = self._deaths()
        outcome.detected = [harm.detected for harm in self._harms if harm.detected is not None]
        outcome.recovered = [harm.recovered for harm in self._harms if harm.recovered is not None]
        outcome.pushes = sum(int(self._ledger.acked(rank).min()) for rank in range(self._job.workers))
        found = find(self._directory, self._job, self._ledger)
        outcome.lost, outcome.doubled = found.lost, found.doubled
        outcome.problems += found.problems
        if outcome.status == 0:
            if must_survive and len(outcome.recovered) < outcome.faults:
                outcome.problems.append(self._words(f"not everybody went on within {self._within:g} s after a fault"))
            if found.finals != self._job.workers:
                outcome.problems.append(f"{found.finals} of {self._job.workers} workers came to the end")
        elif not outcome.hung:
            self._judge_end(outcome, must_survive)

    def _judge_end(self, outcome: Outcome, must_survive: bool) -> None:
        """The job has failed: it may do so if a process was lost, and must say which."""
        if must_survive or not self._harms:
            outcome.problems.append(self._words("the job failed"))
            return
        at = self._harms[0].at
        outcome.ended = time.monotonic() - at
        harmed = {harm.fault.rank for harm in self._harms if harm.fault.role == "worker"}
        failures = [self._ledger.failed_at(rank) for rank in range(self._job.workers) if rank not in harmed]
        outcome.detected = [*outcome.detected, *(time - at for time in failures if time is not None)][:1]
        output = self._output.read_text(errors="replace")
        named = (rf"{harm.fault.target} (on localhost )?\(pid {harm.pid}\b" for harm in self._harms)
        if not any(re.search(pattern, output) for pattern in named):
            outcome.problems.append(self._words("the report does not name who was harmed"))

    def _words(self, what: str) -> str:
        last = self._output.read_text(errors="replace").strip().splitlines()[-_LAST_WORDS:]
        return "\n  ".join([f"{what}:", *last])


def _sent(pid: int, signum: int) -> bool:
    """Whether there was such a process to be sent a signal."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True

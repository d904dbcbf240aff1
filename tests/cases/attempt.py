"""One call of a case, between the oracles that always hold: it ends, and nothing is left of it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from kvstore.chaos.worker import STACKS
from tests.harness import leaks

from .case import Case, Trial

_STACKS_WITHIN = 1.0  # seconds for other processes to write theirs
_WORDS = 6000  # characters of a story at most


class Hung(Exception):
    """The watchdog interrupted a trial."""


def attempt(case: Case, seed: int) -> list[Trial]:
    """Run a case with a seed. The directory of a trial that went wrong is kept, and named."""
    before = leaks.held()
    where = Path(tempfile.mkdtemp(prefix="case-"))
    (where / "work").mkdir()
    try:
        with _temporary_files_in(where / "tmp"), _watchdog(case.limit, where / "stacks"):
            found = case.run(seed, where / "work")
        trials = found if isinstance(found, list) else [found]
    except Hung:
        trials = [Trial(hung=True, wrong=[f"no end within {case.limit:g} s; all stacks:\n{_stacks(where)}"])]
    except Exception:
        trials = [Trial(wrong=[traceback.format_exc()[-_WORDS:]])]
    assert trials, f"{case.id} made no trial"
    left = [f"{r.kind} {r.description}" for r in leaks.leaks_since(before, leaks.PATIENCE)]
    leaks.end_processes(before)
    left += [str(path) for path in (where / "tmp").rglob("*")]
    if left:
        trials[-1].wrong.append("left behind: " + ", ".join(left))
    bad = [trial for trial in trials if not trial.ok]
    if bad:
        bad[-1].wrong.append(f"its files are in {where}")
    else:
        shutil.rmtree(where)
    return trials


@contextlib.contextmanager
def _temporary_files_in(place: Path) -> Iterator[None]:
    """Processes that a case starts, and this one, have their temporary files there: whose they are is known then."""
    place.mkdir()
    previous = os.environ.get("TMPDIR")
    os.environ["TMPDIR"], tempfile.tempdir = str(place), None
    try:
        yield
    finally:
        tempfile.tempdir = None
        if previous is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = previous


@contextlib.contextmanager
def _watchdog(seconds: float, stacks: Path) -> Iterator[None]:
    """Interrupt the main thread with ``Hung`` after so long, once all stacks are written."""

    def interrupt(*_: object) -> None:
        raise Hung

    def bark() -> None:
        for pid in _descendants(os.getpid()):
            if _catches(pid, STACKS):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, STACKS)
        with open(stacks, "w") as file:
            faulthandler.dump_traceback(file)
        over.wait(_STACKS_WITHIN)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    over = threading.Event()
    timer = threading.Timer(seconds, bark)
    previous = signal.signal(signal.SIGUSR1, interrupt)
    timer.start()
    try:
        yield
    finally:
        over.set()
        timer.cancel()
        timer.join()
        signal.signal(signal.SIGUSR1, previous)


def _stacks(where: Path) -> str:
    """Those of this process; others write theirs into their logs, which are among the trial's files."""
    return (where / "stacks").read_text()[-_WORDS:]


def _descendants(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [*children, *(each for child in children for each in _descendants(child))]


def _catches(pid: int, signum: int) -> bool:
    """Whether a process has a handler for a signal; without one it would end."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught >> (signum - 1) & 1)

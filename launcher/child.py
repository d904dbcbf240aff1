"""One process of an agent, its process group, and the pipes that carry its output."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

from .logs import LineSplitter

_CHUNK = 1 << 16
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_LAST_WORDS = 1 << 20  # bytes read from a pipe whose process has ended: others of its group may write for ever

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None

Lines = tuple[str, list[str]]  # stream name, lines


@dataclass
class Pipe:
    """The reading end of a process's stdout or stderr."""

    stream: str
    file: IO[bytes]
    splitter: LineSplitter = field(default_factory=LineSplitter)


def adopt_orphans() -> None:
    """Become the parent of whatever our processes leave behind, to see it end.

    Else init is, and in a container init is often a program that never reaps: a group of zombies looks alive for ever.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _begin(limits: tuple[int, int] | None) -> None:
    """Between fork and exec, which is safe in a process with one thread."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # else it would outlive an agent that is killed
    if limits is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _prctl(option: int, value: int) -> None:
    if _libc is not None:
        _libc.prctl(option, value, 0, 0, 0)


def reap_orphans(own: Collection[int | None]) -> None:
    """Reap all children that have ended, except our own, whose return codes matter."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)


class Child:
    """A process of the job. It leads a session and process group of its own. Used by the agent's one thread only."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.id: int = order["id"]
        self.role: str = order["role"]
        self.rank: int = order["rank"]
        self.host: str = order["host"]
        self.argv: list[str] = order["argv"]
        self.env: dict[str, str] = order["env"]
        self.pid: int | None = None
        # The return code, negative for a signal; 126 or 127 if it could not be started. 0 if it is not to run now.
        self.exit: int | None = None if order["starts"] else 0
        # How often it was started again, also by other agents; what is below is about the process that runs now.
        self.restarts: int = order.get("restarts", 0)
        self.group_lives = False  # the process, or others of its group, may be running
        self.pipes: dict[int, Pipe] = {}  # those still open, by descriptor
        self._popen: subprocess.Popen[bytes] | None = None

    def start(
        self,
        env: Mapping[str, str],
        descriptors: Sequence[int],
        limits: tuple[int, int] | None = None,
        cwd: str | None = None,
    ) -> None:
        """Start it with exactly this environment, inheriting these descriptors. Raises OSError.

        ``limits``: of its open descriptors, if they shall not be the agent's. ``cwd``: where, if not in the agent's.
        """
        variables = dict(env)
        if self.restarts:
            variables["PSLITE_RESTARTS"] = str(self.restarts)
        try:
            self._popen = subprocess.Popen(
                self.argv,
                env=variables,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                pass_fds=descriptors,
                preexec_fn=partial(_begin, limits),
            )
        except OSError as error:
            self.exit = 127 if isinstance(error, FileNotFoundError) else 126
            raise
        self.pid, self.group_lives = self._popen.pid, True
        for stream, file in (("stdout", self._popen.stdout), ("stderr", self._popen.stderr)):
            assert file is not None
            os.set_blocking(file.fileno(), False)
            self.pipes[file.fileno()] = Pipe(stream, file)

    def ended(self) -> int | None:
        """Its return code once it has ended and while ``exit`` does not say so yet, else None."""
        return self._popen.poll() if self._popen is not None and self.exit is None else None

    def read(self, descriptor: int) -> Lines | None:
        """What a pipe has now, None when it has nothing."""
        pipe = self.pipes[descriptor]
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return None
        if not data:
            del self.pipes[descriptor]
            pipe.file.close()
        return pipe.stream, pipe.splitter.feed(data, final=not data)

    def last_words(self) -> Iterator[Lines]:
        """All that the ended process has written and nobody has read."""
        for descriptor, pipe in list(self.pipes.items()):
            for _ in range(_LAST_WORDS // _CHUNK):
                lines = self.read(descriptor)
                if lines is None:
                    break
                yield lines
                if descriptor not in self.pipes:
                    break
            else:
                continue
            yield pipe.stream, pipe.splitter.feed(b"", final=True)

    def kill(self, pid: int, signum: int) -> None:
        """Signal this process itself, unless it has ended and the number belongs to another one."""
        if self.pid == pid and self.exit is None:
            os.kill(pid, signum)

    def clear_away(self) -> None:
        """Forget the process that has ended, or never ran, for another one is to take its place."""
        for pipe in self.pipes.values():
            pipe.file.close()
        self.pipes.clear()
        self.pid, self.group_lives, self.exit, self._popen = None, False, None, None

    def signal_group(self, signum: int) -> None:
        """Signal all of its group; a stopped process is woken to receive it."""
        if not self.group_lives or self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signum)
            if signum != signal.SIGKILL:
                os.killpg(self.pid, signal.SIGCONT)

    def forget_empty_group(self) -> None:
        """The number of an empty group may soon belong to a stranger."""
        if self.group_lives and self.exit is not None and self.pid is not None:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                self.group_lives = False

    def as_dict(self) -> dict[str, Any]:
        """Its line in processes.json, if its rank is its own."""
        place = {"role": self.role, "rank": self.rank, "host": self.host}
        return place | {"pid": self.pid, "exit": self.exit, "restarts": self.restarts}

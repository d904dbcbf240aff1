"""What a process does, as events of Chrome's trace format; ``kvstore.profiler`` starts and writes it.

(Duan and Sinclair, Trace Event Format, 2016.) Hooks look at ``Recorder.running``; while it is False they do no more.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from pslite import KVPairs, worker_id
from pslite.errors import ConfigError, ProtocolError

log = logging.getLogger("kvstore")

FILENAME = "profile.json"
LIMIT = 200_000  # events that a process keeps: at most about 100 MB, and a file of 40 MB
LOCAL = 0  # the process number of stores that are in no job

Args = dict[str, Any]


class Event(NamedTuple):
    """One event; times in nanoseconds. An arg that is None is not written."""

    phase: str  # X: complete, C: counter, b and e: begin and end of what goes on beside the thread's calls
    name: str
    process: int  # node id: a number that is another one in each process of the job
    thread: int
    time: int
    duration: int
    id: int  # of what begins and ends
    args: Args

    def to_json(self) -> str:
        shown: Args = {"ph": self.phase, "name": self.name, "cat": "kvstore", "pid": self.process, "tid": self.thread}
        shown["ts"] = self.time / 1000
        if self.phase == "X":
            shown["dur"] = self.duration / 1000
        elif self.phase in "be":
            shown["id"] = self.id
        args = {name: value for name, value in self.args.copy().items() if value is not None}
        return json.dumps(shown | {"args": args})


class Process(NamedTuple):
    """How the events of one process number are shown, and what is put before the name of their file."""

    name: str
    prefix: str | None  # None: with the others of this process


class Recorder:
    """Keeps the newest events, up to ``limit``, and writes them. ``clock`` gives nanoseconds. Thread-safe."""

    def __init__(self, clock: Callable[[], int], limit: int = LIMIT) -> None:
        self.clock = clock
        self._lock = threading.Lock()  # guards changes of all below
        self.running = False  # whether events are wanted: started and not paused; hooks read it without the lock
        self._filename = FILENAME
        self._started = self._paused = False
        self._used = False  # started since the last dump that was the end
        self._processes: dict[int, Process] = {}
        self._events: deque[Event] = deque(maxlen=limit)
        self._recorded = 0  # events so far, also those that were dropped

    # -- events -------------------------------------------------------------------------------------------------------

    def add(self, phase: str, name: str, process: int, thread: int, args: Args, time: int, end: int = 0, id: int = 0
            ) -> None:  # fmt: skip
        """Record an event; a complete one (X) from ``time`` to ``end``."""
        event = Event(phase, name, process, thread, time, end - time, id, args)
        with self._lock:
            self._events.append(event)
            self._recorded += 1

    def show(self, process: int, as_: Process) -> None:
        """Say how events of this process number are shown, until the dump that is the end."""
        with self._lock:
            self._processes[process] = as_

    # -- what users ask for -------------------------------------------------------------------------------------------

    def do(self, action: str, value: Any) -> list[str]:
        """Obey ``kvstore.profiler``; returns the files written. Raises ConfigError, or ProtocolError if malformed."""
        if action == "filename":
            checked = checked_filename(value)
            with self._lock:
                self._filename = checked
            return []
        if action not in ("run", "pause", "dump") or not isinstance(value, bool):
            raise ProtocolError(f"the profiler cannot do {action!r:.80}, {value!r:.80}")
        if action == "dump":
            return self._dump(finished=value)
        with self._lock:
            if action == "run":
                self._started, self._used = value, self._used or value
            else:
                self._paused = value
            self.running = self._started and not self._paused
        return []

    def _dump(self, finished: bool) -> list[str]:
        """Write what was recorded, and if it is ``finished`` stop and forget it."""
        with self._lock:
            files = self._files() if self._used else {}
            events, dropped = list(self._events), self._recorded - len(self._events)
            filename = Path(self._filename).absolute()
        if not files:
            log.info("profiler: nothing was recorded, nothing is written")
        paths = []
        for prefix, processes in files.items():
            path = filename.with_name(prefix + filename.name)
            _write(path, processes, (event for event in events if event.process in processes), dropped)
            paths.append(str(path))
        if finished:
            with self._lock:
                self._started = self.running = self._used = False
                self._events.clear()
                self._processes.clear()
                self._recorded = 0
        return paths

    def _files(self) -> dict[str, dict[int, str]]:
        """The names of processes, by number, by the prefix of their file; the lock is held."""
        processes = sorted(self._processes.items(), key=lambda item: (item[1].prefix is None, item[0]))
        files: dict[str, dict[int, str]] = {}
        for number, process in processes:
            prefix = next(iter(files), "") if process.prefix is None else process.prefix
            files.setdefault(prefix, {})[number] = process.name
        return files


def checked_filename(name: Any) -> str:
    """A name under which a file can be made here; raises ConfigError."""
    if not isinstance(name, str) or not name or "\0" in name or os.path.basename(name) in ("", ".", ".."):
        raise ConfigError(name="filename", value=f"{name!r:.200}", allowed="give the name of a file")
    directory = os.path.dirname(name)
    if directory and not os.path.isdir(directory):
        raise ConfigError(name="filename", value=f"{name:.200}", allowed="its directory must exist: create it first")
    return name


def _write(path: Path, processes: dict[int, str], events: Iterable[Event], dropped: int) -> None:
    """Write a trace, complete or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    other = {"clock": "CLOCK_MONOTONIC", "dropped_events": dropped}
    names = [
        json.dumps({"ph": "M", "name": "process_name", "pid": number, "tid": 0, "ts": 0, "args": {"name": name}})
        for number, name in processes.items()
    ]
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(f'{{"displayTimeUnit": "ms", "otherData": {json.dumps(other)}, "traceEvents": [\n')
            file.write(",\n".join(names))
            for event in events:
                file.write(",\n" + event.to_json())
            file.write("\n]}\n")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = f"it cannot be written: {error.strerror or error}"
        raise ConfigError(name="filename", value=str(path), allowed=reason) from error


# -- the calls of this process's workers ------------------------------------------------------------------------------

CALLS = Recorder(time.monotonic_ns)  # the clock of all processes of a host
_call = threading.local()  # .args: of the call that this thread is in
_ids = itertools.count(1)  # of requests


class _Store(Protocol):
    @property
    def type(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def num_workers(self) -> int: ...


_S = TypeVar("_S", bound=_Store)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def traced(method: Callable[Concatenate[_S, _P], _R]) -> Callable[Concatenate[_S, _P], _R]:
    """A store's method that is an event, with the keys and bytes of the requests that it makes."""

    @wraps(method)
    def call(store: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not CALLS.running:
            return method(store, *args, **kwargs)
        with _recorded(method.__name__, store):
            return method(store, *args, **kwargs)

    return call


@contextlib.contextmanager
def _recorded(name: str, store: _Store) -> Iterator[None]:
    args: Args = dict.fromkeys(("keys", "sent", "received", "error"))
    outer, _call.args = getattr(_call, "args", None), args
    process = _process_of(store)
    since = CALLS.clock()
    try:
        yield
    except BaseException as error:
        args["error"] = type(error).__name__
        raise
    finally:
        _call.args = outer
        CALLS.add("X", name, process, threading.get_native_id(), args, since, CALLS.clock())


def _process_of(store: _Store) -> int:
    if not store.type.startswith("dist"):
        CALLS.show(LOCAL, Process("local store", None))
        return LOCAL
    process = worker_id(store.rank)
    CALLS.show(process, Process(f"worker {store.rank}", f"worker{store.rank}_" if store.num_workers > 1 else ""))
    return process


Take = Callable[[KVPairs], Any]
Finish = Callable[[list[Any]], Any]


def requested(
    store: _Store, what: str, pairs: Sequence[KVPairs], take: Take | None, finish: Finish | None
) -> tuple[Take, Finish]:
    """Note a request that is about to be sent, and its end: returns ``take`` and ``finish`` with what notes that."""
    process, thread, id = _process_of(store), threading.get_native_id(), next(_ids)
    keys, sent = sum(len(each.keys) for each in pairs), sum(map(nbytes, pairs))
    received = 0
    call = getattr(_call, "args", None) or {}
    call["keys"] = (call.get("keys") or 0) + keys
    call["sent"] = (call.get("sent") or 0) + sent
    CALLS.add("b", what, process, thread, {"keys": keys, "sent": sent}, CALLS.clock(), id=id)

    def counted(part: KVPairs) -> Any:
        nonlocal received
        received += nbytes(part)
        return part.kept() if take is None else take(part)

    def noted(parts: list[Any]) -> Any:
        try:
            return None if finish is None else finish(parts)
        finally:
            call["received"] = (call.get("received") or 0) + received
            if CALLS.running:
                CALLS.add("e", what, process, thread, {"received": received}, CALLS.clock(), id=id)

    return counted, noted


def nbytes(pairs: KVPairs) -> int:
    """The bytes of all values."""
    return sum(array.nbytes for array in pairs.vals) if isinstance(pairs.vals, list) else pairs.vals.nbytes

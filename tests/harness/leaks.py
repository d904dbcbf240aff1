"""What a test left behind: processes, threads, ZeroMQ sockets and contexts, file descriptors.

``check`` compares what this process holds before and after. libzmq closes descriptors in a thread of its own and
processes take a moment to end, so what is left may still go within ``PATIENCE`` seconds.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import pytest
import zmq

from . import processes
from .waiting import holds_within

PATIENCE = 2.0  # seconds

_zmq_objects: dict[int, weakref.ref[Any]] = {}  # id -> every zmq.Socket and zmq.Context; any thread adds
_reported: set[Resource] = set()  # leaks that failed a test already and shall not fail its module and the session too


@dataclass(frozen=True)
class Resource:
    """Something that has to be given back."""

    kind: str
    identity: object
    description: str = field(compare=False)


def watch() -> None:
    """Start the book-keeping. Called once, before the first test."""
    processes.watch()
    _record(zmq.Socket)
    _record(zmq.Context)
    _start_pyzmq_collector()


def check(whose: str) -> Iterator[None]:
    """The body of a fixture: fails if what runs meanwhile leaves something behind."""
    before = held()
    yield
    left = leaks_since(before, PATIENCE)
    if left:
        _reported.update(left)
        end_processes(before)
        pytest.fail(f"{whose} left behind:\n" + "\n".join(f"  {r.kind} {r.description}" for r in left), pytrace=False)


def held() -> set[Resource]:
    """All that this process holds now."""
    return {*_processes(), *_threads(), *_zmq(), *_descriptors()}


def leaks_since(before: set[Resource], patience: float) -> list[Resource]:
    """What is held now, was not before, and does not go away within ``patience`` seconds.

    Shared memory is unmapped with the last array in it, which cycles of objects may hold until they are collected.
    """
    if not held() <= before | _reported:
        gc.collect()
    if holds_within(patience, lambda: held() <= before | _reported):
        return []
    return sorted(held() - before - _reported, key=lambda r: (r.kind, r.description))


def _processes() -> Iterator[Resource]:
    for pid in processes.children():
        yield Resource("process", pid, f"{pid}: {processes.command_line(pid)}")


def _threads() -> Iterator[Resource]:
    for thread in threading.enumerate():
        yield Resource("thread", thread, repr(thread))


def _zmq() -> Iterator[Resource]:
    for key, ref in list(_zmq_objects.items()):
        thing = ref()
        if thing is None or thing.closed:
            _zmq_objects.pop(key, None)
        else:
            yield Resource("ZeroMQ", key, repr(thing))


def _descriptors() -> Iterator[Resource]:
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of this very listing, or one that another thread closed
            continue
        yield Resource("file descriptor", (name, target), f"{name} -> {target}")


def _record(cls: type[Any]) -> None:
    make = cls.__init__

    @wraps(make)
    def recording_make(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if not self._shadow:  # a shadow is another's socket: its owner closes it
            _zmq_objects[id(self)] = weakref.ref(self)

    cls.__init__ = recording_make


def _start_pyzmq_collector() -> None:
    """Send one message without a copy: pyzmq then starts a thread and sockets that live as long as the process."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://leaks")
        other.connect("inproc://leaks")
        one.send(bytes(1 << 20), copy=False)
        other.recv()


def end_processes(before: set[Resource]) -> None:
    """Kill what was left, and what that had started in turn: children of a killed process move to this one."""

    def none_left() -> bool:
        left = [r.identity for r in _processes() if r not in before]
        for pid in left:
            assert isinstance(pid, int)
            processes.kill(pid)
        return not left

    holds_within(PATIENCE, none_left)

"""The clock, the queue of events, the one source of randomness, and the trace of what happened."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any
from zlib import crc32

from pslite.wire import Flag, Kind, Message, Op

KEPT = 60  # events that a failing run prints
MOST = 200_000  # events of a run, where some thousands are many


class Violation(Exception):
    """A promise was broken."""


class World:
    """Everything happens in ``run``, one event after the other, in the order of their times."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.events = 0  # handled so far
        self.digest = 0  # of all of them, with their times
        self.last: deque[tuple[float, str, Any]] = deque(maxlen=KEPT)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._tie = itertools.count()

    def at(self, when: float, job: Callable[[], None]) -> None:
        """Run a job at a time; of equal times, the first that was asked for first."""
        heapq.heappush(self._queue, (when, next(self._tie), job))

    def after(self, delay: float, job: Callable[[], None]) -> None:
        """Run a job in so many seconds."""
        heapq.heappush(self._queue, (self.now + delay, next(self._tie), job))

    def note(self, who: str, what: Any, data: bytes = b"") -> None:
        """Something happened: ``data``, or ``what`` itself, goes into the digest."""
        self.events += 1
        before = crc32(who.encode(), self.digest ^ (int(1e9 * self.now) & 0xFFFFFFFF))
        self.digest = crc32(data or str(what).encode(), before)
        self.last.append((self.now, who, what))

    def run(self, done: Callable[[], bool], limit: float) -> bool:
        """Let time pass until ``done()``; False if that was not within the limit, or nothing is left to happen."""
        queue, pop, left = self._queue, heapq.heappop, MOST
        while queue and not done():
            self.now, _, job = pop(queue)
            left -= 1
            if self.now > limit or not left:
                return False
            job()
        return done()

    def story(self) -> list[str]:
        """The last events, to be read."""
        return [f"{now:11.6f}  {who:12} {told(what)}" for now, who, what in self.last]


def told(what: Any) -> str:
    """An event as text."""
    if not isinstance(what, Message):
        return str(what)
    m = what
    op = f" {Op(m.op).name}" if m.op else ""
    flags = "".join(
        letter for letter, bit in (("+", Flag.PUSH), ("?", Flag.PULL), ("!", Flag.ERROR), ("R", Flag.REPLAY))
        if m.flags & bit
    )  # fmt: skip
    arrays = f" {[array.tolist() for array in m.arrays]}" if m.arrays else ""
    body = "" if m.body is None else f" {m.body!r:.120}"
    where = f"from {m.sender} ({m.incarnation & 0xFFFF:04x})"
    return f"{Kind(m.kind).name}{op}{flags} {where} seq={m.seq} floor={m.floor}{body}{arrays:.160}"

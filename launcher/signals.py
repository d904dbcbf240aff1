"""Signals as bytes in a pipe: handlers do nothing, the event loop reads what came."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any


class SignalPipe:
    """While entered, the given signals are queued for ``read()`` instead of acting. For the main thread only."""

    def __init__(self, signums: Iterable[int]) -> None:
        self._signums = tuple(signums)
        self._previous: dict[int, Any] = {}
        self._wakeup = -1
        self._reader = self._writer = -1

    def __enter__(self) -> SignalPipe:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # A function, not SIG_IGN: a started program would inherit "ignored", but a handler is reset by exec.
        self._previous = {signum: signal.signal(signum, _queue) for signum in self._signums}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reader)
        os.close(self._writer)

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._reader

    def read(self) -> list[int]:
        """The signals since the last call, in order."""
        try:
            return list(os.read(self._reader, 4096))
        except BlockingIOError:
            return []


def _queue(signum: int, frame: FrameType | None) -> None:
    """The interpreter has written the number to the wakeup descriptor already."""

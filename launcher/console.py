"""The launcher's stdout and stderr, written without ever blocking: a paused terminal must not hold up Ctrl-C."""

from __future__ import annotations

import os
import select
from collections import deque

STDOUT, STDERR = 1, 2


class Console:
    """Lines for two descriptors in one queue, so that their order is kept where both are the same terminal."""

    def __init__(self, stdout: int = STDOUT, stderr: int = STDERR) -> None:
        self._descriptors = {"stdout": stdout, "stderr": stderr}
        self._queue: deque[tuple[int, bytes]] = deque()
        self._closed: set[int] = set()  # descriptors that take nothing any more
        self.pending = 0  # bytes in the queue
        self.broken = False  # a reader went away (``| head``)

    def write(self, stream: str, line: str) -> None:
        """Queue one line, given without its end."""
        data = line.encode("utf-8", "surrogateescape") + b"\n"
        self._queue.append((self._descriptors[stream], data))
        self.pending += len(data)

    def flush(self) -> int | None:
        """Write what is taken now. Returns the descriptor to wait for, None if nothing is left."""
        while self._queue:
            descriptor, data = self._queue[0]
            if descriptor in self._closed:
                written = len(data)
            elif not _writable(descriptor):
                return descriptor
            else:
                written = self._write(descriptor, data)
            self.pending -= written
            if written < len(data):
                self._queue[0] = (descriptor, data[written:])
            else:
                self._queue.popleft()
        return None

    def drain(self, interrupt: int) -> None:
        """Write all that is left, however long that takes, unless ``interrupt`` becomes readable."""
        poller = select.poll()
        poller.register(interrupt, select.POLLIN)
        while (blocked := self.flush()) is not None:
            poller.register(blocked, select.POLLOUT)
            if any(descriptor == interrupt for descriptor, _ in poller.poll()):
                return
            poller.unregister(blocked)

    def _write(self, descriptor: int, data: bytes) -> int:
        try:
            # A pipe that polls as writable takes this much at once: one whole line, and no blocking.
            return os.write(descriptor, data[: select.PIPE_BUF])
        except BlockingIOError:
            return 0
        except OSError as error:  # nobody to tell: the reader or the terminal is gone
            self._closed.add(descriptor)
            self.broken |= isinstance(error, BrokenPipeError)
            return len(data)


def _writable(descriptor: int) -> bool:
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return bool(poller.poll(0))

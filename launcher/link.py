"""The launcher's end of an agent: the process it runs in or that carries it, orders to it, events from it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence

from .boot import SILENCE
from .hosts import Host
from .logs import LineSplitter
from .protocol import BEAT, Message, MessageReader, encode
from .pulse import Pulse

_CHUNK = 1 << 18
_LAST_WORDS = 5  # lines that were no agent's, kept to say why there is none
_ENDING = 6.0  # seconds for an agent elsewhere to end everything and itself, which takes it four


class AgentLink:
    """An agent started by ``argv``, and in a session of its own, so that Ctrl-C reaches the launcher only."""

    def __init__(self, host: Host, argv: Sequence[str]) -> None:
        self.host = host.name
        self.is_here = host.is_here
        self.greeting: Message | None = None  # its "hello"
        self.last_words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._name = os.path.basename(argv[0])  # of the carrier
        self._reader = MessageReader()
        # A carrier writes why it cannot; an agent here shares the launcher's stderr.
        stderr = None if host.is_here else subprocess.PIPE
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, bufsize=0, start_new_session=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._events = self._process.stdin, self._process.stdout
        os.set_blocking(self._orders.fileno(), False)
        self._out = bytearray()  # orders that the pipe has not taken yet
        self._ends_at: float | None = None  # when it must have ended, once it was told to
        self._pulse: Pulse | None = None  # of an agent elsewhere, from its greeting on
        self._beat_at = 0.0  # when to give the next beat
        self._errors = self._process.stderr
        self._splitter = LineSplitter()
        if self._errors is not None:
            os.set_blocking(self._errors.fileno(), False)

    def register(self, poller: select.poll, listening: bool) -> None:
        """Wait for all that may come, or may be sent."""
        if listening:
            poller.register(self._events, select.POLLIN)
        if self._out:
            poller.register(self._orders, select.POLLOUT)
        if self._errors is not None:
            poller.register(self._errors, select.POLLIN)

    # -- events -------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when ``receive`` has something to say."""
        return self._events.fileno()

    @property
    def errors(self) -> int | None:
        """The descriptor that ``read_errors`` reads, if there is one."""
        return None if self._errors is None else self._errors.fileno()

    def receive(self) -> list[Message] | None:
        """The events that have come; None when the agent is gone."""
        data = os.read(self._events.fileno(), _CHUNK)
        if not data:
            return None
        events = self._reader.feed(data)
        self.last_words.extend(line for line in self._reader.noise if line.strip())
        self._reader.noise.clear()
        if self._pulse is not None:
            self._pulse.heard(time.monotonic())
        return [event for event in events if event["event"] != "beat"]

    def greeted(self, greeting: Message) -> None:
        """The agent runs."""
        self.greeting = greeting
        if not self.is_here:
            self._pulse = Pulse(SILENCE, time.monotonic())

    def read_errors(self) -> list[str]:
        """Lines that a carrier has written to stderr; all that are left, when it has closed it."""
        if self._errors is None:
            return []
        lines = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._errors.fileno(), _CHUNK):
                lines += self._splitter.feed(data)
            lines += self._splitter.feed(b"", final=True)
            self._errors.close()
            self._errors = None
        lines = [line for line in lines if line.strip()]
        self.last_words.extend(lines)
        return lines

    # -- orders -------------------------------------------------------------------------------------------------------

    @property
    def orders(self) -> int | None:
        """The descriptor that ``flush`` writes to, if there is one."""
        return None if self._orders.closed else self._orders.fileno()

    def send(self, order: Message) -> None:
        """Give an order. That the agent is gone shows in ``receive``."""
        if not self._orders.closed:
            self._out += encode(order)
            self.flush()

    def flush(self) -> None:
        """Write what the pipe takes."""
        try:
            while self._out:
                del self._out[: os.write(self._orders.fileno(), self._out)]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._out.clear()
        if self._ends_at is not None:
            self._orders.close()

    def end_orders(self) -> None:
        """Tell the agent to end everything and itself; one that was never heard of is not waited for."""
        if self._ends_at is not None:
            return
        self._ends_at = time.monotonic() + _ENDING
        self.flush()
        if self.greeting is None:
            self.kill()

    # -- the connection -----------------------------------------------------------------------------------------------

    def check(self, now: float, listening: bool) -> str | None:
        """To be called several times a second: gives beats; why the agent is lost, or None. A carrier that is lost, or
        does not end in time, is killed.

        ``listening``: its events are being read.
        """
        if self._pulse is None:
            return None
        if now >= self._beat_at and self._ends_at is None:
            self._beat_at = now + BEAT
            self.send({"do": "beat"})
        if not listening:
            self._pulse.heard(now)
        silent = self._pulse.is_lost(now)
        if silent or (self._ends_at is not None and now > self._ends_at):
            self.kill()
            return f"nothing was heard of it for {SILENCE:g} s" if silent else "it did not end in time"
        return None

    def kill(self) -> None:
        """End the carrier."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def why(self, code: int) -> str:
        """Why there is no agent, by the exit code of its carrier and what that wrote."""
        how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        words = f": {self.last_words[-1]}" if self.last_words else ""
        return f"{self._name} {how}{words}"

    def close(self) -> int:
        """Wait for the agent, which has closed its events, and return its exit code."""
        self._orders.close()
        self._events.close()
        code = self._process.wait()
        self.read_errors()
        if self._errors is not None:
            self._errors.close()
        return code

"""The launcher's end of an agent: the process it runs in, orders to it, events from it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence

from .protocol import Message, MessageReader, encode

_CHUNK = 1 << 18


class AgentLink:
    """An agent started by ``argv``, and in a session of its own, so that Ctrl-C reaches the launcher only."""

    def __init__(self, host: str, argv: Sequence[str]) -> None:
        self.host = host
        self._reader = MessageReader()
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self._events = self._process.stdin, self._process.stdout

    def fileno(self) -> int:
        """Readable when ``receive`` has something to say."""
        return self._events.fileno()

    def receive(self) -> list[Message] | None:
        """The events that have come; None when the agent is gone."""
        data = os.read(self._events.fileno(), _CHUNK)
        return self._reader.feed(data) if data else None

    def send(self, order: Message) -> None:
        """Give an order. That the agent is gone shows in ``receive``."""
        data = memoryview(encode(order))
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._orders.fileno(), data) :]

    def end_orders(self) -> None:
        """Tell the agent to end everything and itself."""
        self._orders.close()

    def close(self) -> int:
        """Wait for the agent, which has closed its events, and return its exit code."""
        self._orders.close()
        self._events.close()
        return self._process.wait()

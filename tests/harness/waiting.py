"""Waiting for what another thread or process does, without a fixed sleep."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_never = threading.Event()  # never set: its wait() is a pause that does not count as time.sleep


def holds_within(seconds: float, condition: Callable[[], object]) -> bool:
    """Whether the condition becomes true in time; asks at least once, then every 5 ms."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        _never.wait(0.005)
    return True


def wait_until(condition: Callable[[], object], timeout: float = 10.0, what: str = "the condition") -> None:
    """Return when the condition is true; AssertionError after ``timeout`` seconds."""
    assert holds_within(timeout, condition), f"{what} did not become true within {timeout} s"

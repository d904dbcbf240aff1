"""A clock for state machines that take the time as an argument."""

from __future__ import annotations


class FakeClock:
    """Called like ``time.monotonic``; time passes only in ``advance``."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Let time pass; returns the new time."""
        assert seconds >= 0, f"a monotonic clock cannot go back by {-seconds} s"
        self.now += seconds
        return self.now

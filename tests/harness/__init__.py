"""What tests share: a clock that is set by hand, waiting without sleeping, and the leak check."""

from __future__ import annotations

from .clock import FakeClock
from .processes import is_running
from .waiting import wait_until

__all__ = ["FakeClock", "is_running", "wait_until"]

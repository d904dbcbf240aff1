"""Named points of the code where a test has a process die, or anything else happen.

``PS_FAILPOINTS=NAME=kill@N`` kills a process with SIGKILL when it comes to the point the N-th time (``kill``: the
first), several joined by commas. A process that was started again has none. Points: ``before_apply``,
``kept_before_flip``, ``kept_after_flip``, ``after_apply_before_ack``, ``after_ack``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .errors import ConfigError

POINTS = ("before_apply", "kept_before_flip", "kept_after_flip", "after_apply_before_ack", "after_ack")

_armed: Mapping[str, Callable[[], None]] | None = None  # by name; set before anything is served, or by a test


def failpoint(name: str) -> None:
    """The process has come to this point."""
    if _armed is not None and name in _armed:
        _armed[name]()


def arm(actions: Mapping[str, Callable[[], None]] | None) -> None:
    """Run these from now on, each whenever its point is reached; None: nothing any more."""
    global _armed
    _armed = actions


def parse(text: str, die: Callable[[], None]) -> dict[str, Callable[[], None]]:
    """The actions that ``PS_FAILPOINTS`` asks for; raises ConfigError. ``die``: ends this process as kill -9 does."""
    actions: dict[str, Callable[[], None]] = {}
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\w+)=kill(?:@([1-9][0-9]*))?", part)
        if found is None or found[1] not in POINTS:
            allowed = f"give NAME=kill or NAME=kill@N; names are {', '.join(POINTS)}"
            raise ConfigError(name="PS_FAILPOINTS", value=part, allowed=allowed)
        actions[found[1]] = _AtLast(int(found[2] or 1), die)
    return actions


class _AtLast:
    """Acts at a point's N-th time."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self._left, self._action = number, action

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self._action()

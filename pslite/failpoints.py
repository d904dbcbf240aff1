"""Named points of the code where a test has a process die, or anything else happen.

``PS_FAILPOINTS=NAME=kill@N`` kills a process with SIGKILL when it comes to the point the N-th time (``kill``: the
first), several joined by commas. ``server:NAME=kill`` concerns servers only, ``server1:NAME=kill`` the one of rank 1.
After a semicolon come those of the process that is started in its place, and so on; without, a successor has none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .errors import ConfigError

POINTS = {
    "after_recv": "any process: something came in, and nothing was done about it",
    "before_send": "any process: a message is about to leave",
    "before_apply": "server: a round, or an asynchronous push, is complete",
    "kept_before_flip": "server: records of a commit are written, and do not count yet",
    "kept_after_flip": "server: they count",
    "before_replicate": "server: applied, and about to be sent to the backup",
    "after_replicate": "server: the backup has it",
    "after_apply_before_ack": "server: applied, and nobody was answered",
    "after_ack": "server: all were answered",
    "checkpoint_begun": "server: the file of a part, or a manifest, is open, aside",
    "checkpoint_before_sync": "server: all of it is written",
    "checkpoint_before_rename": "server: it is durable, and still aside",
    "checkpoint_after_rename": "server: it has its name",
    "checkpoint_before_manifest": "server 0: all parts are there",
    "checkpoint_before_prune": "server 0: the checkpoint is there, with those that it makes superfluous",
    "epoch_change": "scheduler: the next member is about to be told of an end, or of a successor",
    "before_adopt": "server process: told to serve a rank, and nothing was done about it",
    "before_release": "server process: told to serve a rank no more, likewise",
    "after_release": "server process: the rank is free, and the agent was not told",
    "join_reply": "scheduler: the next JOIN is about to be answered",
    "barrier_release": "scheduler: the next at a barrier is about to be let through",
}

_PART = re.compile(r"(?:(worker|server|scheduler)([0-9]*):)?(\w+)=kill(?:@([1-9][0-9]*))?")

_armed: Mapping[str, Callable[[], None]] | None = None  # by name; set before anything is served, or by a test


def failpoint(name: str) -> None:
    """The process has come to this point."""
    if _armed is not None and name in _armed:
        _armed[name]()


def arm(actions: Mapping[str, Callable[[], None]] | None) -> None:
    """Run these from now on, each whenever its point is reached; None: nothing any more."""
    global _armed
    _armed = actions


def parse(text: str, role: str, rank: int | None, life: int, die: Callable[[], None]) -> dict[str, Callable[[], None]]:
    """What ``PS_FAILPOINTS`` asks for of a process that was started ``life`` times before; raises ConfigError.

    ``die``: ends this process as kill -9 does.
    """
    actions: dict[str, Callable[[], None]] = {}
    for number, points in enumerate(text.split(";")):
        for part in filter(None, points.split(",")):
            found = _PART.fullmatch(part)
            if found is None or found[3] not in POINTS:
                allowed = f"give NAME=kill, NAME=kill@N or server0:NAME=kill@N; names are {', '.join(POINTS)}"
                raise ConfigError(name="PS_FAILPOINTS", value=part, allowed=allowed)
            if number == life and found[1] in (None, role) and found[2] in (None, "", str(rank)):
                actions[found[3]] = _AtLast(int(found[4] or 1), die)
    return actions


class _AtLast:
    """Acts at a point's N-th time."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self._left, self._action = number, action

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self._action()

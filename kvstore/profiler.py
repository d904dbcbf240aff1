"""MXNet's ``profiler`` functions: what workers and servers do, written for chrome://tracing or ui.perfetto.dev.

``profile_process='worker'`` is this process, ``'server'`` all servers of the job. Only rank 0, or the lowest rank
that is left, reaches the servers, by
the dist store that this thread created last, or else this process; on the other ranks, and where there is none,
nothing happens. What a server refuses is raised there.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Any

from pslite.config import role_in_job
from pslite.errors import ClosedError, ConfigError

from .tracing import CALLS, FILENAME

if TYPE_CHECKING:
    from .member import Member

log = logging.getLogger("kvstore")

WITHOUT_EFFECT = (  # options of MXNet's set_config: there are no operators here, and a trace is written by dump only
    "profile_all",
    "profile_symbolic",
    "profile_imperative",
    "profile_memory",
    "profile_api",
    "continuous_dump",
    "dump_period",
    "aggregate_stats",
    "gpu_memory_profile_filename_prefix",
)

_latest: weakref.ref[Member] | None = None  # the dist store that any thread created last
_own = threading.local()  # .latest: the one that this thread created


def set_config(**kwargs: Any) -> None:
    """Set ``filename`` ('profile.json'), whose directory must exist; ``profile_process`` is 'worker' or 'server'.

    Server r writes ``rank<r>_<filename>``, and of several workers the one of rank r ``worker<r>_<filename>``. MXNet's
    other options are accepted and do nothing. Raises ConfigError.
    """
    process = kwargs.pop("profile_process", "worker")
    filename = kwargs.pop("filename", FILENAME)
    for name, value in kwargs.items():
        if name not in WITHOUT_EFFECT:
            allowed = f"options are filename and profile_process; without effect: {', '.join(WITHOUT_EFFECT)}"
            raise ConfigError(name=name, value=f"{value!r:.80}", allowed=allowed)
    if kwargs:
        log.info("profiler: without effect here: %s", ", ".join(kwargs))
    _do(process, "filename", filename)


def set_state(state: str = "stop", profile_process: str = "worker") -> None:
    """Start (``'run'``) or stop (``'stop'``) recording. Raises ConfigError."""
    if state not in ("run", "stop"):
        raise ConfigError(name="state", value=f"{state!r:.80}", allowed="states are 'run' and 'stop'")
    _do(profile_process, "run", state == "run")


def start(profile_process: str = "worker") -> None:
    """Start recording."""
    set_state("run", profile_process)


def stop(profile_process: str = "worker") -> None:
    """Stop recording; what was recorded stays, for ``dump``."""
    set_state("stop", profile_process)


def pause(profile_process: str = "worker") -> None:
    """Record nothing until ``resume``, also if ``start`` comes in between."""
    _do(profile_process, "pause", True)


def resume(profile_process: str = "worker") -> None:
    """End ``pause``."""
    _do(profile_process, "pause", False)


def dump(finished: bool = True, profile_process: str = "worker") -> list[str]:
    """Write what was recorded since ``start``; returns the files' paths, each on the host of the process that wrote it.

    ``finished=False`` goes on: the next dump writes everything again, and what came after. Else recording stops and is
    forgotten. Without ``start`` nothing is written. Raises ConfigError for a file that cannot be written.
    """
    return _do(profile_process, "dump", bool(finished))


def opened(store: Member) -> None:
    """A dist store was created: from now on it is the way to the servers."""
    global _latest
    _latest = _own.latest = weakref.ref(store)


def _do(process: str, action: str, value: Any) -> list[str]:
    if process not in ("worker", "server"):
        raise ConfigError(name="profile_process", value=f"{process!r:.80}", allowed="give 'worker' or 'server'")
    if process == "worker":
        return CALLS.do(action, value)
    reference = getattr(_own, "latest", _latest)
    if reference is None:
        if role_in_job():
            remedy = "the servers cannot be reached yet: create the dist store first"
            raise ConfigError(name="profile_process", value=process, allowed=remedy)
        log.info("profiler: profile_process='server' has no effect: there is no dist store")
        return []
    store = reference()
    if store is None:
        raise ClosedError(what="the store")
    if not store._team.leads:
        return []
    return [path for paths in store._ask_servers("profile", [action, value]) for path in paths]

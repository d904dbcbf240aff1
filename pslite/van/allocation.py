"""What a process may have of memory, and how the C library's allocator goes about it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import resource
from pathlib import Path

from pslite.errors import NoMemoryError

MIB = 1 << 20
THREADS = 8  # that a van, its ZeroMQ, pyzmq and who serves with it may start

# malloc.h: M_MMAP_THRESHOLD, whose largest value this is; M_TRIM_THRESHOLD; M_TOP_PAD
_KEEP = ((-3, 32 * MIB), (-1, 1024 * MIB), (-2, 64 * MIB))
_ONE_ARENA = ((-8, 1),)  # M_ARENA_MAX


def has_room(nbytes: int) -> bool:
    """Whether this process can have so much more memory now."""
    try:
        mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (OSError, OverflowError, ValueError):
        return False
    return True


def is_limited() -> bool:
    """Whether an allocation can fail at all: by ``ulimit -v``, or where the kernel promises no more than there is."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY or _overcommits_never()


def _overcommits_never() -> bool:
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False


def prepare(large_frames: bool) -> None:
    """Set the allocator up for a van, before ZeroMQ starts its threads; ``large_frames``: whether many will come.

    Raises NoMemoryError if there is no room for the threads: ZeroMQ would end the process.
    """
    if is_limited():
        _set(_ONE_ARENA)  # else each thread reserves 64 MiB
        stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
        needed = THREADS * (8 * MIB if stack == resource.RLIM_INFINITY else stack)
        if not has_room(needed):
            raise NoMemoryError(node="this process", what=f"its threads, which need {needed // MIB} MiB")
    elif large_frames:
        # Else each frame takes new pages, which the kernel has to clear. Measured with 102 MB by TCP: workers take 0.55
        # instead of 0.75 CPU seconds per GB.
        _set(_KEEP)


@functools.cache
def _set(options: tuple[tuple[int, int], ...]) -> None:
    """For glibc only."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options:
            mallopt(option, value)

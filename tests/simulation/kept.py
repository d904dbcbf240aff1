"""Memory of servers that outlives them: the real arena and journal, kept as the launcher's agent does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from unittest import mock

from pslite.van.shared import arena, journal
from pslite.van.shared.kept import KeptArena

_TORN = 512  # bytes that a process may have written in vain, at each place


class Keeper:
    """What the agent keeps of one server, by name. Changed by the server's process that lives."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def keep(self, name: str, fd: int) -> None:
        self.drop(name)
        self._fds[name] = os.dup(fd)

    def drop(self, name: str) -> None:
        if name in self._fds:
            os.close(self._fds.pop(name))

    def take(self) -> dict[str, int]:
        """For the next process."""
        return {name: os.dup(fd) for name, fd in self._fds.items()}

    def close(self) -> None:
        for name in list(self._fds):
            self.drop(name)


class Memory(KeptArena):
    """What a server's process has of it. It knows nothing of the job, which arrays would keep from being collected."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__(lambda: 0.0, keeper, keeper.take())

    def end(self, rng: Random) -> None:
        """The process dies while it writes: anything may be behind the journal's end, and where no array is."""
        own = self._journal
        if own._size:
            end = own._words[1]
            size = min(rng.randrange(_TORN), own._size - end)
            own._memory[end : end + size] = rng.randbytes(size)
        for segment in self._segments.values():
            for offset, nbytes in segment.extents.free():
                size = min(_TORN, nbytes)
                segment.memory[offset : offset + size] = rng.randbytes(size)
        self.close()


@contextmanager
def small() -> Iterator[None]:
    """Segments are as small as can be: journals are full soon, and begun anew."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(journal, "SMALLEST", 4096))
        stack.enter_context(mock.patch.object(arena, "SEGMENT", arena.GRAIN))
        yield

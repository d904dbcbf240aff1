"""How a running job gets more workers or servers, or fewer. Pure: no process, file or clock."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UsageError
from .spec import JobSpec, ProcessSpec
from .supervise import Process, Supervisor


@dataclass(frozen=True)
class Change:
    """What to do for a request, and what to say of it."""

    text: str
    start: tuple[ProcessSpec, ...] = ()
    end: tuple[Process, ...] = ()  # by ``signum``
    signum: int = signal.SIGTERM
    servers: int | None = None  # so many processes shall serve; what to say is known when their ranks have moved


def change(spec: JobSpec, supervisor: Supervisor, request: dict[str, Any]) -> Change:
    """What a request comes to; raises UsageError if it cannot be carried out."""
    match request:
        case {"workers": int(count)}:
            return _workers(spec, supervisor, count)
        case {"servers": int(count)}:
            if not spec.shards:
                raise UsageError("servers can be moved in jobs with --max-restarts, and without --replicas")
            return Change("", servers=count)
    raise UsageError(f"the launcher does not know the request {request!r:.100}")


def _workers(spec: JobSpec, supervisor: Supervisor, count: int) -> Change:
    elastic, workers = spec.elastic, [p for p in supervisor.processes if p.spec.role == "worker"]
    if elastic is None:
        raise UsageError("workers may join jobs that were started with --elastic MIN:MAX")
    if not elastic.least <= count <= elastic.most:
        raise UsageError(f"{count} workers: --elastic {elastic.least}:{elastic.most} allows no such number")
    if supervisor.cause is not None or any(p.exit == 0 and not p.ending for p in workers):
        raise UsageError("the job is ending")
    running = [p for p in workers if p.exit is None and not p.ending]
    if count < len(running):
        return _fewer(spec, running[count:], count)
    ranks = range(len(workers), len(workers) + count - len(running))  # none is given twice
    if spec.keys and ranks and ranks[-1] >= elastic.most:
        raise UsageError(f"there are keys for ranks below {elastic.most} only: lost workers cannot be replaced")
    return Change(_text(count, "starting", [f"worker {rank}" for rank in ranks]), tuple(map(elastic.worker, ranks)))


def _fewer(spec: JobSpec, workers: Sequence[Process], count: int) -> Change:
    if not spec.shrinks:
        raise UsageError("to do without a worker a job must be started with --on-worker-lost shrink")
    return Change(_text(count, "ending", [process.spec.label for process in workers]), end=tuple(workers))


def moved_text(servers: int, moved: Sequence[tuple[int, int, int, float]], error: str) -> str:
    """What to say of ranks (shards) that have moved: the rank, from, to, and seconds that it was not served."""
    names = [f"shard {rank} from server {a} to {b} ({seconds:.2f} s)" for rank, a, b, seconds in moved]
    if error:
        return error + (f"; moved were {', '.join(names)}" if names else "")
    count = f"{servers} server" + "s" * (servers > 1)
    return f"{count}: moved {', '.join(names)}" if names else f"{count} already"


def _text(count: int, what: str, names: Sequence[str]) -> str:
    return f"{count} workers" + (f": {what} {', '.join(names)}" if names else " already")

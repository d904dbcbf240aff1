"""LocalCluster: a whole job in threads of this process, for notebooks and tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pslite import InprocCluster, Postoffice, run_all
from pslite.errors import ConfigError

from .base import KVStore
from .factory import DIST_TYPES, checked_options, checked_type
from .p3 import check_type, open_store
from .server.hosting import serve

T = TypeVar("T")


class LocalCluster:
    """``LocalCluster(workers=2, servers=2, type='dist_sync').run(fn)`` calls ``fn(kv)`` in one thread per worker.

    The job speaks the real protocol over the in-process van. ``run`` returns the results by rank; if workers raise,
    the others are told as in a real job and the first error is raised here. Options are those of ``create``.
    """

    def __init__(self, workers: int = 1, servers: int = 1, type: str = "dist_sync", **options: Any) -> None:
        self._type = checked_type(type)
        if self._type not in DIST_TYPES:
            raise ConfigError(
                name="type", value=type, allowed="a LocalCluster is distributed: " + ", ".join(DIST_TYPES)
            )
        for name, count in (("workers", workers), ("servers", servers)):
            if not (isinstance(count, int) and count >= 1):
                raise ConfigError(name=name, value=f"{count!r:.80}", allowed="give a number, at least 1")
        check_type(self._type, bool(options.get("p3")))
        self._shape = {"workers": workers, "servers": servers, **checked_options(options)}

    def run(self, fn: Callable[[KVStore], T]) -> list[T]:
        """Start the job, call ``fn(kv)`` on every worker, end the job; each call is a new job."""
        cluster = InprocCluster(**self._shape)
        raised: list[BaseException] = []  # by fn, before the other workers hear of it
        jobs: list[Callable[[], Any]] = [
            lambda o=o: self._work(o, fn, raised)  # type: ignore[misc]
            for o in cluster.workers
        ]
        jobs += [lambda o=o: serve(o) for o in (cluster.scheduler, *cluster.servers)]  # type: ignore[misc]
        try:
            results: list[T] = run_all(jobs)[: len(cluster.workers)]
        except BaseException as error:
            if raised and error is not raised[0]:
                raise raised[0] from None
            raise
        finally:
            cluster.close()
        return results

    def _work(self, office: Postoffice, fn: Callable[[KVStore], T], raised: list[BaseException]) -> T:
        office.start()
        with open_store(self._type, office) as kv:
            try:
                return fn(kv)
            except BaseException as error:
                raised.append(error)
                raise

    def __repr__(self) -> str:
        return f"<LocalCluster {self._type} workers={self._shape['workers']} servers={self._shape['servers']}>"

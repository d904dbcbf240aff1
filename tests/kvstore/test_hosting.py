"""A server process takes over the server of another one, with what it had."""

from __future__ import annotations

from typing import Any

import pytest

from kvstore.server.replica import Replica
from kvstore.server.replicating import Replicated
from kvstore.server.service import Service
from kvstore.server.store import Store
from pslite.memory import PLAIN

from .hosted_jobs import job, prepare, result, same, work


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> dict[int, Store]:
    """The store of each server, by rank; the newest one."""
    found: dict[int, Store] = {}
    made = Service.__init__

    def noted(self: Service, office: Any, *rest: Any) -> None:
        made(self, office, *rest)
        found[office.rank] = self.store

    monkeypatch.setattr(Service, "__init__", noted)
    return found


def copy_of(store: Store) -> Replica:
    """What a store has now."""
    replica = Replica()
    store.tell(Replicated(PLAIN, lambda _, change: replica.take(change)))
    store.stop_telling()
    return replica


@pytest.mark.parametrize(
    ("type", "rule"),
    [("dist_sync", None), ("dist_sync", "test"), ("dist_sync", "sgd"), ("dist_sync", "adam"), ("dist_async", "test")],
)
def test_a_job_goes_on_with_servers_that_others_have_taken_over(
    type: str, rule: str | None, stores: dict[int, Store]
) -> None:
    def run(*dead: int) -> list[Any]:
        with job(type, max_restarts=1) as jobs:
            jobs.all(lambda kv: prepare(kv, rule))
            jobs.all(lambda kv: work(kv, range(3)))
            jobs.all(result)
            for rank in dead:
                contents = copy_of(stores[rank])
                jobs.cluster.kill(jobs.cluster.servers[rank])
                jobs.hosts[1 - rank].adopt(rank, contents)
            jobs.all(lambda kv: work(kv, range(3, 6)))
            first, second = jobs.all(result)
            same(first, second)
            jobs.end(*dead)
            return list(first)

    expected = run()
    for rank in (0, 1):
        same(run(rank), expected)

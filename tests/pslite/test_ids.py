"""Node ids and groups, as in ps-lite."""

from __future__ import annotations

import pytest

from pslite import ALL, SCHEDULER, SERVER_GROUP, WORKER_GROUP, ids


@pytest.mark.parametrize("rank", [0, 1, 7, 1000])
def test_ids_of_ranks(rank: int) -> None:
    assert ids.server_id(rank) == 8 + 2 * rank == ids.node_id("server", rank)
    assert ids.worker_id(rank) == 9 + 2 * rank == ids.node_id("worker", rank)
    for role in ("server", "worker"):
        node = ids.node_id(role, rank)
        assert (ids.role_of(node), ids.rank_of(node), ids.name_of(node)) == (role, rank, f"{role} {rank}")


def test_the_scheduler() -> None:
    assert ids.node_id("scheduler", 0) == SCHEDULER == 1
    assert (ids.role_of(1), ids.rank_of(1), ids.name_of(1)) == ("scheduler", 0, "scheduler")


@pytest.mark.parametrize(
    ("group", "nodes"),
    [
        (0, []),
        (SCHEDULER, [1]),
        (SERVER_GROUP, [8, 10]),
        (WORKER_GROUP, [9, 11, 13]),
        (SCHEDULER + SERVER_GROUP, [1, 8, 10]),
        (SERVER_GROUP + WORKER_GROUP, [8, 10, 9, 11, 13]),
        (ALL, [1, 8, 10, 9, 11, 13]),
        (10, [10]),
    ],
)
def test_members_of_groups(group: int, nodes: list[int]) -> None:
    assert ids.members(group, num_servers=2, num_workers=3) == nodes

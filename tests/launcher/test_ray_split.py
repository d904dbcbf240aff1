from __future__ import annotations

from typing import Any

import pytest

from launcher.carriers.ray_split import keys_of, summary

KEYS = ("scheduler", "server-0", "server-1", "server-2", "worker-0", "worker-1", "worker-2")


def order(replicas: int) -> dict[str, Any]:
    """Of a job that a third worker may join."""
    places = [("scheduler", 0), *(("server", rank) for rank in range(3)), ("worker", 0), ("worker", 1)]
    keys = {f"{name}.key": f"secret of {name}" for name in KEYS} | {"roster.json": "public keys"}
    return {"keys": keys, "replicas": replicas, "processes": [{"role": role, "rank": rank} for role, rank in places]}


@pytest.mark.parametrize(
    ("number", "replicas", "has"),
    [
        (0, 0, {"scheduler", "worker-2"}),
        (1, 0, {"server-0"}),
        (1, 1, {"server-0", "server-2"}),
        (3, 1, {"server-2", "server-1"}),
        (5, 1, {"worker-1"}),
    ],
)
def test_a_process_gets_the_keys_that_it_needs(number: int, replicas: int, has: set[str]) -> None:
    job = order(replicas)
    found = keys_of(job["processes"][number], job)
    assert found == {name: job["keys"][name] for name in ["roster.json", *(f"{name}.key" for name in has)]}


def look(host: str, problem: str = "", **versions: str) -> dict[str, Any]:
    found = {"python": "3.11.7", "numpy": "2.0"} | versions
    return {"event": "looked", "host": host, "versions": found, "problem": problem}


def test_the_problems_of_all_nodes_are_told_once() -> None:
    no_directory = "there is no directory /data"
    looks = [look("a"), look("b", no_directory), look("b", no_directory), look("c", numpy="1.9"), look("d", numpy="")]
    assert summary(looks) == looks[0] | {
        "problem": f"b: {no_directory}; numpy on c: 1.9; on a: 2.0; numpy on d: not installed; on a: 2.0"
    }


def test_nodes_that_agree_have_no_problem() -> None:
    assert summary([look("a"), look("b")])["problem"] == ""

"""Which process runs on which host."""

from __future__ import annotations

import pytest

from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import parse
from launcher.placement import Placement
from launcher.spec import JobSpec, plan

RACK = (Host("a"), Host("b"), Host("c"))


def planned(*arguments: str, hosts: tuple[Host, ...] = RACK, **environ: str) -> JobSpec:
    return plan(parse([*arguments, "python", "t.py"], "x"), hosts, environ, here="/here")


def places(spec: JobSpec) -> dict[str, str]:
    return {process.label: process.host for process in spec.processes}


def test_without_slots_workers_are_spread_evenly_and_servers_go_round() -> None:
    found = places(planned("-H", "x", "-n", "4", "-s", "2"))
    assert found["scheduler"] == "a"
    assert [found[f"worker {rank}"] for rank in range(4)] == ["a", "a", "b", "c"]
    assert [found[f"server {rank}"] for rank in range(2)] == ["a", "b"]


def test_slots_are_filled_in_order() -> None:
    hosts = (Host("a", 1), Host("b", 3), Host("c"))
    found = places(planned("-H", "x", "-n", "5", "-s", "1", hosts=hosts))
    assert [found[f"worker {rank}"] for rank in range(5)] == ["a", "b", "b", "b", "c"]
    with pytest.raises(UsageError, match=r"-n 6: the hosts have 5 slots \(a 1, b 3, c 1\)"):
        planned("-H", "x", "-n", "6", hosts=hosts)


def test_servers_where_one_wants_them() -> None:
    found = places(planned("-H", "x", "-n", "1", "-s", "3", "--servers-on", "c,b"))
    assert [found[f"server {rank}"] for rank in range(3)] == ["c", "b", "c"]
    with pytest.raises(UsageError, match="'d' is not among the hosts: a, b, c"):
        planned("-H", "x", "-n", "1", "--servers-on", "c,d")


def test_the_local_rank_counts_the_workers_of_a_host() -> None:
    spec = planned("-H", "x", "-n", "4", "-s", "1", hosts=RACK[:2])
    assert [p.env["LOCAL_RANK"] for p in spec.processes if p.role == "worker"] == ["0", "1", "0", "1"]


def test_a_newcomer_goes_where_there_are_fewest() -> None:
    placement = Placement(RACK, 4)
    assert [placement.worker(rank) for rank in range(4, 7)] == ["b", "c", "a"]
    assert placement.local_rank(4) == 1


def test_several_hosts_talk_by_tcp_with_keys() -> None:
    spec = planned("-H", "x", "-n", "1")
    assert (spec.transport, spec.keys) == ("tcp", True)
    assert not planned("-H", "x", "-n", "1", PSLITE_SECURITY="none").keys
    here = planned("-H", "x", "-n", "1", hosts=(Host("localhost"),))
    assert (here.transport, here.keys) == ("ipc", False)


def test_other_hosts_get_settings_and_nothing_else_of_the_environment() -> None:
    environ = {"PSLITE_TIMEOUT": "9", "DMLC_ROLE": "worker", "DMLC_INTERFACE": "eth0", "SECRET": "x", "PS_VERBOSE": "1"}
    env = planned("-H", "x", "-n", "1", **environ).processes[0].env
    assert (env["PSLITE_TIMEOUT"], env["PS_VERBOSE"], env["DMLC_ROLE"]) == ("9", "1", "scheduler")
    assert not {"DMLC_INTERFACE", "SECRET"} & env.keys()
    assert planned("-H", "x", "-n", "1", "--interface", "eth1").processes[0].env["DMLC_INTERFACE"] == "eth1"


def test_servers_say_the_address_that_the_hostfile_has_for_their_host() -> None:
    spec = planned("-H", "x", "-n", "2", "-s", "2", hosts=(Host("a"), Host("b", address="192.0.2.2")))
    assert [p.env.get("DMLC_NODE_HOST") for p in spec.processes if p.role == "server"] == [None, "192.0.2.2"]


def test_the_directory_is_the_same_everywhere_unless_told() -> None:
    mixed = (Host("localhost"), Host("b"))
    assert planned("-H", "x", "-n", "1", hosts=mixed).cwd == {"b": "/here"}
    assert planned("-H", "x", "-n", "1", "--sync-dst-dir", "/job", hosts=mixed).cwd == {"b": "/job"}
    assert planned("-H", "x", "-n", "1", "--chdir", "/data", hosts=mixed).cwd == {"localhost": "/data", "b": "/data"}


def test_shards_move_on_one_host_only() -> None:
    moving = ("-H", "x", "-n", "1", "-s", "2", "--max-restarts", "1", "--max-servers", "3")
    with pytest.raises(UsageError, match="--max-servers 3: servers move on one host only"):
        planned(*moving)
    assert planned(*moving, "--servers-on", "b").shards == 3


def test_replicas_on_one_host_do_not_survive_it_and_it_is_said() -> None:
    spec = planned("-H", "x", "-n", "1", "-s", "2", "--replicas", "1", "--servers-on", "b")
    assert any("all servers are on one host, and so are their replicas" in notice for notice in spec.notices)
    assert not any("replicas" in n for n in planned("-H", "x", "-n", "1", "-s", "2", "--replicas", "1").notices)

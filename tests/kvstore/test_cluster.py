"""LocalCluster, create() and serve()."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.factory import DIST_TYPES, LOCAL_TYPES
from pslite.errors import ConfigError, NotInClusterError, ProtocolError, WorkerFailed


def test_results_come_by_rank() -> None:
    assert kvstore.LocalCluster(workers=3, servers=2).run(lambda kv: kv.rank * 10) == [0, 10, 20]


def test_every_run_is_a_new_job() -> None:
    def work(kv: kvstore.KVStore) -> list[float]:
        kv.init("w", np.zeros(1))
        kv.push("w", np.ones(1))
        result: list[float] = kv.pull("w").tolist()
        return result

    cluster = kvstore.LocalCluster(workers=2)
    assert cluster.run(work) == cluster.run(work) == [[2.0], [2.0]]


@pytest.mark.parametrize("name", DIST_TYPES)
def test_every_dist_type(name: str) -> None:
    def work(kv: kvstore.KVStore) -> tuple[str, float]:
        kv.init("w", np.zeros(2))
        kv.push("w", [np.ones(2), np.ones(2)])
        kv.barrier()
        return kv.type, kv.pull("w")[0]

    total = 2.0 if "async" in name else 4.0
    assert kvstore.LocalCluster(workers=2, type=name.upper()).run(work) == [(name, total)] * 2


def test_the_first_error_of_a_worker_is_raised_not_what_the_others_heard_of_it() -> None:
    def work(kv: kvstore.KVStore) -> None:
        if kv.rank == 1:
            raise ZeroDivisionError("mine")
        kv.barrier()

    for _ in range(20):
        with pytest.raises(ZeroDivisionError, match="mine"):
            kvstore.LocalCluster(workers=3).run(work)


def test_the_others_are_told_who_failed() -> None:
    heard: dict[int, str] = {}

    def work(kv: kvstore.KVStore) -> None:
        if kv.rank == 1:
            raise ZeroDivisionError("mine")
        try:
            kv.barrier()
        except WorkerFailed as error:
            heard[kv.rank] = str(error)
            raise

    with pytest.raises(ZeroDivisionError):
        kvstore.LocalCluster(workers=3).run(work)
    assert sorted(heard) == [0, 2]
    assert all("worker 1" in text and "ZeroDivisionError: mine" in text for text in heard.values())


def test_repr() -> None:
    assert repr(kvstore.LocalCluster(workers=3, servers=2)) == "<LocalCluster dist_sync workers=3 servers=2>"
    assert kvstore.LocalCluster(workers=2).run(repr) == [f"<KVStore 'dist_sync' rank={r} of 2>" for r in (0, 1)]
    assert repr(kvstore.create()) == "<KVStore 'local' rank=0 of 1>"


def test_options_reach_the_stores() -> None:
    def work(kv: Any) -> tuple[float, float, int]:
        config = kv._office.config
        return config.timeout, config.start_timeout, config.bigarray_bound

    assert kvstore.LocalCluster(timeout=7, start_timeout=8, bigarray_bound=9).run(work) == [(7, 8, 9)]


@pytest.mark.parametrize("make", [kvstore.LocalCluster, lambda **o: kvstore.create("dist_sync", **o)])
@pytest.mark.parametrize(
    "option",
    [{"time_out": 3}, {"timeout": -1}, {"timeout": "3"}, {"start_timeout": []}, {"bigarray_bound": 0},
     {"bigarray_bound": 1.5}, {"bigarray_bound": None}, {"timeout": float("nan")}],
    ids=str,
)  # fmt: skip
def test_options_are_checked(make: Any, option: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_ROLE", "worker")
    monkeypatch.setenv("DMLC_PS_ROOT_URI", "127.0.0.1")
    monkeypatch.setenv("DMLC_PS_ROOT_PORT", "9")
    with pytest.raises(ConfigError, match=next(iter(option))):
        make(**option)


@pytest.mark.parametrize("options", [{"workers": 0}, {"servers": 0}, {"workers": -1}, {"workers": "2"}], ids=str)
def test_a_cluster_has_one_of_each_at_least(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        kvstore.LocalCluster(**options)


@pytest.mark.parametrize("name", LOCAL_TYPES)
def test_a_cluster_is_distributed(name: str) -> None:
    with pytest.raises(ConfigError, match="dist_sync"):
        kvstore.LocalCluster(type=name)


# -- create and serve -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LOCAL_TYPES, "LOCAL", "Device"])
def test_local_types(name: str) -> None:
    kv = kvstore.create(name)
    assert (kv.type, kv.rank, kv.num_workers) == (name.lower(), 0, 1)
    kv.barrier()
    kv._barrier()
    kv.send_command_to_servers(1, "x")
    kv._send_command_to_servers(1, "x")


@pytest.mark.parametrize("name", ["", "foo", "dist_synk", "nccl", "horovod", None, 3, b"local"])
def test_unknown_types_are_errors_that_list_the_known(name: Any) -> None:
    with pytest.raises(ConfigError, match="local, device, dist, dist_sync, dist_async"):
        kvstore.create(name)
    with pytest.raises(ConfigError, match="local, device, dist, dist_sync, dist_async"):
        kvstore.LocalCluster(type=name)


def test_local_types_take_no_options() -> None:
    with pytest.raises(ConfigError, match="'local' takes no options"):
        kvstore.create("local", timeout=3)


@pytest.mark.parametrize("name", DIST_TYPES)
def test_outside_a_cluster_the_error_shows_the_launch_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DMLC_ROLE", raising=False)
    with pytest.raises(NotInClusterError, match=r"pslite-launch -n 2 -s 1 python train\.py"):
        kvstore.create(name)


@pytest.mark.parametrize("role", ["server", "scheduler"])
@pytest.mark.parametrize("name", LOCAL_TYPES)
def test_a_server_has_no_local_store(name: str, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_ROLE", role)
    with pytest.raises(ConfigError, match=rf"this process is a {role}.*kvstore\.serve\(\)"):
        kvstore.create(name)


@pytest.mark.parametrize("role", [None, "worker"])
def test_serve_does_nothing_in_a_worker(role: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DMLC_ROLE", raising=False)
    if role:
        monkeypatch.setenv("DMLC_ROLE", role)
    before = threading.active_count()
    kvstore.serve()
    assert threading.active_count() == before


@pytest.mark.processes
def test_importing_has_no_side_effects() -> None:
    """Not even in a server: no thread, no hook, no file descriptor, and it comes back."""
    code = (
        "import os, sys, threading; import numpy, zmq, msgpack, logging\n"
        "def seen(): return sys.excepthook, os.listdir('/proc/self/fd'), threading.enumerate(), logging.root.handlers\n"
        "before = seen()\n"
        "import kvstore\n"
        "assert before == seen(), (before, seen())"
    )
    for role in ("server", "worker"):
        subprocess.run([sys.executable, "-c", code], env={"DMLC_ROLE": role}, check=True, timeout=30)


def test_is_capable() -> None:
    for kv in [kvstore.create()]:
        assert kv.is_capable("optimizer") and kv.is_capable("OPTIMIZER")
        for word in ("sparse", "", None):
            with pytest.raises(ConfigError, match="optimizer"):
                kv.is_capable(word)  # type: ignore[arg-type]


def test_commands_are_acknowledged_and_ignored() -> None:
    def work(kv: kvstore.KVStore) -> float:
        for head, body in [(0, ""), (77, {"a": [1, 2]}), (-1, None)]:
            kv.send_command_to_servers(head, body)
        kv.init("w", np.ones(1))
        result: float = kv.pull("w")[0]
        return result

    assert kvstore.LocalCluster(workers=2, servers=2).run(work) == [1.0, 1.0]


@pytest.mark.parametrize(("head", "body"), [(1, object()), (1, np.ones(2)), ("a", "x"), (1.5, ""), (1, 2**70)])
def test_a_command_that_cannot_travel_is_an_error_and_the_store_lives_on(head: Any, body: Any) -> None:
    def work(kv: kvstore.KVStore) -> None:
        with pytest.raises((ConfigError, ProtocolError)):
            kv.send_command_to_servers(head, body)
        kv.send_command_to_servers(1, "x")

    kvstore.LocalCluster(timeout=5).run(work)

"""Profiling of workers and servers: what is in the traces, how it is switched, and what goes wrong."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore import profiler, rules
from kvstore.commands import DATA, SAVE
from kvstore.server.profiling import Profile
from kvstore.server.store import Store
from kvstore.tracing import CALLS, LIMIT, Process, Recorder, requested
from kvstore.value import Value
from pslite import KVPairs
from pslite.errors import ClosedError, ConfigError, PeerLost, ProtocolError, RemoteError, WorkerLeft
from tests.harness import FakeClock
from tests.kvstore.driving import Driver
from tests.system.jobs import ROOT, launch

KV = kvstore.KVStore
Trace = list[dict[str, Any]]
SERVER, WORKER = "server", "worker"
W, V = np.ones(4, np.float32), np.ones((2, 8), np.float32)  # 16 and 64 bytes


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No store was created in this process; files go to a directory of their own; nothing is left recorded."""
    monkeypatch.setattr(profiler, "_latest", None)
    monkeypatch.setattr(profiler, "_own", threading.local())
    monkeypatch.delenv("DMLC_ROLE", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    monkeypatch.chdir(tmp_path)
    profiler.dump()
    profiler.resume()
    profiler.set_config()


def cluster(workers: int = 1, servers: int = 1, **options: Any) -> kvstore.LocalCluster:
    return kvstore.LocalCluster(workers=workers, servers=servers, **options)


def read(path: str | Path) -> Trace:
    events: Trace = json.loads(Path(path).read_text())["traceEvents"]
    return events


def named(trace: Trace, phase: str, name: str = "") -> Trace:
    return [e for e in trace if e["ph"] == phase and name in e["name"]]


def files() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def profiled(kv: KV, calls: Callable[[], Any], process: str = SERVER) -> Trace:
    """The trace of the calls of the only worker, by the only server or by itself."""
    profiler.start(process)
    calls()
    [path] = profiler.dump(profile_process=process)
    return read(path)


# -- servers ----------------------------------------------------------------------------------------------------------


def test_a_server_tells_of_each_request_and_round() -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(kvstore.optimizer.create("sgd"))

        def calls() -> None:
            kv.init(["w", "v"], [W, V])
            kv.push("w", W)
            kv.pushpull("v", V, out=V.copy())
            kv.pull(["w", "v"])

        trace = profiled(kv, calls)
        assert named(trace, "M") == [
            {"ph": "M", "name": "process_name", "pid": 8, "tid": 0, "ts": 0, "args": {"name": "server 0"}}
        ]
        requests = [e for e in named(trace, "X") if e["name"] != "round"]
        assert [(e["name"], e["args"].pop("waited_us") > 0) for e in requests] == [
            ("init", True), ("push", True), ("pushpull", True), ("pull", True)
        ]  # fmt: skip
        assert [e["args"] for e in requests] == [
            {"worker": 0, "keys": 2, "received": 80, "sent": 0},
            {"worker": 0, "keys": 1, "received": 16, "sent": 0},
            {"worker": 0, "keys": 1, "received": 64, "sent": 64},
            {"worker": 0, "keys": 2, "received": 0, "sent": 80},
        ]
        rule = rules.OptimizerRule(kvstore.optimizer.create("sgd")).what
        assert [e["args"] for e in named(trace, "X", "round")] == [
            {"key": "w", "contributions": 1, "rule": rule},
            {"key": "v", "contributions": 1, "rule": rule},
        ]
        assert {e["pid"] for e in trace} == {8}

    cluster().run(work)


def test_a_round_lies_within_the_request_that_completed_it() -> None:
    def work(kv: KV) -> None:
        kv.init("w", W)
        trace = profiled(kv, lambda: kv.push("w", W).wait())
        [push], [applied] = named(trace, "X", "push"), named(trace, "X", "round")
        assert push["ts"] <= applied["ts"]
        assert applied["ts"] + applied["dur"] <= push["ts"] + push["dur"] + 0.001  # rounding of microseconds
        assert applied["args"]["rule"] == "assign"

    cluster().run(work)


def test_what_waits_for_another_worker_is_counted() -> None:
    pushed = threading.Event()

    def work(kv: KV) -> None:
        kv.init("w", W)
        if kv.rank == 0:
            profiler.start(SERVER)
            handle = kv.push("w", W)
            profiler.pause(SERVER)  # the server has the push now
            profiler.resume(SERVER)
            pushed.set()
            handle.wait()
            [path] = profiler.dump(profile_process=SERVER)
            trace = read(path)
            assert [e["args"] for e in named(trace, "C", "parked contributions")] == [{"parked": 1}, {"parked": 0}]
            assert [e["args"]["contributions"] for e in named(trace, "X", "round")] == [2]
            first, second = named(trace, "X", "push")
            assert (first["args"]["worker"], second["args"]["worker"]) == (0, 1)
            assert first["args"]["waited_us"] > second["ts"] - first["ts"] > 0
        else:
            assert pushed.wait(10)
            kv.push("w", W).wait()

    cluster(workers=2).run(work)


def test_parts_of_a_checkpoint_are_requests_too() -> None:
    def work(kv: KV) -> None:
        kv.init("w", W)
        trace = profiled(kv, lambda: kv.save("all.ckpt"))
        assert [e["args"] for e in named(trace, "X", "checkpoint")] == [{"worker": 0, "keys": 1, "received": 0}]

    cluster().run(work)


@pytest.mark.parametrize("cmd, raises", [(SAVE, False), (DATA, True)])
def test_no_request_is_kept_that_has_its_answer(cmd: int, raises: bool) -> None:
    def handle(*_: object) -> None:
        if raises:
            raise ProtocolError("malformed")

    profile = Profile(8)
    profile.on_control(["run", True])
    meta: Any = Mock(cmd=cmd, push=False, pull=True, sender=9)
    pairs = KVPairs(np.zeros(1, np.uint64), [])
    with pytest.raises(ProtocolError) if raises else nullcontext():
        profile.requests(handle, Store(1))(meta, pairs, None)  # type: ignore[arg-type]
    assert not profile._open
    assert profile.on_control(["dump", True]) and files() == ["rank0_profile.json"]


def test_each_server_writes_a_file_of_its_own_and_only_rank_0_asks_for_it() -> None:
    def work(kv: KV) -> list[str]:
        kv.init([1, 2, 3], [W] * 3)
        profiler.set_config(filename="all.json", profile_process=SERVER)
        profiler.start(SERVER)
        kv.barrier()
        kv.push([1, 2, 3], [W] * 3).wait()
        kv.barrier()
        return profiler.dump(profile_process=SERVER)

    here = Path().absolute()
    paths = cluster(workers=2, servers=3).run(work)
    assert paths == [[str(here / f"rank{rank}_all.json") for rank in range(3)], []]
    assert files() == ["rank0_all.json", "rank1_all.json", "rank2_all.json"]
    assert [len(named(read(path), "X", "push")) for path in paths[0]] == [2, 2, 2]


def test_an_absolute_name_keeps_its_directory(weird_tmp_path: Path) -> None:
    def work(kv: KV) -> list[str]:
        profiler.set_config(filename=str(weird_tmp_path / "t.json"), profile_process=SERVER)
        profiler.start(SERVER)
        kv.init("ü\n\"'", W)
        return profiler.dump(profile_process=SERVER)

    [[path]] = cluster().run(work)
    assert Path(path) == weird_tmp_path / "rank0_t.json"
    assert len(named(read(path), "X", "init")) == 1


@given(st.lists(st.tuples(st.sampled_from(["push", "pull", "pushpull", "bad", "none", "leave"]), st.integers(0, 2))))
def test_the_counter_is_what_the_queues_hold(steps: list[tuple[str, int]]) -> None:
    driver = Driver(workers=3)
    driver.init(a=W, b=W)
    store = driver.store

    def refuse(*_: object) -> None:
        raise ValueError("user code")

    for number, (what, rank) in enumerate(steps):
        store._apply_to = refuse if number % 4 == 3 else Value.apply
        if what == "pull":
            driver.pull(rank, "a", "b")
        elif what == "leave":
            store.on_peer_ended(rank, WorkerLeft(node=f"worker {rank}") if rank else PeerLost(node="worker 0"))
        elif what == "bad":
            driver.push(rank, a=W, b=np.ones(3, np.float32))
        elif what == "none":
            driver.pull(rank)
        else:
            driver.push(rank, pull=what == "pushpull", b=W, a=W)
        held = [queue for entry in store._entries.values() for queue in entry.queues.values()]
        assert store.parked == sum(len(queue) for queue in held)


def test_an_error_is_part_of_the_event() -> None:
    @kvstore.updater("profiled-boom")
    def boom(key: Any, received: Any, stored: Any) -> None:
        raise ValueError("boom")

    def work(kv: KV) -> None:
        kv.set_updater(boom)
        kv.init("w", W)

        def fails() -> None:
            with pytest.raises(RemoteError, match="boom"):
                kv.push("w", W).wait()

        trace = profiled(kv, fails)
        assert [e["args"]["error"] for e in named(trace, "X", "push")] == ["ValueError"]
        assert [e["args"]["error"] for e in named(trace, "X", "round")] == ["ValueError"]
        assert named(trace, "C")[-1]["args"] == {"parked": 0}

    try:
        cluster().run(work)
    finally:
        del rules._UPDATERS["profiled-boom"]


# -- workers ----------------------------------------------------------------------------------------------------------


def test_a_worker_tells_of_each_call_and_what_it_sent() -> None:
    def work(kv: KV) -> None:
        def calls() -> None:
            kv.init(["w", "v"], [W, V])
            kv.push("w", [W, W])
            kv.pushpull("v", V, out=V.copy())
            kv.pull(["w", "v"])
            kv.barrier()

        trace = profiled(kv, calls, WORKER)
        assert [(e["name"], e["args"]) for e in named(trace, "X")] == [
            ("init", {"keys": 2, "sent": 80, "received": 0}),
            ("push", {"keys": 1, "sent": 16, "received": 0}),
            ("pushpull", {"keys": 1, "sent": 64, "received": 64}),
            ("pull", {"keys": 2, "sent": 0, "received": 80}),
            ("barrier", {}),
        ]
        assert {e["pid"] for e in trace} == {9}

    cluster().run(work)


def test_a_push_lasts_until_its_acknowledgement() -> None:
    def work(kv: KV) -> None:
        kv.init("w", W)

        def calls() -> None:
            kv.push("w", W).wait()
            assert kv.pull("w", wait=False).wait().tolist() == [1] * 4

        trace = profiled(kv, calls, WORKER)
        begun, ended = named(trace, "b"), named(trace, "e")
        assert [e["name"] for e in begun] == [e["name"] for e in ended] == ["push of 'w'", "pull of 'w'"]
        assert [e["id"] for e in begun] == [e["id"] for e in ended]
        [call] = named(trace, "X", "push")
        assert call["ts"] <= begun[0]["ts"] <= ended[0]["ts"]
        assert ended[0]["args"] == {"received": 0} and ended[1]["args"] == {"received": 16}

    cluster().run(work)


def test_rows_are_counted_as_what_travels() -> None:
    def work(kv: KV) -> None:
        def calls() -> None:
            kv.init("r", kvstore.sparse.zeros((4, 2), "float32"))
            kv.push("r", rows).wait()
            kv.row_sparse_pull("r", row_ids=np.array([1, 2]))

        rows = kvstore.sparse.row_sparse_array((np.ones((2, 2), np.float32), [1, 3]), (4, 2))
        trace = profiled(kv, calls, WORKER)
        assert [e["name"] for e in named(trace, "X")] == ["init", "push", "row_sparse_pull"]
        _, push, pull = (e["args"] for e in named(trace, "X"))
        assert push["sent"] == 2 * 8 + 2 * 2 * 4  # ids and rows
        assert (pull["sent"], pull["received"]) == (2 * 8, 2 * 2 * 4)

    cluster().run(work)


def test_a_request_counts_for_no_call_but_its_own() -> None:
    def work(kv: KV) -> None:
        kv.init("w", W)
        kv.save("all.ckpt")

    def load(kv: KV) -> None:
        trace = profiled(kv, lambda: (kv.barrier(), kv.load("all.ckpt")), WORKER)
        assert [(e["name"], e["args"]) for e in named(trace, "X")] == [("barrier", {})]
        assert [e["name"] for e in named(trace, "b")] == ["init of 'w'"]

    cluster().run(work)
    cluster().run(load)


def test_what_ends_after_stop_has_no_end() -> None:
    kv = kvstore.create("local")
    profiler.start()
    _, ended = requested(kv, "push of 'w'", [KVPairs(np.zeros(1, np.uint64), [W])], None, None)
    profiler.stop()
    assert ended([]) is None
    trace = read(*profiler.dump())
    assert len(named(trace, "b")) == 1 and not named(trace, "e")


def test_the_error_of_a_call_is_in_its_event() -> None:
    def work(kv: KV) -> None:
        def calls() -> None:
            with pytest.raises(kvstore.UnknownKeyError):
                kv.push("nothing", W)

        [call] = named(profiled(kv, calls, WORKER), "X")
        assert call["args"] == {"error": "UnknownKeyError"}

    cluster().run(work)


def test_each_of_several_workers_has_a_file() -> None:
    def work(kv: KV) -> None:
        kv.init("w", W)
        kv.push("w", W).wait()

    profiler.start()
    cluster(workers=2).run(work)
    kvstore.create("local").init("x", W)
    paths = profiler.dump()
    assert [Path(path).name for path in paths] == files() == ["worker0_profile.json", "worker1_profile.json"]
    for rank, path in enumerate(paths):
        calls = [e["name"] for e in named(read(path), "X") if e["pid"] == 9 + 2 * rank]
        assert Counter(calls) == {"init": 1, "push": 1}


@pytest.mark.parametrize("type", ["local", "device"])
def test_calls_of_local_stores_are_events(type: str, caplog: pytest.LogCaptureFixture) -> None:
    kv = kvstore.create(type)
    with caplog.at_level(logging.INFO, "kvstore"):
        profiler.start(SERVER)
        assert profiler.dump(profile_process=SERVER) == []
    assert "no effect: there is no dist store" in caplog.text

    def calls() -> None:
        kv.init("w", W)
        kv.push("w", W)
        kv.pull("w")

    trace = profiled(kv, calls, WORKER)
    assert [e["name"] for e in named(trace, "X")] == ["init", "push", "pull"]
    assert files() == ["profile.json"]


def test_both_sides_share_a_clock() -> None:
    def work(kv: KV) -> None:
        kv.init("w", W)
        profiler.start()
        profiler.start(SERVER)
        kv.push("w", W).wait()
        [server], [worker] = profiler.dump(profile_process=SERVER), profiler.dump()
        [begun], [served], [ended] = (
            named(read(worker), "b"),
            named(read(server), "X", "push"),
            named(read(worker), "e"),
        )
        assert begun["ts"] <= served["ts"] <= ended["ts"]

    cluster().run(work)


# -- switching --------------------------------------------------------------------------------------------------------


def test_who_starts_nothing_gets_no_file() -> None:
    def work(kv: KV) -> None:
        kv.init("w", W)
        kv.push("w", W)

    cluster().run(work)
    assert profiler.dump() == [] and files() == []


@pytest.mark.parametrize("process", [SERVER, WORKER])
def test_only_what_happens_while_it_runs_is_recorded(process: str) -> None:
    def work(kv: KV) -> None:
        def push(times: int) -> None:
            for _ in range(times):
                kv.push("w", W).wait()

        kv.init("w", W)
        profiler.set_state("run", process)
        push(1)
        profiler.pause(process)
        push(2)
        profiler.start(process)  # still paused
        push(4)
        profiler.resume(process)
        push(8)
        profiler.set_state("stop", profile_process=process)
        push(16)
        [path] = profiler.dump(False, process)
        assert len(named(read(path), "X", "push")) == 9
        profiler.start(process)
        push(32)
        [path] = profiler.dump(True, profile_process=process)
        assert len(named(read(path), "X", "push")) == 41
        push(64)
        assert profiler.dump(profile_process=process) == []
        assert len(named(read(path), "X", "push")) == 41

    cluster().run(work)


def test_a_trace_has_the_newest_events_and_says_how_many_are_missing(fake_clock: FakeClock) -> None:
    recorder = Recorder(lambda: int(fake_clock() * 1e9), limit=3)
    recorder.show(8, Process("server 0", "rank0_"))
    recorder.do("run", True)
    for number in range(5):
        since = recorder.clock()
        fake_clock.advance(0.25)
        recorder.add("X", f"e{number}", 8, 1, {"n": number}, since, recorder.clock())
    [path] = recorder.do("dump", True)
    whole = json.loads(Path(path).read_text())
    assert whole["otherData"]["dropped_events"] == 2
    assert [(e["name"], e["ts"], e["dur"]) for e in whole["traceEvents"][1:]] == [
        ("e2", 1000.5e6, 0.25e6), ("e3", 1000.75e6, 0.25e6), ("e4", 1001e6, 0.25e6)
    ]  # fmt: skip
    assert LIMIT <= 1_000_000


def test_the_store_of_this_thread_is_the_way_to_the_servers() -> None:
    """A thread without a store uses the latest of the process."""
    done: list[list[str]] = []

    def work(kv: KV) -> None:
        profiler.start(SERVER)
        kv.barrier()
        if kv.num_workers == 1:
            other = threading.Thread(target=lambda: done.append(profiler.dump(profile_process=SERVER)))
            other.start()
            other.join()

    cluster(workers=2).run(work)
    cluster(workers=1).run(work)
    assert [Path(path).name for path in done[0]] == ["rank0_profile.json"]


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_options_of_mxnet_are_accepted_and_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kvstore"):
        profiler.set_config(profile_all=True, aggregate_stats=True, continuous_dump=True, filename="x.json")
    assert "profile_all, aggregate_stats, continuous_dump" in caplog.text
    with pytest.raises(ConfigError, match=r"filenmae.*options are filename and profile_process"):
        profiler.set_config(filenmae="x.json")
    for wrong in (
        lambda: profiler.set_state("on"),
        lambda: profiler.set_state(True),  # type: ignore[arg-type]
        lambda: profiler.start("scheduler"),
        lambda: profiler.dump(True, "all"),
        lambda: profiler.set_config(profile_process=["worker"]),
    ):
        with pytest.raises(ConfigError):
            wrong()


BAD_NAMES = ["", "a\0b", "no/such/directory.json", ".", "sub/", 7, None, b"x", "/"]


@pytest.mark.parametrize("process", [SERVER, WORKER])
def test_a_name_that_no_file_can_have_is_refused(process: str) -> None:
    def work(kv: KV) -> None:
        Path("sub").mkdir()
        for name in BAD_NAMES:
            with pytest.raises(ConfigError, match="filename"):
                profiler.set_config(filename=name, profile_process=process)
        kv.init("w", W)
        assert named(profiled(kv, lambda: kv.pull("w"), process), "X", "pull")

    cluster().run(work)


@pytest.mark.parametrize("process, name", [(SERVER, "rank0_t.json"), (WORKER, "t.json")])
def test_a_file_that_cannot_be_written_is_an_error_and_nothing_is_lost(process: str, name: str) -> None:
    def work(kv: KV) -> None:
        profiler.set_config(filename="t.json", profile_process=process)
        Path(name).mkdir()
        profiler.start(process)
        kv.init("w", W)
        with pytest.raises(ConfigError, match=f"{name}.*cannot be written"):
            profiler.dump(profile_process=process)
        assert files() == [name]
        Path(name).rmdir()
        [path] = profiler.dump(profile_process=process)
        assert len(named(read(path), "X", "init")) == 1
        assert files() == [name]

    cluster().run(work)


MALFORMED = [
    None,
    [],
    ["run"],
    ["run", 1],
    ["run", True, True],
    ["erase", True],
    [7, True],
    [["run"], True],
    {"run": 1},
]


def test_malformed_control_messages_are_refused_and_the_server_lives_on() -> None:
    def work(kv: Any) -> None:
        for body in MALFORMED:
            with pytest.raises(ProtocolError):
                kv._ask_servers("profile", body)
        kv.init("w", W)
        assert kv.pull("w").tolist() == [1] * 4
        assert profiler.dump(profile_process=SERVER) == []

    cluster().run(work)


def test_the_servers_are_out_of_reach_before_create_and_after_close(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(kv: KV) -> KV:
        kv.close()
        with pytest.raises(ClosedError):
            profiler.start(SERVER)
        return kv

    cluster().run(work)
    monkeypatch.setattr(profiler, "_latest", None)
    monkeypatch.setenv("DMLC_ROLE", "worker")
    with pytest.raises(ConfigError, match="create the dist store first"):
        profiler.set_config(profile_process=SERVER)


# -- real processes ---------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs/profiling.md").read_text()
SCRIPT, READER, PRINTED = re.findall(r"^```(?:python)?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.processes
def test_the_job_of_the_page_writes_traces_that_fit_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    done = launch("-n", 2, "-s", 1, sys.executable, "train.py", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert files() == ["rank0_profile.json", "train.py", "worker0_profile.json", "worker1_profile.json"]
    exec(compile(READER, "docs/profiling.md", "exec"), {})
    assert capsys.readouterr().out == PRINTED
    trace = json.loads(Path("all.json").read_text())
    applied = named(trace, "X", "round")[-1]
    for node in (9, 11):
        begun, ended = ([e for e in named(trace, phase, "pushpull") if e["pid"] == node][-1] for phase in "be")
        assert begun["ts"] < applied["ts"] < ended["ts"]


def test_off_means_that_nothing_is_recorded() -> None:
    assert not CALLS.running
    kv = kvstore.create("local")
    kv.init("w", W)
    assert CALLS._recorded == 0

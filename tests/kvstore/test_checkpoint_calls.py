"""save and load as collective calls, and the calls for optimizer states alone."""

from __future__ import annotations

import gc
import json
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import optimizer, rules
from kvstore.server.meeting import Meeting
from kvstore.server.members import Members
from kvstore.server.ticket import Ticket
from pslite.errors import (
    CheckpointError,
    ConfigError,
    ConflictError,
    PeerError,
    RemoteError,
    RequestTimeout,
    WorkerDropped,
    WorkerFinished,
    WorkerLeft,
)

KV = kvstore.KVStore
TYPES = ["local", "device", "dist_sync", "dist_async"]


def run(type: str, work: Callable[[Any], Any], workers: int = 1, servers: int = 2, **options: Any) -> list[Any]:
    if type in ("local", "device"):
        return [work(kvstore.create(type))]
    return kvstore.LocalCluster(workers, servers, type, bigarray_bound=200, **options).run(work)


@pytest.fixture(autouse=True)
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An updater that raises."""

    def refuse(key: Any, received: Any, stored: Any) -> None:
        raise ValueError("no such gradient")

    monkeypatch.setitem(rules._UPDATERS, "refusing", refuse)


def manifest(path: Path) -> Any:
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("manifest.json"))


# -- who is there -----------------------------------------------------------------------------------------------------


def test_a_push_under_way_is_in_the_file(tmp_path: Path) -> None:
    def work(kv: KV) -> Any:
        kv.init("w", np.zeros(1000, np.float32))
        for _ in range(5):
            kv.push("w", np.full(1000, kv.rank + 1, np.float32))
        kv.save(tmp_path / "c")
        return None

    run("dist_sync", work, workers=3)
    kv = kvstore.create("local")
    kv.load(tmp_path / "c")
    assert kv.pull("w").tolist() == [6.0] * 1000
    assert manifest(tmp_path / "c")["keys"][0]["version"] == 5


def test_the_path_of_rank_0_counts(tmp_path: Path) -> None:
    def work(kv: KV) -> None:
        kv.init("w", np.ones(2))
        path = tmp_path / "c" if kv.rank == 0 else None
        kv.save(path)  # type: ignore[arg-type]
        kv.save(path)  # type: ignore[arg-type]
        kv.load(path)  # type: ignore[arg-type]

    run("dist_sync", work, workers=2)
    assert os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("rank", [0, 1])
def test_save_here_and_load_there(rank: int, tmp_path: Path) -> None:
    """Both hear of it, and can go on together."""

    def work(kv: KV) -> None:
        kv.init("w", np.ones(2))
        with pytest.raises(ConflictError, match="collective call"):
            (kv.save if kv.rank == rank else kv.load)(tmp_path / "c")
        kv.save(tmp_path / "c")
        kv.load(tmp_path / "c")

    run("dist_sync", work, workers=2)


@pytest.mark.parametrize("absent", [0, 1])
def test_a_worker_that_does_not_call_is_named(absent: int, tmp_path: Path) -> None:
    done = threading.Event()

    def work(kv: KV) -> None:
        kv.init("w", np.ones(2))
        if kv.rank == absent:
            done.wait(20)
            return
        try:
            with pytest.raises(RequestTimeout, match=rf"worker {absent} \(to call save\)"):
                kv.save(tmp_path / "c")
        finally:
            done.set()

    run("dist_sync", work, workers=2, timeout=0.5)
    assert not (tmp_path / "c").exists()


def test_a_push_that_save_waited_for_in_vain_is_still_waited_for(tmp_path: Path) -> None:
    """It fails after the timeout: the next call raises that."""
    late = threading.Event()

    def work(kv: KV) -> None:
        kv.set_updater("refusing")
        kv.init("w", np.ones(2))
        if kv.rank == 1:
            late.wait(20)
            with pytest.raises(RemoteError, match="no such gradient"):
                kv.push("w", np.ones(2)).wait()
            return
        kv.push("w", np.ones(2))
        try:
            with pytest.raises(RequestTimeout, match=r"worker 1 \(round 1 of key 'w'\)"):
                kv.save(tmp_path / "c")
        finally:
            late.set()
        with pytest.raises(RemoteError, match="no such gradient"):
            kv.pull("w")

    run("dist_sync", work, workers=2, timeout=0.5)


def test_a_worker_that_has_finished_is_an_error_at_once(tmp_path: Path) -> None:
    def work(kv: KV) -> None:
        kv.init("w", np.ones(2))
        if kv.rank == 0:
            with pytest.raises(WorkerFinished):
                kv.save(tmp_path / "c")

    run("dist_sync", work, workers=2)


def test_a_worker_that_has_left_is_not_needed(tmp_path: Path) -> None:
    """Not even its residuals: it has left with them."""

    def work(kv: KV) -> None:
        kv.set_gradient_compression({"type": "2bit"})
        kv.init("w", np.zeros(3, np.float32))
        kv.push("w", np.full(3, 0.3, np.float32))
        kv.pull("w")
        if kv.rank == 1:
            kv.close(join=True)
            return
        kv.push("w", np.full(3, 0.3, np.float32)).wait()  # its round is complete when rank 1 has left
        kv.save(tmp_path / "c")
        kv.load(tmp_path / "c")

    run("dist_sync", work, workers=3)
    assert set(manifest(tmp_path / "c")["keys"][0]["residuals"]) == {"0", "2"}


def test_a_worker_that_fails_fails_the_call(tmp_path: Path) -> None:
    def work(kv: KV) -> None:
        kv.init("w", np.ones(2))
        if kv.rank == 1:
            raise OSError("rank 1 has had enough")
        with pytest.raises(PeerError):
            kv.save(tmp_path / "c")

    with pytest.raises(OSError, match="enough"):
        run("dist_sync", work, workers=3)


def test_rank_0_interrupted_tells_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvstore.saver.save", interrupted)

    def work(kv: KV) -> None:
        kv.init("w", np.ones(2))
        with pytest.raises(KeyboardInterrupt if kv.rank == 0 else CheckpointError):
            kv.save(tmp_path / "c")

    run("dist_sync", work, workers=2)


def test_other_threads_push_meanwhile(tmp_path: Path) -> None:
    """In dist_async the file is of one moment of each key, also of one that is split over the servers."""

    def work(kv: KV) -> None:
        kv.set_optimizer(optimizer.SGD(learning_rate=-1.0))
        kv.init(["w", "b"], [np.zeros(1000, np.float32), np.zeros(3, np.float32)])
        ending = threading.Event()

        def push() -> None:
            while not ending.is_set():
                kv.push(["w", "b"], [np.ones(1000, np.float32), np.ones(3, np.float32)])

        thread = threading.Thread(target=push)
        thread.start()
        try:
            for _ in range(10):
                kv.save(tmp_path / "c")
                if kv.rank == 0:
                    other = kvstore.create("local")
                    other.load(tmp_path / "c")
                    entries = {entry["key"]: entry for entry in manifest(tmp_path / "c")["keys"]}
                    for name in ("w", "b"):
                        count = entries[name]["count"]
                        assert count == entries[name]["version"]
                        assert set(other.pull(name).tolist()) == {float(count)}
        finally:
            ending.set()
            thread.join()

    run("dist_async", work, workers=2, servers=2)


def test_two_threads_save(tmp_path: Path) -> None:
    """Calls of one worker come one after the other."""

    def work(kv: KV) -> None:
        kv.init("w", np.ones(2))
        threads = [threading.Thread(target=kv.save, args=(tmp_path / "c",)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run("dist_sync", work, workers=2)
    kvstore.create("local").load(tmp_path / "c")


def test_many_saves_leave_nothing_on_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvstore.server.service import Service

    services: list[Service] = []
    start = Service.__init__

    def noted(self: Service, *arguments: Any) -> None:
        start(self, *arguments)
        services.append(self)

    monkeypatch.setattr(Service, "__init__", noted)

    def work(kv: KV) -> None:
        kv.set_gradient_compression({"type": "2bit"})
        kv.init("w", np.zeros(1000, np.float32))
        kv.push("w", np.ones(1000, np.float32))
        for _ in range(100):
            kv.save(tmp_path / "c")
        kv.load(tmp_path / "c")
        with pytest.raises(CheckpointError):
            kv.save(tmp_path / "none" / "c")
        kv.barrier()
        kv.send_command_to_servers(1, None)  # behind what this worker has told the servers to forget
        kv.barrier()
        assert all(not service.store.stash for service in services)
        assert all(not service.store.meeting._here for service in services)

    run("dist_sync", work, workers=2)
    assert len(services) == 2
    services.clear()
    gc.collect()


# -- the meeting, by itself -------------------------------------------------------------------------------------------


def ticket(rank: int) -> Ticket:
    return Ticket(f"of {rank}", rank)


def test_rank_0_acts_when_all_are_there_and_the_others_get_what_came_of_it() -> None:
    meeting = Meeting(Members(3))
    one, zero, two = ticket(1), ticket(0), ticket(2)
    assert meeting.enter(one, "save") == meeting.enter(zero, "save") == []
    assert meeting.missing(lambda token: token == "of 1") == ["worker 2 (to call save)"]
    assert meeting.enter(two, "save") == [zero] and zero.body == [[0, 1, 2], None]
    assert meeting.missing(lambda token: token == "of 1") == ["worker 0 (to finish the call)"]
    said = ticket(0)
    assert meeting.decide(said, None, "result") == [one, two, said]
    assert (one.error, one.body) == (None, [None, "result"])
    assert meeting.missing(lambda token: True) == []


def test_who_comes_again_has_given_up_the_first_time() -> None:
    meeting = Meeting(Members(2))
    first, again, other = ticket(0), ticket(0), ticket(1)
    meeting.enter(first, "save")
    assert meeting.enter(again, "load") == [first] and isinstance(first.error, ConflictError)
    assert meeting.enter(other, "load") == [again] and again.error is None


@pytest.mark.parametrize("gone", [0, 1, 2])
@pytest.mark.parametrize("before", [False, True])
def test_a_rank_that_ends_is_not_waited_for(gone: int, before: bool) -> None:
    meeting, error = Meeting(Members(3)), WorkerFinished(node=f"worker {gone}", reason="")
    tickets = [ticket(rank) for rank in range(3) if rank != gone]
    done = meeting.on_peer_ended(gone, error) if before else []
    for one in tickets:
        done += meeting.enter(one, "save")
    if not before:
        done += meeting.on_peer_ended(gone, error)
    assert {t.rank for t in done} == {t.rank for t in tickets} and all(t.error is error for t in done)


@pytest.mark.parametrize("gone", [0, 1])
def test_a_rank_that_leaves_is_not_needed_unless_it_has_the_file(gone: int) -> None:
    meeting = Meeting(Members(3))
    tickets = {rank: ticket(rank) for rank in range(3) if rank != gone}
    done = [t for one in tickets.values() for t in meeting.enter(one, "save")]
    assert done == []
    done = meeting.on_peer_ended(gone, WorkerLeft(node=f"worker {gone}", reason=""))
    if gone == 1:
        assert done == [tickets[0]] and tickets[0].body == [[0, 2], None] and tickets[0].error is None
    else:
        assert len(done) == 2 and all(t.error is not None for t in done)


def test_rank_0_ends_while_it_acts() -> None:
    meeting, error = Meeting(Members(2)), WorkerFinished(node="worker 0", reason="")
    zero, one = ticket(0), ticket(1)
    meeting.enter(zero, "save")
    assert meeting.enter(one, "save") == [zero]
    assert meeting.on_peer_ended(0, error) == [one] and one.error is error


def test_rank_0_is_lost_while_it_acts_and_the_next_one_acts() -> None:
    members = Members(4)
    meeting, error = Meeting(members), WorkerDropped(node="worker 0", reason="killed")
    zero, one, two, three = (ticket(rank) for rank in range(4))
    for mine in (zero, one, two):
        meeting.enter(mine, "save")
    assert meeting.enter(three, "save") == [zero]
    for rank in (2, 0):
        members.on_peer_ended(rank, error)
        done = meeting.on_peer_ended(rank, error)
    assert done == [one] and (one.error, one.body) == (None, [[1, 3], None])
    assert meeting.missing(lambda token: token == "of 3") == ["worker 1 (to finish the call)"]
    said = ticket(1)
    assert meeting.decide(said, None, "result") == [three, said] and three.body == [None, "result"]


def test_rank_0_is_lost_after_the_next_one_has_left() -> None:
    members = Members(3)
    meeting, two = Meeting(members), ticket(2)
    meeting.enter(two, "save")
    for rank, error in ((1, WorkerLeft(node="worker 1", reason="")), (0, WorkerDropped(node="worker 0", reason=""))):
        members.on_peer_ended(rank, error)
        done = meeting.on_peer_ended(rank, error)
    assert done == [two] and isinstance(two.error, WorkerLeft)


# -- optimizer states -------------------------------------------------------------------------------------------------


def push(kv: KV, number: float) -> None:
    kv.push("w", np.full(1000, number, np.float32))


def adam(rate: float = 0.1) -> Any:
    return optimizer.Adam(learning_rate=rate)


@pytest.mark.parametrize("dump", [False, True])
@pytest.mark.parametrize("type", TYPES)
def test_states_are_loaded_and_values_stay(type: str, dump: bool, tmp_path: Path) -> None:
    def work(kv: KV) -> None:
        rule = adam()
        kv.set_optimizer(rule)
        kv.init("w", np.ones(1000, np.float32))
        push(kv, 1.0)
        kv.save_optimizer_states(tmp_path / "s", dump_optimizer=dump)
        value = kv.pull("w")
        push(kv, 2.0)
        expected = kv.pull("w")
        rule.lr = 0.5
        push(kv, -3.0)
        moved = kv.pull("w")
        kv.load_optimizer_states(tmp_path / "s")
        np.testing.assert_array_equal(kv.pull("w"), moved)
        assert rule.lr == (0.1 if dump else 0.5)
        assert kv.version("w") == 3
        push(kv, 2.0)
        step = (kv.pull("w") - moved) / (1 if dump else 5)
        np.testing.assert_allclose(step, expected - value, rtol=1e-4)

    run(type, work)
    [entry] = manifest(tmp_path / "s")["keys"]
    assert set(entry["arrays"]) == {"slot/mean", "slot/var"} and entry["count"] == 1
    assert (manifest(tmp_path / "s")["settings"]["rule"] is not None) == dump


@pytest.mark.parametrize("type", TYPES)
def test_a_dumped_optimizer_is_set_where_there_is_none(type: str, tmp_path: Path) -> None:
    def first(kv: KV) -> Any:
        kv.set_optimizer(adam())
        kv.init("w", np.ones(1000, np.float32))
        push(kv, 1.0)
        kv.save_optimizer_states(tmp_path / "s", dump_optimizer=True)
        value = kv.pull("w")
        push(kv, 2.0)
        return value, kv.pull("w")

    def second(kv: KV) -> Any:
        kv.init("w", value)
        kv.load_optimizer_states(tmp_path / "s")
        push(kv, 2.0)
        return kv.pull("w")

    [(value, expected)] = run(type, first)
    np.testing.assert_array_equal(run(type, second, servers=1)[0], expected)


@pytest.mark.parametrize("type", TYPES)
def test_mistakes_with_states(type: str, tmp_path: Path) -> None:
    """Each is an error that says what to do, and changes nothing."""

    def work(kv: KV) -> None:
        kv.init("w", np.ones(1000, np.float32))
        with pytest.raises(ConfigError, match="set_optimizer"):
            kv.save_optimizer_states(tmp_path / "s")
        kv.set_optimizer(adam())
        push(kv, 1.0)
        kv.save_optimizer_states(tmp_path / "s")
        kv.save_optimizer_states(tmp_path / "dumped", dump_optimizer=True)
        with pytest.raises(CheckpointError, match="use load_optimizer_states"):
            kv.load(tmp_path / "s")
        kv.set_optimizer(optimizer.SGD(learning_rate=0.1))
        push(kv, 1.0)
        before = kv.pull("w")
        for name in ("s", "dumped"):
            with pytest.raises(ConfigError, match=r"(?i)adam"):
                kv.load_optimizer_states(tmp_path / name)
        kv.init("more", np.ones(3, np.float32))
        with pytest.raises(CheckpointError, match="key 'more' is not in it"):
            kv.load_optimizer_states(tmp_path / "s")
        push(kv, 0.0)
        np.testing.assert_array_equal(kv.pull("w"), before)

    run(type, work)

    def empty(kv: KV) -> None:
        with pytest.raises(CheckpointError, match="init it"):
            kv.load_optimizer_states(tmp_path / "dumped")
        kv.init("w", np.ones(1000, np.float32))
        with pytest.raises(CheckpointError, match=r"call kv[.]set_optimizer first"):
            kv.load_optimizer_states(tmp_path / "s")

    run(type, empty)


@pytest.mark.parametrize("type", TYPES)
def test_a_plain_updater_has_no_states(type: str, tmp_path: Path) -> None:
    def work(kv: KV) -> None:
        kv.set_updater("adds")
        kv.init("w", np.ones(3, np.float32))
        with pytest.raises(ConfigError, match="only an optimizer has states"):
            kv.save_optimizer_states(tmp_path / "s")
        kv.push("w", np.ones(3, np.float32))
        kv.save(tmp_path / "c")
        kv.push("w", np.ones(3, np.float32))
        kv.load(tmp_path / "c")
        assert kv.pull("w").tolist() == [2.0] * 3

    from kvstore import rules

    @kvstore.updater("adds")
    def adds(key: Any, received: Any, stored: Any) -> None:
        stored += received

    try:
        run(type, work)
    finally:
        del rules._UPDATERS["adds"]


@pytest.mark.parametrize("type", TYPES)
def test_the_states_in_a_whole_checkpoint_can_be_loaded_alone(type: str, tmp_path: Path) -> None:
    def work(kv: KV) -> None:
        kv.set_optimizer(adam())
        kv.init("w", np.ones(1000, np.float32))
        push(kv, 1.0)
        kv.save(tmp_path / "c")
        push(kv, 1.0)
        value = kv.pull("w")
        kv.load_optimizer_states(tmp_path / "c")
        np.testing.assert_array_equal(kv.pull("w"), value)
        kv.save(tmp_path / "d")
        assert (manifest(tmp_path / "d")["keys"][0]["count"], manifest(tmp_path / "d")["keys"][0]["version"]) == (1, 2)

    run(type, work)


def test_a_function_that_is_not_registered_on_a_local_store(tmp_path: Path) -> None:
    kv = kvstore.create("local")
    kv.set_updater(lambda key, received, stored: stored.__iadd__(received))
    kv.init("w", np.ones(3, np.float32))
    kv.push("w", np.ones(3, np.float32))
    kv.save(tmp_path / "c")
    kv.push("w", np.ones(3, np.float32))
    kv.load(tmp_path / "c")
    kv.push("w", np.full(3, 4, np.float32))
    assert kv.pull("w").tolist() == [6.0] * 3
    with pytest.raises(ConfigError, match="updater"):
        kvstore.create("local").load(tmp_path / "c")


@pytest.mark.parametrize("p3", [(True, False), (False, True), (True, True)])
def test_slices_of_p3(p3: tuple[bool, bool], tmp_path: Path) -> None:
    """A job in slices and one in rows read each other's files."""
    value = np.arange(1001, dtype=np.float32).reshape(7, 143)

    def first(kv: KV) -> None:
        kv.init(["w", "s"], [value, np.float32(3)])
        kv.push("w", value)
        kv.save(tmp_path / "c")

    def second(kv: KV) -> None:
        kv.load(tmp_path / "c")
        np.testing.assert_array_equal(kv.pull("w"), 2 * value)
        assert kv.pull("s") == 3
        kv.push("w", value)
        np.testing.assert_array_equal(kv.pull("w"), 2 * value)

    run("dist_sync", first, workers=2, servers=2, p3=p3[0], slice_threshold=100)
    run("dist_sync", second, workers=2, servers=3, p3=p3[1], slice_threshold=130)

"""Worker 0 dies in a job that goes on without it: the next one has its duties."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import pytest

import kvstore
from kvstore import profiler
from kvstore.base import KVStore
from kvstore.commands import HELD_AT_ONCE, INIT, LOAD, SAVE
from kvstore.succession import Share, succeed
from pslite import Flag, InprocCluster, KVPairs, run_all, worker_id
from pslite.errors import PeerLost, ProtocolError, WorkerFinished
from pslite.wire import Kind, Message, Op
from tests.harness import wait_until

from .test_worker_restarts import job, soon, started

SHAPE = (4,)
ONES = np.ones(SHAPE, np.float32)


def sgd(rate: float) -> Any:
    return kvstore.optimizer.create("sgd", learning_rate=rate, momentum=0.5)


def each(stores: list[KVStore], call: Callable[[KVStore], object]) -> list[Any]:
    """A call that all of them make."""
    return run_all([functools.partial(call, kv) for kv in stores])


def kill(cluster: InprocCluster, rank: int) -> None:
    """A worker dies, and those that are left have heard of it."""
    cluster.kill(cluster.workers[rank])
    heard = [*cluster.servers, *(o for o in cluster.workers if not cluster.van_of(o).dead)]
    wait_until(lambda: all(office.ended(worker_id(rank)) for office in heard))


@contextmanager
def shrinking(workers: int = 3, type: str = "dist_sync", **settings: Any) -> Iterator[tuple[InprocCluster, Any]]:
    with job(workers=workers, **{"on_worker_lost": "shrink", "timeout": 10.0, **settings}) as cluster:
        yield cluster, run_all([lambda o=o: started(o, type) for o in cluster.workers])


def everything(kv: KVStore, directory: Path) -> list[Any]:
    """All that rank 0 alone can do, and what comes of it."""
    found: list[Any] = []
    out = np.zeros(SHAPE, np.float32)
    kv.broadcast("fresh", np.full(SHAPE, kv.rank, np.float32), out)
    found.append(out.tolist())
    kv.init(["s", "t"], [np.full(SHAPE, kv.rank, np.float32), np.full((6, 2), kv.rank, np.float32)])
    kv.set_optimizer(sgd(0.25))
    for _ in range(2):
        kv.push(["old", "s", "t"], [ONES, ONES, np.ones((6, 2), np.float32)])
    found += [array.tolist() for array in kv.pull(["old", "s", "t"])]
    kv.save(directory / "all")
    kv.save_optimizer_states(directory / "states")
    kv.push("s", ONES)
    kv.load_optimizer_states(directory / "states")
    kv.load(directory / "all")
    found += [array.tolist() for array in kv.pull(["old", "s", "t"])]
    kv.set_gradient_compression({"type": "2bit", "threshold": 0.5})
    kv.push("s", np.full(SHAPE, 0.75, np.float32))
    kv.set_gradient_compression({"type": "none"})
    kv.barrier()
    found.append(kv.pull("s").tolist())
    kv.step()
    found.append(kv.live_ranks)
    return found


def test_the_next_one_does_all_that_rank_0_did(tmp_path: Path) -> None:
    jobs = itertools.product(["dist_sync", "dist_async"], [1, 2])
    run_all([functools.partial(does_all, *job, tmp_path, f"{number}") for number, job in enumerate(jobs)])


def does_all(type: str, servers: int, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with shrinking(type=type, servers=servers, bigarray_bound=12) as (cluster, stores):
        each(stores, lambda kv: kv.init("old", np.full(SHAPE, 100.0 + kv.rank, np.float32)))
        kill(cluster, 0)
        first, second = each(stores[1:], lambda kv: everything(kv, tmp_path / name))
        assert first[0] == [1.0] * 4, "the value of the lowest live rank counts"
        assert first[-1] == [1, 2]
        if type == "dist_sync":
            assert first == second
            one = [1 - 0.5 - 0.75] * 4  # two steps of momentum 0.5 with gradient 2 and rate 0.25
            assert first[1:4] == [[98.75] * 4, one, [[one[0]] * 2] * 6]
            assert first[4:7] == first[1:4]
        kill(cluster, 1)  # and the next
        stores[2].init("last", np.full(SHAPE, 2.0))
        stores[2].save(tmp_path / name / "all")
        assert stores[2].pull("last").tolist() == [2.0] * 4


def test_the_profiler_of_the_servers(tmp_path: Path) -> None:
    with shrinking(workers=2) as (cluster, stores):
        profiler.opened(stores[1])
        server = "server"
        profiler.set_config(filename=str(tmp_path / "t.json"), profile_process=server)
        profiler.start(server)
        assert profiler.dump(profile_process=server) == [], "worker 0 does that"
        kill(cluster, 0)
        profiler.set_config(filename=str(tmp_path / "t.json"), profile_process=server)
        profiler.start(server)
        stores[1].init("w", np.ones(SHAPE))
        assert sorted(Path(path).name for path in profiler.dump(profile_process=server)) == [
            "rank0_t.json",
            "rank1_t.json",
        ]


def test_nobody_else_may() -> None:
    with shrinking() as (cluster, stores):
        each(stores, lambda kv: kv.init("w", np.ones(SHAPE)))
        kill(cluster, 0)
        requests = {INIT: (Flag.PUSH, {9: ["x", False, [3]]}), SAVE: (Flag.PULL, True), LOAD: (Flag.PUSH, {})}
        for cmd, (flags, meta) in requests.items():
            pairs = KVPairs(np.array([9], np.uint64), [np.zeros(3)] if flags == Flag.PUSH else [])
            with pytest.raises(ProtocolError, match=f"command {cmd} is for worker 1 to send, not for worker 2"):
                stores[2]._worker.customer.wait_for(stores[2]._worker.send(pairs, flags, cmd, meta=meta))
        for what in ("decide", "forget"):
            with pytest.raises(ProtocolError, match=f"{what} is for worker 1"):
                stores[2]._tell_first_server(what, [None, None])


def test_a_worker_that_came_later_leads_in_the_end() -> None:
    run_all([functools.partial(leads_in_the_end, type) for type in ("dist_sync", "dist_async")])


def leads_in_the_end(type: str) -> None:
    with shrinking(2, type, max_workers=3) as (cluster, stores):
        each(stores, lambda kv: kv.init("w", np.zeros(SHAPE, np.float32)))
        coming = soon(lambda: started(cluster.join(), type))
        wait_until(lambda: stores[0].status().get("worker 2") == "up")
        while 2 not in stores[0].live_ranks:
            each(stores, lambda kv: kv.step())
        late: Any = coming.result(10)
        late.init("w", np.zeros(SHAPE, np.float32))
        kill(cluster, 0)
        kill(cluster, 1)
        late.set_optimizer(sgd(1.0))
        late.init("v", np.ones(SHAPE, np.float32))
        late.push(["w", "v"], [ONES, ONES])
        assert [array.tolist() for array in late.pull(["w", "v"])] == [[-1.0] * 4, [0.0] * 4]


def test_without_shrink_nothing_changes() -> None:
    with shrinking(on_worker_lost="raise") as (cluster, stores):
        kill(cluster, 0)
        for call in (lambda: stores[1].init("w", np.ones(SHAPE)), lambda: stores[2].set_optimizer(sgd(0.5))):
            with pytest.raises(PeerLost):
                call()


def test_who_finished_has_no_successor() -> None:
    """Worker 1 leads and ends before worker 2 has its key."""
    with shrinking() as (cluster, stores):
        kill(cluster, 0)
        stores[1]._leave_without_waiting()
        with pytest.raises(WorkerFinished):
            stores[2].init("w", np.ones(SHAPE))


def test_no_key_is_made_before_all_servers_know_of_the_end() -> None:
    """A server that hears late would take what is still on its way from worker 0."""
    deaf, asked = True, []

    def fault(sender: str, receiver: str, message: Message) -> int:
        if sender == "worker 1" and message.kind == Kind.REQUEST and message.op in (Op.DATA, Op.SIMPLE):
            asked.append((receiver, message.body[0] if message.op == Op.SIMPLE else message.cmd))
        return not (deaf and (sender, receiver) == ("scheduler 0", "server 1") and message.kind == Kind.REQUEST)

    with shrinking(2, fault=fault, resend_timeout=0.1) as (cluster, stores):
        cluster.kill(cluster.workers[0])
        making = soon(lambda: stores[1].init(["a", "b"], [ONES] * 2))
        wait_until(lambda: {("server 0", "lead"), ("server 1", "lead")} <= set(asked))
        assert stores[1]._control.wait(stores[1]._control.request(0, ["lead", None], 8)) == [None], "server 0 knows"
        assert not making.done() and ("server 0", INIT) not in asked
        deaf = False
        making.result(10)
        assert ("server 0", INIT) in asked
        assert stores[1].pull("b").tolist() == [1.0] * 4


def test_the_next_one_slices() -> None:
    with shrinking(p3=True, slice_threshold=3) as (cluster, stores):
        each(stores, lambda kv: kv.init("w", np.arange(7, dtype=np.float32)))
        kill(cluster, 0)
        each(stores[1:], lambda kv: kv.init("v", np.arange(8, dtype=np.float32)))
        assert [kv.pull(key).tolist() for kv in stores[1:] for key in "wv"] == [[*range(7)], [*range(8)]] * 2


def test_what_nobody_knows_is_removed_however_many_keys_there_are() -> None:
    start = 2**63
    servers = {s: {s * start + n: f"{s} {n}" for n in range(2500)} for s in (0, 1)}
    directory = {
        repr(key): [[1], 0, [[wire, 0, 1]], False, False]
        for keys in servers.values() for wire, key in keys.items() if wire % 7
    }  # fmt: skip

    class Office:
        def lookup(self, names: list[str]) -> dict[str, Any]:
            assert len(names) <= 1024
            return {name: directory[name] for name in names if name in directory}

    def ask(what: str, value: Any) -> list[Any]:
        if what == "forget":
            for keys in servers.values():
                for wire in value:
                    keys.pop(wire, None)
        if what != "held":
            return [None, None]
        here = {s: range(s * start + value, s * start + value + HELD_AT_ONCE) for s in servers}
        return [[2500, 10 * (s + 1), [[w, servers[s][w]] for w in here[s] if w in servers[s]]] for s in servers]

    assert succeed(ask, cast(Any, Office())) == [Share(2500, 10), Share(2500, 20)]
    assert {repr(key) for keys in servers.values() for key in keys.values()} == directory.keys()


# -- worker 0 dies in the midst of a call -----------------------------------------------------------------------------


class Dying:
    """A worker dies when it would send its n-th request after ``begin``: some have heard of a call, others not."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.victim = ""
        self.left = 0
        self.dead: set[str] = set()

    def begin(self, rank: int, within: int) -> None:
        self.left, self.victim = self.rng.randrange(within), f"worker {rank}"

    def __call__(self, sender: str, receiver: str, message: Message) -> int:
        if sender == self.victim and message.kind == Kind.REQUEST:
            self.left -= 1
            if self.left < 0:
                self.dead.add(sender)
        return sender not in self.dead


def with_deaths(seed: int, deaths: int, within: int, call: Callable[[KVStore], Any], before: Any) -> list[Any]:
    """All call, if ``before`` is None some after the deaths; returns what the last two workers have of it."""
    dying = Dying(seed)
    replicas = dying.rng.randrange(2)  # whose changes are answered later
    with shrinking(deaths + 2, fault=dying, bigarray_bound=12, replicas=replicas) as (cluster, stores):
        each(stores, lambda kv: kv.init(OLD, [np.zeros(SHAPE, np.float32)] * 3))
        each(stores, lambda kv: kv.set_optimizer(sgd(0.5)))
        each(stores, before or (lambda kv: None))
        dying.begin(0, within)
        left = stores[deaths:]
        late = [kv for kv in left if before is None and dying.rng.random() < 0.5]
        calls = [soon(functools.partial(call, kv)) for kv in stores if kv not in late]
        for rank in range(deaths):
            if rank:
                dying.begin(rank, within)
            wait_until(lambda: calls[rank].done() or f"worker {rank}" in dying.dead)  # noqa: B023 - runs at once
            kill(cluster, rank)
        calls += [soon(functools.partial(call, kv)) for kv in late]
        results = [future.result(10) for future in calls[deaths:]]
        each(left, lambda kv: kv.push(OLD, [ONES] * 3))
        each(left, lambda kv: kv.pull(OLD))
        assert not any(keys for *_, keys in left[0]._ask_servers("held", 0)), "a key that nobody knows"
        assert results[0] == results[1]
        return results


OLD = ["x", "y", "z"]


def trials(within: int, call: Any, before: Any = None, deaths: tuple[int, ...] = (1, 1, 2)) -> list[Any]:
    """What comes of so many deaths, at once, for most of the time is waiting."""

    def trial(seed: int, count: int) -> list[Any]:
        try:
            return with_deaths(seed, count, within, call, before)
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {count} deaths") from error

    return run_all([functools.partial(trial, Random().randrange(10**6), count) for count in deaths * 3])


def test_worker_0_dies_as_it_makes_keys() -> None:
    def call(kv: KVStore) -> Any:
        found = []
        for keys in (["a", "b"], ["c"]):
            kv.init(keys, [np.full((6, 2), 1.0 + kv.rank, np.float32)] * len(keys))
            found += kv.pull(keys)
        if kv.rank:
            kv.push(["a", "b", "c"], [np.zeros((6, 2), np.float32)] * 3)
        return [array.tolist() for array in found]

    for [found, _] in trials(12, call):
        assert all(np.unique(array).tolist() in ([1.0], [2.0], [3.0]) for array in found), "one worker's value"


def test_worker_0_dies_as_it_sets_optimizers() -> None:
    """A round has one optimizer on all servers, and momentum goes on where the optimizer does."""

    def call(kv: KVStore) -> Any:
        for rate in (0.25, 2.0):
            if kv.rank:
                kv.push(OLD, [ONES] * 3)
            kv.set_optimizer(sgd(rate))
        if kv.rank:
            kv.push(OLD, [ONES] * 3)
        return [array.tolist() for array in kv.pull(OLD)] if kv.rank else None

    for [found, _] in trials(5, call, deaths=(1, 1, 1)):
        assert found == [[-1.0 - 0.5 - 4.0] * 4] * 3


def test_worker_0_dies_as_it_saves_or_loads(tmp_path: Path) -> None:
    def file(kv: KVStore, name: str) -> Path:
        return tmp_path / (name + kv._office.config.root.rpartition("-")[2])  # each trial has its own

    def before(kv: KVStore) -> None:
        kv.push(OLD, [ONES] * 3)
        kv.save(file(kv, "before"))
        kv.pushpull(OLD, [ONES] * 3, [np.empty(SHAPE, np.float32) for _ in OLD])

    def call(kv: KVStore) -> Any:
        kv.save(file(kv, "now"))
        found = kv.pull(OLD)
        kv.load(file(kv, "before"))
        found += kv.pull(OLD)
        kv.load(file(kv, "now"))
        return [array.tolist() for array in found + kv.pull(OLD)]

    def expected(workers: int) -> Any:
        now, then = [[-1.25 * workers] * 4] * 3, [[-0.5 * workers] * 4] * 3
        return now + then + now

    for [found, _] in trials(30, call, before):
        assert found in (expected(3), expected(4))


def test_worker_0_dies_as_it_loads_new_keys(tmp_path: Path) -> None:
    with shrinking(bigarray_bound=12) as (_, stores):
        each(stores, lambda kv: kv.init(["new", *OLD], [np.full((6, 2), 7.0, np.float32)] + [3 * ONES] * 3))
        each(stores, lambda kv: kv.save(tmp_path / "more"))

    def call(kv: KVStore) -> Any:
        kv.load(tmp_path / "more")
        found = [array.tolist() for array in kv.pull(["new", *OLD])]
        if kv.rank:
            kv.push("new", np.zeros((6, 2), np.float32))
        return found

    for [found, _] in trials(20, call, lambda kv: None):
        assert found == [[[7.0] * 2] * 6] + [[3.0] * 4] * 3

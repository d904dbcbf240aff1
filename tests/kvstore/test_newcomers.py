"""Workers join a running job: from their first step on, and from that of everybody, they take part."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.base import KVStore
from kvstore.member import Member
from kvstore.server.hosting import serve
from kvstore.server.members import Members
from kvstore.server.ticket import Ticket
from kvstore.single import SingleStore
from pslite import InprocCluster, Postoffice, run_all, worker_id
from pslite.errors import JoinError, PeerLost, PSError, WorkerDropped, WorkerFinished
from tests.harness import wait_until

from .test_worker_restarts import KEYS, SHAPE, job, push, soon, started, value


class Training:
    """What the workers of a job saw in each step. Threads of all workers add to it."""

    def __init__(self, keys: int, barrier_every: int = 0, optimizer: bool = True) -> None:
        self.keys = [f"k{i}" for i in range(keys)]
        self.barrier_every, self.optimizer = barrier_every, optimizer
        self.lock = threading.Lock()
        self.seen: dict[int, dict[int, tuple[float, ...]]] = defaultdict(dict)  # by step and rank: values after it
        self.members: dict[int, dict[int, list[int]]] = defaultdict(dict)  # likewise: who takes part
        self.begun = 0  # latest step that anybody has begun
        self.last: int | None = None  # the last one, once that is known

    def work(self, office: Postoffice) -> None:
        kv = started(office)
        if self.optimizer:
            kv.set_optimizer(kvstore.optimizer.create("test"))
        kv.init(self.keys, [np.zeros(SHAPE)] * len(self.keys))
        if self.barrier_every:
            kv.barrier()
        values = self.values(kv)
        if kv.start_step and not office.again:  # of whom parts of that step may be in already
            self.seen[kv.start_step - 1][kv.rank] = values
        for step in itertools.count(kv.start_step):
            with self.lock:
                self.begun = max(self.begun, step)
                self.members[step][kv.rank] = kv.live_ranks
                if self.last is not None and step > self.last:
                    break
            assert kv.num_workers == len(kv.live_ranks)
            for key in self.keys:
                push(kv, key, float(10**kv.rank))
            self.seen[step][kv.rank] = self.values(kv)
            if self.barrier_every and step % self.barrier_every == 0:
                kv.barrier()
            kv.step()
        kv.close()

    def values(self, kv: KVStore) -> tuple[float, ...]:
        return tuple(value(kv, key) for key in self.keys)

    def end_soon(self) -> None:
        with self.lock:
            self.last = self.begun + 3

    def agreed(self, step: int) -> list[int]:
        """Who takes part in a step that all have begun, if they say the same."""
        found = list(self.members[step].values())
        return found[0] if found.count(found[0]) == len(found) else []

    def check(self) -> None:
        """All saw the same members and values, which are the sums over these members."""
        assert self.last is not None
        total = 0.0
        for step in range(self.last + 1):
            [members] = {tuple(ranks) for ranks in self.members[step].values()}
            assert set(members) == self.members[step].keys()
            own = sum(10.0**rank for rank in members)
            total = total + own if self.optimizer else own
            assert set(self.seen[step].values()) == {(total,) * len(self.keys)}, (step, self.seen[step])


@pytest.mark.parametrize("seed", range(20))
def test_everybody_sees_the_same_sums_whoever_comes_when(seed: int) -> None:
    rng = Random(seed)
    lossy = {"fault": lambda *message: faults.choice((0, 2, *[1] * 30)), "resend_timeout": 0.05}
    faults, split = Random(seed), {"bigarray_bound": 2}
    settings: dict[str, Any] = [{}, {"max_restarts": 1}, split, {"p3": True, "slice_threshold": 3}, lossy][seed % 5]
    training = Training(rng.choice([1, 2, 5]), rng.choice([0, 1, 3]), optimizer="p3" not in settings)
    with job(workers=2, servers=2, max_workers=5, **settings) as cluster:
        workers = [soon(lambda o=o: training.work(o)) for o in cluster.workers]  # type: ignore[misc]
        for _ in range(3):
            at = training.begun + rng.randrange(1, 8)
            wait_until(lambda at=at: training.begun >= at)
            office = cluster.join()
            workers.append(soon(lambda o=office: training.work(o)))  # type: ignore[misc]
        wait_until(lambda: len(training.members[training.begun]) == 5 or any(worker.done() for worker in workers))
        training.end_soon()
        for worker in workers:
            worker.result(60)
    training.check()
    assert training.members[training.last or 0].keys() == set(range(5))


def test_a_newcomer_has_the_weights_of_the_beginning_of_its_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    real, starts = Members.ask, []

    def watched(self: Members, ticket: Ticket, what: str, value: Any) -> list[Ticket]:
        done = real(self, ticket, what, value)
        if what == "start":
            starts.append(ticket in done)
        return done

    monkeypatch.setattr(Members, "ask", watched)
    with job(max_workers=3) as cluster:
        first, second = run_all([lambda o=o: started(o) for o in cluster.workers])
        run_all([lambda kv=kv: kv.init(KEYS, [np.zeros(SHAPE)] * 2) for kv in (first, second)])
        third = soon(lambda: started(cluster.join()))
        wait_until(lambda: first.status().get("worker 2") == "up")
        push(first, "a", 1.0)
        while 2 not in first.live_ranks:
            first.step()
        pushed = first.push("a", np.full(SHAPE, 100.0))  # in the newcomer's first step, while worker 1 is in step 0
        wait_until(lambda: len(starts) == 2)
        assert starts == [False, False] and second.live_ranks == [0, 1]
        push(second, "a", 2.0)
        while 2 not in second.live_ranks:
            second.step()
        newcomer = third.result(20)
        assert isinstance(newcomer, KVStore) and newcomer.start_step == first._step
        newcomer.init(KEYS, [np.zeros(SHAPE)] * 2)
        assert value(newcomer, "a") == 3.0
        push(second, "a", 200.0)
        assert not pushed.done()
        push(newcomer, "a", 300.0)
        assert value(second, "a") == value(newcomer, "a") == value(first, "a") == 600.0
        run_all([kv.close for kv in (first, second, newcomer)])


POINTS = ["came", "join", "_ask_who_is_due", "start", "push"]


class Death:
    """A worker dies when it has done this for the first time."""

    def __init__(self, cluster: InprocCluster, victim: Postoffice, point: str, patch: pytest.MonkeyPatch) -> None:
        self.cluster, self.victim, self.point = cluster, victim, point
        self.dead, self.over = threading.Event(), threading.Event()
        for name in ("_tell_first_server", "_ask_who_is_due", "_ask_servers", "push"):
            self._watch(name, patch)

    def _watch(self, name: str, patch: pytest.MonkeyPatch) -> None:
        real = getattr(SingleStore if name == "push" else Member, name)

        def call(store: Any, what: Any, *rest: Any) -> Any:
            result = real(store, what, *rest)
            if store._office is self.victim and self.point in (what, name):
                store._worker.customer.settle(5)
                self.die()
            return result

        patch.setattr(SingleStore if name == "push" else Member, name, call)

    def die(self) -> None:
        self.cluster.kill(self.victim)
        self.dead.set()
        self.over.wait(60)
        raise ConnectionError

    def work(self, training: Training) -> None:
        with suppress(ConnectionError, PSError):
            if self.point == "came":
                self.victim.start()
                self.die()
            training.work(self.victim)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("policy", ["shrink", "wait"])
def test_a_newcomer_that_dies_blocks_nobody(point: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(2, barrier_every=2)
    with job(workers=2, servers=2, max_workers=3, on_worker_lost=policy, max_restarts=1) as cluster:
        workers = [soon(lambda o=o: training.work(o)) for o in cluster.workers]  # type: ignore[misc]
        wait_until(lambda: training.begun >= 3)
        death = Death(cluster, cluster.join(), point, monkeypatch)
        newcomer = soon(lambda: death.work(training))
        assert death.dead.wait(20)
        if policy == "wait":
            again = cluster.restart(death.victim)
            workers.append(soon(lambda: training.work(again)))
            wait_until(lambda: 2 in training.members[training.begun] or any(worker.done() for worker in workers))
        else:
            lost_at = training.begun
            wait_until(lambda: training.begun >= lost_at + 3 and training.agreed(training.begun - 1) == [0, 1])
        training.end_soon()
        for worker in workers:
            worker.result(30)
        death.over.set()
    newcomer.result(20)
    if policy == "wait":
        training.check()


def test_without_a_policy_a_newcomer_that_dies_is_an_error_in_the_steps_that_need_it() -> None:
    with job(workers=2, servers=2, max_workers=3) as cluster:
        first, second = run_all([lambda o=o: started(o) for o in cluster.workers])
        run_all([lambda kv=kv: kv.init(KEYS, [np.zeros(SHAPE)] * 2) for kv in (first, second)])
        coming = soon(lambda: started(cluster.join()))
        wait_until(lambda: len(cluster.workers) == 3 and cluster.workers[0].node_ids(4)[2:] == [worker_id(2)])
        while 2 not in first.live_ranks:
            run_all([first.step, second.step])
        coming.result(20)
        cluster.kill(cluster.workers[2])
        push(first, "a", 1.0)
        with pytest.raises(PeerLost, match="worker 2"):
            value(first, "a")


def test_a_newcomer_is_refused_unless_there_is_room() -> None:
    with job() as cluster:
        run_all([lambda o=o: started(o) for o in cluster.workers])
        with pytest.raises(JoinError, match="rank 2 is not among the 2 workers of this job"):
            cluster.join().start()
    with job(max_workers=3, type="dist_async") as cluster:
        stores = run_all([lambda o=o: started(o, "dist_async") for o in cluster.workers])
        stores.append(started(cluster.join(), "dist_async"))
        with pytest.raises(JoinError, match="as many as --elastic allows"):
            cluster.join().start()
        run_all([kv.close for kv in stores])


def test_who_comes_to_a_job_that_ends_is_told_so() -> None:
    with job(max_workers=3) as cluster:
        first, second = run_all([lambda o=o: started(o) for o in cluster.workers])
        ending = soon(first.close)
        wait_until(lambda: second.status()["worker 0"] == "finished")
        with pytest.raises(JoinError, match="the job is ending: worker 0"):
            cluster.join().start()
        second.close()
        ending.result(20)


def test_who_would_begin_when_the_others_have_ended_does_not_join() -> None:
    with job(max_workers=3) as cluster:
        first, second = run_all([lambda o=o: started(o) for o in cluster.workers])
        third = soon(lambda: started(cluster.join()))
        wait_until(lambda: first.status().get("worker 2") == "up")
        closing = [soon(kv.close) for kv in (first, second)]
        with pytest.raises(JoinError, match=r"the job is ending: worker [01] .* has finished"):
            third.result(20)
        for one in closing:
            one.result(20)  # nobody has failed


def test_in_an_asynchronous_job_a_newcomer_just_begins() -> None:
    with job("dist_async", max_workers=3) as cluster:
        first, second = run_all([lambda o=o: started(o, "dist_async") for o in cluster.workers])
        run_all([lambda kv=kv: kv.set_optimizer(kvstore.optimizer.create("test")) for kv in (first, second)])
        run_all([lambda kv=kv: kv.init(KEYS, [np.zeros(SHAPE)] * 2) for kv in (first, second)])
        push(first, "a", 1.0)
        assert value(first, "a") == 1.0
        third = started(cluster.join(), "dist_async")
        third.set_optimizer(kvstore.optimizer.create("test"))
        third.init(KEYS, [np.zeros(SHAPE)] * 2)
        assert third.rank == 2 and third.start_step == 0 and third.live_ranks == [0, 1, 2]
        push(third, "a", 10.0)
        assert value(third, "a") == 11.0
        assert first.live_ranks == [0, 1]
        first.step()
        assert first.live_ranks == [0, 1, 2] and first.num_workers == 3 and first.status()["worker 2"] == "up"
        meeting = [soon(kv.barrier) for kv in (first, second)]
        assert not meeting[0].done()
        third.barrier()
        for one in meeting:
            one.result(20)
        run_all([first.close, second.close, third.close])


def test_a_scheduler_that_comes_again_knows_the_newcomers() -> None:
    with job(max_workers=4, max_restarts=1) as cluster:
        first, second = run_all([lambda o=o: started(o) for o in cluster.workers])
        third = coming(cluster, [first, second])
        successor = cluster.restart(cluster.scheduler)
        serving = threading.Thread(target=serve, args=(successor,), daemon=True)
        serving.start()
        run_all([kv.barrier for kv in (first, second, third)])  # when there is a scheduler again
        fourth = coming(cluster, [first, second, third])
        assert fourth.rank == 3 and fourth.live_ranks == [0, 1, 2, 3]
        with pytest.raises(JoinError, match="as many as --elastic allows"):
            cluster.join().start()
        run_all([kv.close for kv in (first, second, third, fourth)])
        serving.join(10)


def test_all_who_take_part_come_to_a_collective_call(tmp_path: Path) -> None:
    with job(max_workers=3) as cluster:
        first, second = run_all([lambda o=o: started(o) for o in cluster.workers])
        run_all([lambda kv=kv: kv.init(KEYS, [np.ones(SHAPE)] * 2) for kv in (first, second)])
        third = soon(lambda: started(cluster.join()))
        wait_until(lambda: first.status().get("worker 2") == "up")
        run_all([lambda kv=kv: kv.save(tmp_path / "before") for kv in (first, second)])
        while 2 not in first.live_ranks:
            run_all([first.step, second.step])
        stores = [first, second, third.result(20)]
        stores[2].init(KEYS, [np.zeros(SHAPE)] * 2)
        stores[2].barrier()  # as others did before their first step
        saved = [soon(lambda kv=kv: kv.save(tmp_path / "after")) for kv in stores[:2]]
        assert not (tmp_path / "after").exists()
        stores[2].save(tmp_path / "after")
        for one in saved:
            one.result(20)
        assert (tmp_path / "before").exists() and (tmp_path / "after").exists()
        assert value(stores[2], "a") == 1.0
        run_all([kv.close for kv in stores])


def test_the_steps_of_a_job_that_was_saved_are_not_those_of_this_one(tmp_path: Path) -> None:
    for ahead in (9, 0):
        with job(max_workers=3) as cluster:
            stores = run_all([lambda o=o: started(o) for o in cluster.workers])
            run_all([lambda kv=kv: kv.init(KEYS, [np.zeros(SHAPE)] * 2) for kv in stores])
            if not ahead:
                run_all([lambda kv=kv: kv.load(tmp_path / "saved") for kv in stores])
            for kv in stores * ahead:
                kv.step()
            for kv in stores:
                push(kv, "a", 1.0)
            if ahead:
                run_all([lambda kv=kv: kv.save(tmp_path / "saved") for kv in stores])
            else:
                for kv in stores:
                    assert value(kv, "a") == 2.0
                stores.append(coming(cluster, stores, pushing=True))
                stores[2].init(KEYS, [np.zeros(SHAPE)] * 2)
                for kv in stores:
                    push(kv, "a", 1.0)
                assert {value(kv, "a") for kv in stores} == {3.0}
            run_all([kv.close for kv in stores])


def coming(cluster: InprocCluster, others: list[KVStore], pushing: bool = False) -> KVStore:
    """One more worker, while the others go on."""
    office = cluster.join()
    newcomer = soon(lambda: started(office))
    while len(others[0].live_ranks) == len(others):
        for kv in others:
            if pushing:
                push(kv, "a", 1.0)
        for kv in others:
            assert not pushing or value(kv, "a") == len(others)
        run_all([kv.step for kv in others])
    wait_until(newcomer.done)
    kv = newcomer.result()
    while others[0]._step > kv._step:
        kv.step()
    assert isinstance(kv, KVStore)
    return kv


# -- the brain, by itself ---------------------------------------------------------------------------------------------


def ask(members: Members, rank: int, what: str, value: Any = None) -> tuple[Ticket, list[Ticket]]:
    ticket = Ticket(f"{what} of {rank}", rank)
    return ticket, members.ask(ticket, what, value)


def test_a_newcomer_is_due_in_the_first_step_that_nobody_has_begun() -> None:
    members = Members(2)
    assert ask(members, 0, "begin", 4)[0].body == []
    ticket, done = ask(members, 2, "join")
    assert done == [ticket] and ticket.body == 5
    assert ask(members, 3, "join")[0].body == 6  # the next one's is later
    assert ask(members, 1, "begin", 5)[0].body == [[2, 5]] and ask(members, 1, "begin", 6)[0].body == [[2, 5], [3, 6]]
    assert members.due(4) == {0, 1} and members.due(5) == {0, 1, 2} and members.due(6) == {0, 1, 2, 3}


def test_it_starts_when_all_others_have_begun_its_first_step() -> None:
    members = Members(2)
    ask(members, 2, "join")
    start, done = ask(members, 2, "start", [[2, 1]])
    assert done == []
    waits_for = [f"worker {rank} (to begin step 1)" for rank in (0, 1)]
    assert members.missing(lambda token: token == "start of 2") == waits_for
    ask(members, 0, "due", [[2, 1]])
    told, done = ask(members, 1, "due", [[2, 1]])
    assert done == [told, start] and start.error is None


@pytest.mark.parametrize("error", [WorkerDropped, WorkerFinished])
def test_who_ends_before_that_is_not_waited_for(error: Any) -> None:
    members = Members(2)
    ask(members, 2, "join")
    start, _ = ask(members, 2, "start", [[2, 1]])
    ask(members, 0, "due", [[2, 1]])
    assert members.on_peer_ended(1, error(node="worker 1", reason="")) == [start]
    assert (start.error is None) == (error is WorkerDropped)


def test_who_was_lost_before_others_tell_of_it_is_not_needed() -> None:
    members = Members(2)
    members.on_peer_ended(2, WorkerDropped(node="worker 2", reason=""))
    ask(members, 0, "due", [[2, 3]])
    assert members.due(9) == {0, 1}


def test_the_members_of_a_round_do_not_depend_on_who_is_there_first() -> None:
    members = Members(2)
    ask(members, 0, "begin", 4)
    for rank in (2, 3):
        ask(members, rank, "join")
    heads = {0: 5, 1: 5, 2: 5, 3: 6}
    for there in itertools.chain.from_iterable(itertools.combinations(heads, n) for n in range(1, 5)):
        ranks, missing = members.round_of({rank: heads[rank] for rank in there})
        assert missing or ranks == [0, 1, 2]
    assert members.round_of({0: 4, 1: 5, 2: 5}) == ([0, 1], set())  # a key that worker 1 did not push in step 4


def test_a_server_that_was_restarted_asks_who_is_where_before_it_lets_anybody_in() -> None:
    before, members = Members(2), Members(2)
    ask(before, 0, "begin", 4)
    ask(before, 2, "join")
    ask(before, 0, "due", [[2, 5]])
    members.from_kept(before.to_kept())
    assert ask(members, 3, "join")[1] == []
    ask(members, 0, "begin", 7)
    ask(members, 1, "begin", 6)
    assert members.missing(lambda token: token == "join of 3") == ["worker 2 (to begin its next step)"]
    _, done = ask(members, 2, "begin", 7)
    assert [ticket.body for ticket in done] == [[[2, 5]], 8]
    start, _ = ask(members, 2, "start", [[2, 5]])
    assert ask(members, 1, "due", [[2, 5]])[1][1:] == [start]

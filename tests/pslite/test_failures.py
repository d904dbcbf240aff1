"""A process dies at the start, in a barrier, in a push or at the exit: everybody else hears of it, by name, soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from pslite import ALL, WORKER_GROUP, Config, InprocCluster, KVServer, KVServerDefaultHandle, KVWorker, Postoffice
from pslite.errors import ClosedError, PeerError, PeerLost, WorkerFailed, WorkerFinished
from pslite.van.inproc import Hub, InprocVan
from tests.harness import wait_until

SOON = 3.0  # seconds: the bound for everybody to hear of a death
KEYS = np.array([1, 2**63 + 1], np.uint64)


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=3, servers=2) as cluster:
        yield cluster


def victim_of(cluster: InprocCluster, name: str) -> Postoffice:
    return next(office for office in cluster.offices if office.name == name)


def errors_after(kill: Callable[[], None], jobs: dict[str, Callable[[], object]]) -> dict[str, BaseException | None]:
    """Start jobs in threads, then kill; what each raised. Fails unless all end soon."""
    result: dict[str, BaseException | None] = {}

    def run(name: str, job: Callable[[], object]) -> None:
        try:
            job()
            result[name] = None
        except Exception as error:  # the test looks at it
            result[name] = error

    threads = [threading.Thread(target=run, args=item) for item in jobs.items()]
    for thread in threads:
        thread.start()
    kill()
    start = time.monotonic()
    for thread in threads:
        thread.join(SOON + 7)
    assert not any(thread.is_alive() for thread in threads), "somebody hangs"
    assert time.monotonic() - start < SOON
    return result


@pytest.mark.parametrize("dead", ["worker 1", "server 1", "scheduler"])
def test_in_a_barrier(cluster: InprocCluster, dead: str) -> None:
    victim = victim_of(cluster, dead)
    others = [office for office in cluster.offices if office is not victim]
    jobs = {office.name: lambda office=office: office.barrier(ALL) for office in others}
    errors = errors_after(lambda: cluster.kill(victim), jobs)
    assert len(errors) == 5
    for name, error in errors.items():
        assert isinstance(error, PeerLost), name
        assert dead in str(error)


@pytest.mark.parametrize("dead", ["server 1", "scheduler"])
def test_in_a_push(cluster: InprocCluster, dead: str) -> None:
    victim = victim_of(cluster, dead)
    for office in cluster.servers:
        KVServer(0, office).set_handle(lambda meta, pairs, server: None)  # rounds that are never complete
    workers = [KVWorker(0, 0, office) for office in cluster.workers]
    jobs = {kv.office.name: lambda kv=kv: kv.wait(kv.push(KEYS, np.ones(2))) for kv in workers}
    errors = errors_after(lambda: cluster.kill(victim), jobs)
    for error in errors.values():
        assert isinstance(error, PeerLost)
        assert dead in str(error)


def test_a_dead_worker_is_known_to_the_servers_which_answer_its_peers(cluster: InprocCluster) -> None:
    parked: list[tuple[object, KVServer]] = []

    def serve(office: Postoffice) -> None:
        server = KVServer(0, office)
        server.set_handle(lambda meta, pairs, server: parked.append((meta, server)))

        def on_end(node: int, error: PeerError) -> None:
            for meta, owner in parked:
                if owner is server:
                    server.error(meta, error)  # type: ignore[arg-type]

        office.on_peer_ended(on_end)

    for office in cluster.servers:
        serve(office)
    workers = [KVWorker(0, 0, office) for office in cluster.workers[:2]]
    jobs = {kv.office.name: lambda kv=kv: kv.wait(kv.push(KEYS, np.ones(2))) for kv in workers}
    errors = errors_after(lambda: cluster.kill(cluster.workers[2]), jobs)
    assert all(isinstance(error, PeerLost) and "worker 2" in str(error) for error in errors.values())


@pytest.mark.parametrize("dead", ["worker 1", "server 1", "scheduler"])
def test_at_the_exit(cluster: InprocCluster, dead: str) -> None:
    """Some have left already, one dies instead."""
    victim = victim_of(cluster, dead)
    others = [office for office in cluster.offices if office is not victim]
    jobs = {office.name: office.finalize for office in others}
    errors = errors_after(lambda: cluster.kill(victim), jobs)
    assert all(isinstance(error, PeerError) and dead in str(error) for error in errors.values())


@pytest.mark.parametrize("dead", ["worker 1", "scheduler"])
def test_of_those_who_wait_for_the_others_end(cluster: InprocCluster, dead: str) -> None:
    victim = victim_of(cluster, dead)
    jobs = {o.name: lambda o=o: o.leave(wait=True, timeout=20) for o in cluster.workers if o.rank != 1}
    errors = errors_after(lambda: cluster.kill(victim), jobs)
    assert len(errors) == 2
    assert all(isinstance(error, PeerLost) and dead in str(error) for error in errors.values())


@pytest.mark.parametrize("dead", ["worker", "server", "scheduler"])
def test_at_the_start(dead: str) -> None:
    """The job is not complete: one worker is missing, and one that has joined dies."""
    hub = Hub()
    config = Config(root="inproc://root", num_workers=3, num_servers=2, start_timeout=30.0)
    offices = {
        name: Postoffice(replace(config, role=name.split()[0]), van=InprocVan(hub, name), rng=Random(name))
        for name in ("scheduler", "server 0", "server 1", "worker 0", "worker 1")
    }
    victim = offices[dead if dead == "scheduler" else dead + " 1"]

    def kill() -> None:
        scheduler = offices["scheduler"]._core
        wait_until(lambda: scheduler.scheduler and len(scheduler.scheduler.membership.members) == 4)
        van = victim.van
        assert isinstance(van, InprocVan)
        hub.kill(van)

    jobs = {name: office.start for name, office in offices.items() if office is not victim}

    def start_in_vain() -> None:
        with pytest.raises(ClosedError):
            victim.start()

    ending = threading.Thread(target=start_in_vain)
    ending.start()
    try:
        errors = errors_after(kill, jobs)
    finally:
        victim.close()
        ending.join()
        for office in offices.values():
            office.close()
    assert all(isinstance(error, PeerLost) and dead in str(error) for error in errors.values()), errors


def test_requests_to_the_dead_fail_at_once(cluster: InprocCluster) -> None:
    kv = KVWorker(0, 0, cluster.workers[0])
    cluster.kill(cluster.servers[1])
    wait_until(lambda: cluster.workers[0].ended(10))
    with pytest.raises(PeerLost, match="server 1"):
        kv.wait(kv.push(KEYS, np.ones(2)))


def test_the_living_go_on_with_each_other(cluster: InprocCluster) -> None:
    KVServer(0, cluster.servers[0]).set_handle(KVServerDefaultHandle())
    cluster.kill(cluster.workers[2])
    wait_until(lambda: cluster.servers[0].ended(13))
    kv = KVWorker(0, 0, cluster.workers[0])
    kv.wait(kv.push([1], np.ones(1)))
    assert isinstance(cluster.servers[0].first_failure, PeerLost)
    with pytest.raises(PeerLost, match="worker 2"):
        cluster.workers[0].barrier(WORKER_GROUP)


def test_an_exception_in_a_worker_is_told_to_all(cluster: InprocCluster) -> None:
    waiting = {o.name: lambda o=o: o.barrier(WORKER_GROUP) for o in cluster.workers[1:]}
    errors = errors_after(lambda: cluster.workers[0].leave("failed", "ValueError: bad data"), waiting)
    for error in errors.values():
        assert isinstance(error, WorkerFailed)
        assert "worker 0" in str(error)
        assert "ValueError: bad data" in str(error)


def test_one_with_fewer_batches_ends_the_others_wait(cluster: InprocCluster) -> None:
    waiting = {o.name: lambda o=o: o.barrier(WORKER_GROUP) for o in cluster.workers[1:]}
    errors = errors_after(cluster.workers[0].leave, waiting)
    for error in errors.values():
        assert isinstance(error, WorkerFinished)
        assert "the same number of batches" in str(error)


def test_the_dead_process_itself_finds_out(cluster: InprocCluster) -> None:
    """Cut off from all others, as by a broken network: its own scheduler connection is lost to it."""
    victim = cluster.workers[0]
    errors = errors_after(lambda: cluster.kill(cluster.scheduler), {"it": lambda: victim.barrier(ALL)})
    assert isinstance(errors["it"], PeerLost)
    with pytest.raises(PeerLost, match="scheduler"):
        victim.barrier(ALL)
    victim.finalize()  # there is nobody left to say goodbye to
    with pytest.raises(ClosedError):
        victim.barrier(ALL)


def test_a_job_with_a_death_is_over_and_not_clean(cluster: InprocCluster) -> None:
    cluster.kill(cluster.workers[2])
    for office in cluster.workers[:2]:
        office.leave()
    for office in cluster.servers:
        office.wait_job_over()
        assert not office.job_clean

"""A process's place in the job, on the in-process van: joining, barriers, the directory, leaving."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pslite import ALL, SCHEDULER, SERVER_GROUP, WORKER_GROUP, Config, InprocCluster, Postoffice, SimpleApp, run_all
from pslite.errors import (
    BarrierTimeout,
    ClosedError,
    ConfigError,
    ConflictError,
    JoinError,
    RendezvousTimeout,
    RequestTimeout,
    WorkerFinished,
)
from pslite.van.inproc import Hub, InprocVan


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=3, servers=2) as cluster:
        yield cluster


class Loose:
    """Postoffices that are not started together."""

    def __init__(self, **settings: Any) -> None:
        self.hub = Hub()
        self.config = Config(**{"root": "inproc://scheduler", "timeout": 30.0, "start_timeout": 10.0, **settings})
        self.offices: list[Postoffice] = []

    def office(self, role: str, rank: int | None = None, **settings: Any) -> Postoffice:
        van = InprocVan(self.hub, f"{role} {len(self.offices)}")
        config = replace(self.config, role=role, rank=rank, **settings)
        self.offices.append(Postoffice(config, van=van, rng=Random(len(self.offices))))
        return self.offices[-1]

    def errors_of_start(self) -> list[BaseException | None]:
        """Start all of them; what each start raised."""

        def start(office: Postoffice) -> BaseException | None:
            try:
                office.start()
            except Exception as error:  # the test looks at it
                return error
            return None

        return run_all([lambda office=office: start(office) for office in self.offices])

    def close(self) -> None:
        for office in self.offices:
            office.close()


@pytest.fixture
def loose(request: pytest.FixtureRequest) -> Iterator[Loose]:
    made = Loose(**getattr(request, "param", {}))
    yield made
    made.close()


def everywhere(cluster: InprocCluster, offices: list[Postoffice], what: Any) -> list[Any]:
    return run_all([lambda office=office: what(office) for office in offices])


# Joining


def test_ids_ranks_and_counts(cluster: InprocCluster) -> None:
    assert [o.node for o in cluster.offices] == [1, 8, 10, 9, 11, 13]
    assert [o.rank for o in cluster.workers] == [0, 1, 2]
    assert [o.rank for o in cluster.servers] == [0, 1]
    assert all((o.num_workers, o.num_servers) == (3, 2) for o in cluster.offices)
    assert [o.name for o in cluster.offices[:4]] == ["scheduler", "server 0", "server 1", "worker 0"]
    assert cluster.workers[0].node_ids(SERVER_GROUP + WORKER_GROUP) == [8, 10, 9, 11, 13]
    assert cluster.workers[0].server_key_ranges() == [(0, 2**63), (2**63, 2**64)]
    assert "worker 1 joined" in repr(cluster.workers[1])


@pytest.mark.parametrize("loose", [{"num_workers": 3}], indirect=True)
def test_wished_ranks_are_granted(loose: Loose) -> None:
    loose.office("scheduler")
    loose.office("server")
    wished = [loose.office("worker", rank) for rank in (2, 0)]
    other = loose.office("worker")
    assert loose.errors_of_start() == [None] * 5
    assert [o.rank for o in wished] == [2, 0]
    assert other.rank == 1


@pytest.mark.parametrize("loose", [{"num_workers": 2, "start_timeout": 0.6}], indirect=True)
def test_a_rank_that_is_taken_is_refused(loose: Loose) -> None:
    loose.office("scheduler")
    loose.office("server")
    loose.office("worker", 1)
    loose.office("worker", 1)
    errors = loose.errors_of_start()
    refused = [e for e in errors[2:] if type(e) is JoinError]
    assert len(refused) == 1
    assert "has that rank: give every worker its own DMLC_RANK" in str(refused[0])
    others = [e for e in errors if e is not refused[0]]
    assert all(isinstance(e, RendezvousTimeout) and e.missing == ["worker 0"] for e in others)


@pytest.mark.parametrize("loose", [{"job": "ours", "start_timeout": 0.6}], indirect=True)
def test_a_process_of_another_job_is_refused(loose: Loose) -> None:
    loose.office("scheduler")
    loose.office("server")
    loose.office("worker", job="theirs")
    error = loose.errors_of_start()[2]
    assert isinstance(error, JoinError)
    assert "it belongs to job 'theirs', this is job 'ours'" in str(error)


def test_a_process_too_many_is_refused(cluster: InprocCluster) -> None:
    config = replace(cluster.workers[0].config, rank=None)
    office = Postoffice(config, van=InprocVan(cluster.hub, "late"))
    with pytest.raises(JoinError, match="has its 3 workers already"):
        office.start()


@pytest.mark.parametrize("loose", [{"num_workers": 2, "num_servers": 2, "start_timeout": 3.0}], indirect=True)
def test_the_missing_are_named_with_what_the_launcher_knows(loose: Loose, tmp_path: Path) -> None:
    table = [
        {"role": "worker", "rank": 0, "pid": 11, "exit": None},
        {"role": "worker", "rank": 1, "pid": 12, "exit": None},
        {"role": "server", "rank": 0, "pid": 13, "exit": None},
        {"role": "server", "rank": 1, "pid": 14, "exit": None},
    ]
    (tmp_path / "processes.json").write_text(json.dumps(table))
    loose.office("scheduler", job_dir=str(tmp_path))
    loose.office("worker", 0)
    loose.office("server", 1)
    errors = loose.errors_of_start()
    assert all(isinstance(error, RendezvousTimeout) for error in errors)
    text = str(errors[1])
    assert text == str(errors[0])
    assert "worker 1" in text
    assert "server 0" in text
    assert "worker 0" not in text
    assert "DMLC_NUM_WORKER" in text


@pytest.mark.parametrize("loose", [{"num_workers": 2, "start_timeout": 3.0}], indirect=True)
def test_who_is_alive_but_late_is_told_from_who_ended(loose: Loose, tmp_path: Path) -> None:
    table = [{"role": "worker", "rank": 1, "pid": 12, "exit": None}]
    (tmp_path / "processes.json").write_text(json.dumps(table))
    loose.office("scheduler", job_dir=str(tmp_path))
    loose.office("server", 0)
    loose.office("worker", 0)
    for error in loose.errors_of_start():
        assert "worker 1 (pid 12 runs, but has not called create())" in str(error)


@pytest.mark.parametrize("loose", [{"num_workers": 1, "start_timeout": 30.0}], indirect=True)
def test_a_process_that_ended_early_ends_the_start_long_before_the_limit(
    loose: Loose, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def the_worker_ends_when_the_server_has_joined(record: logging.LogRecord) -> None:
        if record.getMessage() == "waiting for worker 0":
            table = [{"role": "worker", "rank": 0, "pid": 12, "exit": 3}]
            (tmp_path / "processes.json").write_text(json.dumps(table))

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(caplog.handler, "emit", the_worker_ends_when_the_server_has_joined)
    loose.office("scheduler", job_dir=str(tmp_path))
    loose.office("server", 0)
    for error in loose.errors_of_start():
        assert "worker 0 (pid 12 ended with status 3 before it joined)" in str(error)


@pytest.mark.parametrize("table", ["", "[", "{}", "[1]", '[{"role": "worker"}]'])
def test_a_table_that_cannot_be_read_is_no_reason_to_fail(loose: Loose, tmp_path: Path, table: str) -> None:
    (tmp_path / "processes.json").write_text(table)
    loose.office("scheduler", job_dir=str(tmp_path))
    loose.office("server")
    loose.office("worker")
    assert loose.errors_of_start() == [None] * 3


@pytest.mark.parametrize("loose", [{"start_timeout": 0.1}], indirect=True)
def test_without_a_scheduler_the_address_is_named(loose: Loose) -> None:
    loose.office("worker")
    [error] = loose.errors_of_start()
    assert isinstance(error, RendezvousTimeout)
    assert "scheduler at inproc://scheduler" in str(error)


def test_a_root_is_needed() -> None:
    with pytest.raises(ConfigError, match="DMLC_PS_ROOT_URI is not set; give the address of the scheduler"):
        Postoffice(Config())


def test_settings_without_effect_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    Postoffice(Config(root="inproc://s", notices=("PS_RESEND is not needed",)), van=InprocVan(hub, "x"))
    assert "PS_RESEND is not needed" in caplog.text


# Barriers


@pytest.mark.parametrize("group", [WORKER_GROUP, SERVER_GROUP, SCHEDULER, SERVER_GROUP + WORKER_GROUP, ALL])
def test_all_members_of_a_group_meet(cluster: InprocCluster, group: int) -> None:
    members = [o for o in cluster.offices if o.node in o.node_ids(group)]
    for _ in range(3):
        everywhere(cluster, members, lambda office: office.barrier(group))


def test_nobody_passes_before_the_last_has_come(cluster: InprocCluster) -> None:
    passed: list[int] = []
    first = [
        threading.Thread(target=lambda o=office: (o.barrier(WORKER_GROUP), passed.append(o.rank)))
        for office in cluster.workers[:2]
    ]
    for thread in first:
        thread.start()
    with pytest.raises(RequestTimeout):  # a look-up of something that is not there: time passes
        cluster.workers[2].lookup(["nothing"], timeout=0.1)
    assert passed == []
    cluster.workers[2].barrier(WORKER_GROUP)
    for thread in first:
        thread.join()
    assert sorted(passed) == [0, 1]


def test_only_members_may_come(cluster: InprocCluster) -> None:
    with pytest.raises(ConfigError, match="worker 0 must be a member: use a sum of 1, 2 and 4"):
        cluster.workers[0].barrier(SERVER_GROUP)


def test_a_barrier_in_vain_names_the_missing(cluster: InprocCluster) -> None:
    with pytest.raises(BarrierTimeout) as caught:
        cluster.workers[1].barrier(WORKER_GROUP, timeout=0.05)
    assert caught.value.missing == ["worker 0", "worker 2"]
    assert "the barrier of all workers not done after 0.05 s, waiting for worker 0, worker 2" in str(caught.value)


def test_after_a_timeout_the_barrier_can_be_tried_again(cluster: InprocCluster) -> None:
    with pytest.raises(BarrierTimeout):
        cluster.workers[1].barrier(WORKER_GROUP, timeout=0.05)
    everywhere(cluster, cluster.workers, lambda office: office.barrier(WORKER_GROUP))
    with pytest.raises(BarrierTimeout) as caught:
        cluster.workers[0].barrier(WORKER_GROUP, timeout=0.05)
    assert caught.value.missing == ["worker 1", "worker 2"], "the old arrival was used up"


def test_customers_have_barriers_of_their_own(cluster: InprocCluster) -> None:
    office = cluster.workers[0]
    waiting = threading.Thread(target=lambda: office.barrier(WORKER_GROUP, customer=0))
    waiting.start()
    everywhere(cluster, cluster.workers, lambda o: o.barrier(WORKER_GROUP, customer=1))
    assert waiting.is_alive()
    everywhere(cluster, cluster.workers[1:], lambda o: o.barrier(WORKER_GROUP, customer=0))
    waiting.join()


# The directory


def test_what_one_publishes_all_find(cluster: InprocCluster) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(cluster.workers[2].lookup(["a", "b"])))
    thread.start()
    cluster.workers[0].publish({"a": [1, "float32"]})
    cluster.workers[0].publish({"b": None})
    thread.join()
    assert found == [{"a": [1, "float32"], "b": None}]


def test_a_look_up_in_vain_names_what_is_missing(cluster: InprocCluster) -> None:
    cluster.workers[0].publish({"a": 1})
    with pytest.raises(RequestTimeout) as caught:
        cluster.workers[1].lookup(["a", "b"], timeout=0.05)
    assert caught.value.missing == ["the init of 'b' by worker 0"]


def test_contradictory_records_are_refused(cluster: InprocCluster) -> None:
    cluster.workers[0].publish({"a": 1})
    with pytest.raises(ConflictError, match="the record of 'a' must be the same on every rank: rank 2 gave 2"):
        cluster.workers[2].publish({"a": 2})


# Waiting


def test_a_long_wait_is_logged_with_who_is_missing(
    cluster: InprocCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pslite.postoffice.office.SAY_SLOW_EVERY", 0.05)
    with pytest.raises(BarrierTimeout):
        cluster.workers[0].barrier(WORKER_GROUP, timeout=0.2)
    assert "the barrier of all workers is not done after 0 s, waiting for scheduler" in caplog.text


# Leaving


def test_everybody_finalizes(cluster: InprocCluster) -> None:
    everywhere(cluster, cluster.offices, lambda office: office.finalize())
    for office in cluster.offices:
        with pytest.raises(ClosedError):
            office.barrier(ALL)
        with pytest.raises(ClosedError, match="create a new one"):
            office.request(8, None, lambda _: None)  # type: ignore[arg-type]


def test_without_a_barrier_one_may_go_first(cluster: InprocCluster) -> None:
    cluster.workers[0].finalize(do_barrier=False)
    with pytest.raises(WorkerFinished, match=r"worker 0 .*has finished and will not contribute to this barrier"):
        cluster.workers[1].barrier(WORKER_GROUP)
    everywhere(cluster, cluster.offices[:3] + cluster.workers[1:], lambda o: o.finalize(do_barrier=False))


def test_servers_serve_until_every_worker_has_left(cluster: InprocCluster) -> None:
    over: list[int] = []
    serving = [
        threading.Thread(target=lambda o=office: (o.wait_job_over(), over.append(o.node)))
        for office in (cluster.scheduler, *cluster.servers)
    ]
    for thread in serving:
        thread.start()
    for worker in cluster.workers:
        assert over == []
        worker.leave()
    for thread in serving:
        thread.join()
    assert all(o.job_over and o.job_clean for o in cluster.servers)
    assert cluster.scheduler.first_failure is None


def test_leaving_with_wait_waits_for_all_workers(cluster: InprocCluster) -> None:
    with pytest.raises(BarrierTimeout) as caught:
        cluster.workers[0].leave(wait=True, timeout=0.05)
    assert sorted(name.split(" (")[0] for name in caught.value.missing) == ["worker 1", "worker 2"]


def test_a_failure_is_known_to_all(cluster: InprocCluster) -> None:
    ended = threading.Event()
    cluster.servers[0].on_peer_ended(lambda node, error: ended.set())
    cluster.workers[1].leave("failed", "ValueError: boom")
    assert ended.wait(10)
    assert "worker 1" in str(cluster.servers[0].ended(11))
    assert "ValueError: boom" in str(cluster.servers[0].first_failure)
    assert cluster.servers[0].ended(9) is None


def test_exit_callbacks_run_in_order_and_last(cluster: InprocCluster) -> None:
    ran: list[Any] = []
    office = cluster.workers[0]
    office.add_exit_callback(lambda: ran.append("first"))

    def second() -> None:
        with pytest.raises(ClosedError):
            office.barrier(ALL)
        ran.append("second")

    office.add_exit_callback(second)
    everywhere(cluster, cluster.offices, lambda o: o.finalize())
    assert ran == ["first", "second"]


def test_exit_callbacks_run_also_when_the_end_fails(cluster: InprocCluster) -> None:
    ran: list[str] = []
    cluster.workers[1].add_exit_callback(lambda: ran.append("ran"))
    cluster.workers[0].finalize(do_barrier=False)
    with pytest.raises(WorkerFinished):
        cluster.workers[1].finalize()
    assert ran == ["ran"]


def test_a_process_can_join_again(cluster: InprocCluster) -> None:
    for _ in range(3):
        with InprocCluster(workers=1, servers=1) as one:
            everywhere(one, one.offices, lambda office: office.finalize())


def test_jobs_in_one_process_do_not_meet(cluster: InprocCluster) -> None:
    with InprocCluster(workers=1, servers=1) as other:
        everywhere(other, other.workers, lambda office: office.barrier(WORKER_GROUP))
        with pytest.raises(BarrierTimeout):
            cluster.workers[0].barrier(WORKER_GROUP, timeout=0.02)


def test_closing_twice_is_no_error(cluster: InprocCluster) -> None:
    cluster.workers[0].close()
    cluster.workers[0].close()


def test_closing_ends_the_wait_of_another_thread(cluster: InprocCluster) -> None:
    office, raised = cluster.workers[0], []
    entered = threading.Event()

    def wait() -> None:
        entered.set()
        try:
            office.barrier(WORKER_GROUP)
        except ClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    entered.wait()
    office.close()
    thread.join(10)
    assert len(raised) == 1


# Customers


def test_a_customer_is_registered_once(cluster: InprocCluster) -> None:
    SimpleApp(5, 0, cluster.workers[0])
    with pytest.raises(ConfigError, match="app 5 has this customer already: give another id"):
        SimpleApp(5, 0, cluster.workers[0])
    SimpleApp(5, 1, cluster.workers[0])


def test_the_name_of_a_node_says_where_it_is(cluster: InprocCluster) -> None:
    name = cluster.workers[0].name_of(8)
    assert name.startswith("server 0 (pid ")
    assert cluster.workers[0].name_of(99) == "worker 45"


def test_threads_at_one_barrier_do_not_let_each_other_go(cluster: InprocCluster) -> None:
    passed: list[int] = []

    def come(worker: int) -> None:
        cluster.workers[worker].barrier(WORKER_GROUP)
        passed.append(worker)

    threads = [threading.Thread(target=come, args=(0,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    run_all([lambda: come(1), lambda: come(2)])
    assert sorted(passed) in ([0, 1, 2], [1, 2]), "the second thread of worker 0 waits for the others' second time"
    run_all([lambda: come(1), lambda: come(2)])
    for thread in threads:
        thread.join()
    assert sorted(passed) == [0, 0, 1, 1, 2, 2]

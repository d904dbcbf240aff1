"""The launcher's judgement, with a clock that stands still and no processes."""

from __future__ import annotations

from signal import SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGTERM

import pytest

from launcher.error_record import ErrorRecord
from launcher.spec import ProcessSpec
from launcher.supervise import Failed, HostLost, Kill, Overstayed, Say, Send, Supervisor

SCHEDULER, SERVER, WORKER0, WORKER1 = range(4)


def with_replicas(servers: int) -> Supervisor:
    places = [("worker", 0), *[("server", rank) for rank in range(servers)]]
    specs = [ProcessSpec(role, rank, "localhost", ("x",), {}) for role, rank in places]
    machine = Supervisor(specs, 10, 100.0, replicas=1)
    for index in range(len(places)):
        machine.started(index, 1000 + index)
    return machine


def test_a_server_goes_on_for_another_one_that_a_signal_ended() -> None:
    machine = with_replicas(2)
    [said] = machine.exited(1, -SIGKILL, 101)
    assert isinstance(said, Say)
    assert said.text.endswith("server 1 goes on for it, and the job would not survive the death of server 1")
    end(machine, 0, 0, 2)
    assert machine.finished(102)
    assert machine.status() == 0


def test_a_server_that_serves_for_two_is_not_survived() -> None:
    machine = with_replicas(2)
    machine.exited(2, -SIGKILL, 101)
    assert machine.exited(1, -SIGKILL, 102) == [Send(SIGTERM)]
    assert blamed(machine) == ["server 0"]


@pytest.mark.parametrize(("second", "survives"), [(1, False), (2, True), (3, False)])
def test_which_two_servers_of_four_may_die(second: int, survives: bool) -> None:
    machine = with_replicas(4)
    [said] = machine.exited(1, -SIGKILL, 101)
    assert isinstance(said, Say)
    assert said.text.endswith("the death of server 1 or server 3")
    machine.exited(1 + second, -SIGKILL, 102)
    assert (machine.cause is None) is survives


def test_a_server_with_an_error_is_a_failure_in_spite_of_replicas() -> None:
    machine = with_replicas(2)
    machine.exited(1, 1, 101, by(None))
    assert blamed(machine) == ["server 0"]


def supervisor(host: str = "localhost", max_restarts: int = 0) -> Supervisor:
    places = [("scheduler", 0), ("server", 0), ("worker", 0), ("worker", 1)]
    specs = [ProcessSpec(role, rank, "localhost", ("x",), {}) for role, rank in places]
    machine = Supervisor([*specs[:3], ProcessSpec("worker", 1, host, ("x",), {})], 10, 100.0, max_restarts)
    for index in range(4):
        machine.started(index, 1000 + index)
    return machine


def end(machine: Supervisor, code: int, *indexes: int, now: float = 101.0) -> None:
    for index in indexes:
        machine.exited(index, code, now)


def test_a_job_whose_processes_all_end_with_0_is_a_success() -> None:
    machine = supervisor()
    end(machine, 0, WORKER0, SERVER, WORKER1)
    assert not machine.finished(101)
    end(machine, 0, SCHEDULER)
    assert machine.finished(101)
    assert machine.status() == 0


def test_the_first_failure_stops_the_rest_and_gives_the_status() -> None:
    machine = supervisor()
    assert machine.exited(WORKER1, 3, 101) == [Send(SIGTERM)]
    assert machine.exited(WORKER0, 4, 101.1) == []
    assert isinstance(machine.cause, Failed)
    assert machine.cause.process.spec.label == "worker 1"
    assert [p.spec.label for p in machine.cause.stopped] == ["scheduler", "server 0", "worker 0"]
    end(machine, -SIGTERM, SCHEDULER, SERVER)
    assert machine.finished(102)
    assert machine.status() == 3


def by(label: str | None, time: float = 1e9) -> ErrorRecord:
    return ErrorRecord(time, "an error", label)


def blamed(machine: Supervisor) -> list[str]:
    """The root cause, and who failed besides."""
    assert isinstance(machine.cause, Failed)
    return [p.spec.label for p in (machine.cause.process, *machine.cause.others)]


def test_a_consequence_waits_for_its_cause() -> None:
    machine = supervisor()
    assert machine.exited(WORKER0, 1, 101, by("worker 1")) == []
    assert machine.exited(SERVER, 1, 101.1) == []
    assert machine.tick(101.9) == []
    assert machine.exited(WORKER1, 3, 101.9, by(None)) == [Send(SIGTERM)]
    assert blamed(machine) == ["worker 1", "worker 0", "server 0"]
    assert machine.status() == 3


@pytest.mark.parametrize(
    ("index", "code", "record"),
    [
        (WORKER1, 3, None),
        (WORKER1, -SIGKILL, None),
        (WORKER1, 3, by(None)),
        (WORKER1, 3, by("worker 1")),
        (SERVER, 3, by(None)),
        (SERVER, -SIGKILL, None),
    ],
)
def test_a_failure_that_nobody_else_has_caused_stops_at_once(index: int, code: int, record: ErrorRecord | None) -> None:
    machine = supervisor()
    assert machine.exited(SCHEDULER, 1, 101) == []
    assert machine.exited(index, code, 101.1, record) == [Send(SIGTERM)]
    assert blamed(machine) == [machine.processes[index].spec.label, "scheduler"]


def test_a_cause_that_does_not_end_is_waited_for_no_longer_than_a_second() -> None:
    machine = supervisor()
    machine.exited(WORKER0, 4, 101, by("worker 1"))
    machine.exited(SERVER, 1, 101.5, by("worker 1"))
    assert machine.deadline() == 102
    assert machine.tick(102) == [Send(SIGTERM)]
    assert machine.deadline() == 112
    assert machine.exited(WORKER1, 3, 102.1, by(None)) == []
    assert blamed(machine) == ["worker 0", "server 0"]
    assert machine.status() == 4


def test_of_consequences_only_the_one_recorded_first_is_named() -> None:
    """Worker 1 finished early: worker 0 failed because of that, and the server because of worker 0."""
    machine = supervisor()
    end(machine, 0, WORKER1)
    machine.exited(SERVER, 1, 101, by("worker 0", 1e9 + 1))
    machine.exited(WORKER0, 4, 101.1, by("worker 1", 1e9))
    assert machine.tick(102) == [Send(SIGTERM)]
    assert blamed(machine) == ["worker 0", "server 0"]
    assert machine.status() == 4


def test_a_server_that_fails_alone_fails_the_job() -> None:
    machine = supervisor()
    machine.exited(SERVER, 5, 101)
    end(machine, 0, WORKER0, WORKER1)
    assert machine.deadline() == 102
    end(machine, 0, SCHEDULER)
    assert machine.finished(101)
    assert blamed(machine) == ["server 0"]
    assert machine.status() == 5


def test_ctrl_c_while_the_cause_is_waited_for_stops_at_once_and_keeps_the_failure() -> None:
    machine = supervisor()
    machine.exited(WORKER0, 4, 101, by("worker 1"))
    assert machine.signalled(SIGINT, 101.2) == [Send(SIGTERM)]
    assert Send(SIGKILL) in machine.signalled(SIGINT, 101.3)
    assert machine.status() == 4


def test_a_signal_is_128_more() -> None:
    machine = supervisor()
    machine.exited(SERVER, -SIGKILL, 101)
    assert machine.status() == 137


def test_what_does_not_end_is_killed_after_the_grace() -> None:
    machine = supervisor()
    machine.exited(WORKER0, 3, 101)
    assert machine.tick(110.9) == []
    assert machine.deadline() == 111
    assert machine.tick(111) == [Send(SIGKILL)]
    assert not machine.finished(115)


def test_what_cannot_even_be_killed_is_given_up() -> None:
    machine = supervisor()
    machine.exited(WORKER0, 3, 101)
    machine.tick(111)
    assert machine.deadline() == 116
    assert machine.finished(116)
    assert machine.status() == 3


def test_ctrl_c_goes_on_to_sigterm_and_sigkill() -> None:
    machine = supervisor()
    say, send = machine.signalled(SIGINT, 101)
    assert say == Say("SIGINT: stopping 4 processes; press Ctrl-C to kill at once")
    assert send == Send(SIGINT)
    assert machine.tick(111) == [Send(SIGTERM)]
    assert machine.tick(121) == [Send(SIGKILL)]
    assert machine.status() == 130


def test_a_second_ctrl_c_kills_at_once() -> None:
    machine = supervisor()
    machine.signalled(SIGINT, 101)
    end(machine, 0, WORKER0)
    assert machine.signalled(SIGINT, 101.5) == [Say("killing 3 processes"), Send(SIGKILL)]
    assert machine.status() == 130


def test_ctrl_c_during_the_stop_after_a_failure_kills_at_once_and_keeps_the_status() -> None:
    machine = supervisor()
    machine.exited(WORKER0, 3, 101)
    assert Send(SIGKILL) in machine.signalled(SIGINT, 102)
    assert machine.status() == 3


def test_every_other_signal_stops_by_sigterm() -> None:
    for signum, status in ((SIGTERM, 143), (SIGHUP, 129), (SIGPIPE, 141)):
        machine = supervisor()
        assert machine.signalled(signum, 101)[1:] == [Send(SIGTERM)]
        assert machine.signalled(SIGTERM, 101) == []
        end(machine, 0, SCHEDULER, SERVER, WORKER0, WORKER1)
        assert machine.status() == status


def test_servers_have_the_grace_to_end_after_the_last_worker() -> None:
    machine = supervisor()
    end(machine, 0, WORKER0)
    assert machine.deadline() is None
    end(machine, 0, WORKER1, now=105)
    assert machine.deadline() == 115
    end(machine, 0, SERVER, now=106)
    assert machine.tick(114.9) == []
    assert machine.tick(115) == [Send(SIGTERM)]
    assert isinstance(machine.cause, Overstayed)
    assert [p.spec.label for p in machine.cause.processes] == ["scheduler"]
    assert machine.tick(125) == [Send(SIGKILL)]
    end(machine, -SIGKILL, SCHEDULER, now=125)
    assert machine.finished(125)
    assert machine.status() == 1


def test_a_command_that_cannot_be_started_has_the_shells_status() -> None:
    machine = Supervisor([process.spec for process in supervisor().processes], 10, 100)
    assert machine.could_not_start(0, "No such file or directory: x", 127, 100) == [Send(SIGTERM)]
    assert not machine.finished(100)
    for index in (1, 2, 3):
        assert machine.could_not_start(index, "No such file or directory: x", 127, 100) == []
    assert machine.finished(100)
    assert machine.status() == 127


def test_a_process_that_is_started_again_is_no_failure() -> None:
    machine = supervisor(max_restarts=2)
    text = "worker 1 on localhost (pid 1003) died: signal 9 (SIGKILL); restart 1 of 2"
    assert machine.died(WORKER1, -SIGKILL) == [Say(text)]
    machine.started(WORKER1, 2000)
    assert machine.processes[WORKER1].where == "worker 1 on localhost (pid 2000)"
    end(machine, 0, *range(4))
    assert machine.finished(101)
    assert machine.status() == 0


def test_one_death_more_than_there_are_restarts_is_a_failure() -> None:
    machine = supervisor(max_restarts=1)
    machine.died(WORKER1, -SIGKILL)
    machine.started(WORKER1, 2000)
    assert machine.exited(WORKER1, -SIGKILL, 101) == [Send(SIGTERM)]
    assert machine.status() == 137


def test_a_successor_that_cannot_be_started_is_a_failure() -> None:
    machine = supervisor(max_restarts=1)
    machine.died(WORKER1, -SIGKILL)
    assert machine.could_not_start(WORKER1, "No such file or directory: x", 127, 101) == [Send(SIGTERM)]
    assert machine.status() == 127


def test_a_death_while_the_job_is_being_stopped_is_not_worth_a_word() -> None:
    machine = supervisor(max_restarts=1)
    machine.signalled(SIGINT, 101)
    assert machine.died(WORKER1, -SIGINT) == []
    machine.started(WORKER1, 2000)
    end(machine, -SIGINT, *range(4))
    assert machine.status() == 130


def test_a_lost_process_is_killed_once() -> None:
    machine = supervisor(max_restarts=1)
    say, kill = machine.lost("worker", 1, 1003)
    assert say == Say("worker 1 on localhost (pid 1003) does not answer: killing it")
    assert kill == Kill(WORKER1, 1003)
    assert machine.lost("worker", 1, 1003) == []
    machine.died(WORKER1, -SIGKILL)
    machine.started(WORKER1, 2000)
    assert machine.lost("worker", 1, 1003) == [], "its successor is not"
    assert machine.lost("worker", 1, 2000)[1:] == [Kill(WORKER1, 2000)]


@pytest.mark.parametrize(("role", "rank", "pid"), [("worker", 0, 1003), ("server", 1, 1003), ("worker", 1, 1)])
def test_only_a_process_of_the_job_is_killed(role: str, rank: int, pid: int) -> None:
    assert supervisor(max_restarts=1).lost(role, rank, pid) == []


def test_a_process_that_has_ended_is_not_killed() -> None:
    machine = supervisor(max_restarts=1)
    end(machine, 0, WORKER1)
    assert machine.lost("worker", 1, 1003) == []


def test_losing_an_agent_ends_its_processes_and_stops_the_others() -> None:
    machine = supervisor(host="far")
    assert machine.host_lost("far", "no way there", 101) == [Send(SIGTERM)]
    assert [p.spec.label for p in machine.running()] == ["scheduler", "server 0", "worker 0"]
    assert machine.status() == 1


def on_hosts(*hosts: str, shrinks: bool = False, replicas: int = 0) -> Supervisor:
    """A scheduler on the first host; on each of the others a server and a worker."""
    places = [("scheduler", 0, hosts[0])]
    places += [(role, rank, host) for role in ("server", "worker") for rank, host in enumerate(hosts[1:])]
    specs = [ProcessSpec(role, rank, host, ("x",), {}) for role, rank, host in places]
    machine = Supervisor(specs, 10, 100.0, shrinks=shrinks, replicas=replicas, elsewhere=True)
    for index in range(len(places)):
        machine.started(index, 1000 + index)
    return machine


def test_a_job_goes_on_without_a_host_that_it_can_do_without() -> None:
    machine = on_hosts("a", "b", "c", shrinks=True, replicas=1)
    assert machine.host_lost("c", "nothing was heard", 101) == [
        Say("c: nothing was heard; the others go on without server 1, worker 1")
    ]
    end(machine, 0, 0, 1, 3)
    assert machine.finished(102)
    assert machine.status() == 0


@pytest.mark.parametrize(("shrinks", "replicas"), [(True, 0), (False, 1), (False, 0)])
def test_else_it_ends_and_the_host_is_named(shrinks: bool, replicas: int) -> None:
    machine = on_hosts("a", "b", "c", shrinks=shrinks, replicas=replicas)
    assert machine.host_lost("c", "nothing was heard", 101) == [Send(SIGTERM)]
    assert isinstance(machine.cause, HostLost)
    assert [p.spec.label for p in machine.cause.processes] == ["server 1", "worker 1"]


def test_a_host_whose_processes_have_ended_is_not_missed() -> None:
    machine = on_hosts("a", "b", "c")
    end(machine, 0, 2, 4)
    assert machine.host_lost("c", "it was switched off", 101) == [
        Say("c: it was switched off; the others go on without it")
    ]
    assert isinstance(on_hosts("a", "b").host_lost("d", "it is off", 101, needed=True)[0], Send)


def test_a_host_is_missed_later_than_its_processes_are_by_others() -> None:
    machine = on_hosts("a", "b", "c")
    machine.exited(3, 1, 101, by("worker 1"))
    assert machine.tick(102.9) == []
    assert machine.host_lost("c", "nothing was heard", 103) == [Send(SIGTERM)]
    assert isinstance(machine.cause, HostLost)

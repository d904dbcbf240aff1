from __future__ import annotations

from signal import SIGKILL, SIGSEGV, SIGTERM

from launcher.error_record import ErrorRecord
from launcher.logs import Tails
from launcher.report import final_report
from launcher.spec import ProcessSpec
from launcher.supervise import Supervisor


def job(argv: tuple[str, ...] = ("python", "x")) -> Supervisor:
    places = [("scheduler", 0), ("server", 0), ("worker", 0)]
    return Supervisor([ProcessSpec(role, rank, "node-b", argv, {}) for role, rank in places], grace=10, now=100.0)


def started() -> Supervisor:
    supervisor = job()
    for index in range(3):
        supervisor.started(index, 4711 + index)
    return supervisor


def report(supervisor: Supervisor, *stderr: str) -> list[str]:
    tails = Tails(3)
    tails.add(2, stderr)
    return final_report(supervisor, tails, None)


def test_a_failure_names_process_place_code_time_and_last_words() -> None:
    supervisor = started()
    supervisor.exited(2, 3, 141.25)
    supervisor.exited(0, -SIGTERM, 141.3)
    supervisor.exited(1, 9, 141.3)
    assert report(supervisor, "Traceback", "ValueError: no") == [
        "pslite: worker 0 on node-b (pid 4713) failed: exit code 3, 41.2 s after start",
        "  stopped after it: scheduler, server 0 (exit code 9)",
        "  last 2 lines of its stderr:",
        "    Traceback",
        "    ValueError: no",
    ]


def test_the_root_cause_is_named_and_who_failed_because_of_it() -> None:
    supervisor = started()
    supervisor.exited(1, 1, 101)
    supervisor.exited(2, 3, 101.2, ErrorRecord(1e9, "ValueError: no", None))
    supervisor.exited(0, 1, 101.3, ErrorRecord(1e9, "worker 0 failed", "worker 0"))
    assert report(supervisor, "ValueError: no") == [
        "pslite: worker 0 on node-b (pid 4713) failed: exit code 3, 1.2 s after start",
        "  error: ValueError: no",
        "  failed because of it: server 0, scheduler",
        "  last line of its stderr:",
        "    ValueError: no",
    ]


def test_a_cause_that_never_ended_is_named_as_such() -> None:
    supervisor = started()
    supervisor.exited(2, 1, 101, ErrorRecord(1e9, "server 0 is gone", "server 0"))
    supervisor.exited(0, 1, 101.1)
    supervisor.tick(102)
    supervisor.exited(1, -SIGKILL, 112)
    assert report(supervisor) == [
        "pslite: worker 0 on node-b (pid 4713) failed: exit code 1, 1.0 s after start, caused by server 0",
        "  error: server 0 is gone",
        "  failed too: scheduler",
        "  stopped after it: server 0 (killed)",
        "  it wrote nothing to stderr",
    ]


def test_a_kill_is_named_and_its_likely_reason_given() -> None:
    supervisor = started()
    supervisor.exited(2, -SIGKILL, 101)
    supervisor.exited(0, -SIGKILL, 111)
    supervisor.exited(1, 0, 101)
    assert report(supervisor) == [
        "pslite: worker 0 on node-b (pid 4713) died: signal 9 (SIGKILL), 1.0 s after start",
        "  likely the kernel's out-of-memory killer: see dmesg",
        "  stopped after it: scheduler (killed), server 0",
        "  it wrote nothing to stderr",
    ]


def test_a_command_that_was_quoted_as_one_word_gets_a_hint() -> None:
    supervisor = job(argv=("python train.py",))
    for index in range(3):
        supervisor.could_not_start(index, "No such file or directory: python train.py", 127, 100)
    assert report(supervisor) == [
        "pslite: scheduler on node-b could not be started: No such file or directory: python train.py",
        "  the command is a single word with spaces in it: give it unquoted, as separate words",
    ]


def test_who_overstayed_is_named() -> None:
    supervisor = started()
    supervisor.exited(2, 0, 101)
    supervisor.tick(111)
    supervisor.exited(0, -SIGKILL, 121)
    supervisor.exited(1, -SIGTERM, 111)
    assert report(supervisor) == [
        "pslite: all workers ended with 0; 10 s later these still ran and were stopped:",
        "  scheduler on node-b (pid 4711) (killed)",
        "  server 0 on node-b (pid 4712)",
    ]


def test_after_an_interruption_those_that_had_to_be_killed_are_named() -> None:
    supervisor = started()
    supervisor.signalled(SIGTERM, 101)
    supervisor.exited(0, 0, 101)
    supervisor.exited(1, -SIGKILL, 111)
    assert report(supervisor) == [
        "pslite: stopped by SIGTERM",
        "  did not end by themselves: server 0 (killed), worker 0 (still running)",
    ]


def test_an_interruption_before_anything_has_started_names_nobody() -> None:
    supervisor = job()
    supervisor.signalled(SIGTERM, 101)
    assert report(supervisor) == ["pslite: stopped by SIGTERM"]


def test_a_good_end_is_not_reported() -> None:
    supervisor = started()
    for index in (2, 1, 0):
        supervisor.exited(index, 0, 101)
    assert report(supervisor) == []


def test_a_job_that_ended_well_counts_its_restarts() -> None:
    supervisor = started()
    for index in (1, 2, 2):
        supervisor.died(index, -SIGKILL)
    for index in range(3):
        supervisor.exited(index, 0, 101.0)
    assert report(supervisor) == ["pslite: ended well after 3 restarts: server 0 (1), worker 0 (2)"]


def test_a_process_that_was_given_up() -> None:
    supervisor = started()
    supervisor.died(2, -SIGKILL)
    supervisor.started(2, 4720)
    supervisor.exited(2, -SIGSEGV, 102.0)
    supervisor.exited(0, -SIGTERM, 102.0)
    supervisor.exited(1, -SIGTERM, 102.0)
    assert report(supervisor, "bad") == [
        "pslite: worker 0 on node-b (pid 4720) died: signal 11 (SIGSEGV), 2.0 s after start; gave up after 1 restart",
        "  stopped after it: scheduler, server 0",
        "  last line of its stderr:",
        "    bad",
        "  1 restart: worker 0 (1)",
    ]


def test_a_process_that_was_killed_because_it_was_lost_did_not_run_out_of_memory() -> None:
    supervisor = started()
    supervisor.lost("worker", 0, 4713)
    supervisor.exited(2, -SIGKILL, 102.0)
    assert "out-of-memory" not in "".join(report(supervisor))

"""Requests for more or fewer workers or servers: what they come to, with no process, and how they travel."""

from __future__ import annotations

import threading
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from launcher import control, scale
from launcher.error_record import ErrorRecord
from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import parse
from launcher.scaling import Change, change, moved_text
from launcher.spec import JobSpec, plan
from launcher.supervise import Say, Supervisor


def job(*arguments: str, **environ: str) -> tuple[JobSpec, Supervisor]:
    spec = plan(parse([*arguments, "-s", "1", "python"], "launch.py"), (Host("localhost"),), environ)
    supervisor = Supervisor(spec.processes, 10, 100.0, spec.max_restarts, spec.shrinks)
    for index in range(len(spec.processes)):
        supervisor.started(index, 1000 + index)
    return spec, supervisor


def started(found: Change, supervisor: Supervisor) -> list[str]:
    for spec in found.start:
        index = supervisor.add(spec)
        supervisor.started(index, 1000 + index)
    return [spec.label for spec in found.start]


def test_as_many_are_started_as_are_missing() -> None:
    spec, supervisor = job("--elastic", "2:5")
    found = change(spec, supervisor, {"workers": 4})
    assert found.text == "4 workers: starting worker 2, worker 3" and found.end == ()
    assert started(found, supervisor) == ["worker 2", "worker 3"]
    assert found.start[1].env["DMLC_WORKER_ID"] == "3" and found.start[1].argv == ("python",)
    assert change(spec, supervisor, {"workers": 4}).text == "4 workers already"


def test_those_of_the_highest_ranks_end_and_no_rank_is_given_twice() -> None:
    spec, supervisor = job("--elastic", "2:5", "-n", "4", "--on-worker-lost", "shrink")
    found = change(spec, supervisor, {"workers": 2})
    assert (found.text, found.signum) == ("2 workers: ending worker 2, worker 3", SIGTERM)
    for process in found.end:
        process.ending = True
        supervisor.exited(supervisor.processes.index(process), -SIGTERM, 101)
    assert started(change(spec, supervisor, {"workers": 3}), supervisor) == ["worker 4"]


@pytest.mark.parametrize(
    ("arguments", "request_", "reason"),
    [
        (["-n", "2"], {"workers": 3}, "--elastic MIN:MAX"),
        (["--elastic", "2:3"], {"workers": 4}, "--elastic 2:3 allows no such number"),
        (["--elastic", "2:3"], {"workers": 1}, "--elastic 2:3 allows no such number"),
        (["--elastic", "2:3", "-n", "3"], {"workers": 2}, "--on-worker-lost shrink"),
        (["--elastic", "2:3"], {"workers": "3"}, "does not know the request"),
        (["--elastic", "2:3"], {}, "does not know the request"),
        (["-n", "2"], {"servers": 1}, "--max-restarts"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments: list[str], request_: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        change(*job(*arguments), request_)


def test_a_job_that_ends_takes_no_more() -> None:
    spec, supervisor = job("--elastic", "2:3")
    supervisor.exited(2, 0, 101)
    with pytest.raises(UsageError, match="the job is ending"):
        change(spec, supervisor, {"workers": 3})


def test_there_are_keys_for_so_many_ranks() -> None:
    spec, supervisor = job("--elastic", "2:3", "--on-worker-lost", "shrink", PSLITE_TRANSPORT="tcp")
    assert started(change(spec, supervisor, {"workers": 3}), supervisor) == ["worker 2"]
    supervisor.exited(4, -9, 101)
    with pytest.raises(UsageError, match="keys for ranks below 3 only"):
        change(spec, supervisor, {"workers": 3})


def test_a_newcomer_that_cannot_join_does_not_end_the_job() -> None:
    spec, supervisor = job("--elastic", "2:3")
    started(change(spec, supervisor, {"workers": 3}), supervisor)
    record = ErrorRecord(1.0, "JoinError: worker 2 cannot join: the job is ending", None)
    [said] = supervisor.exited(4, 1, 101, record)
    assert isinstance(said, Say) and "did not join" in said.text and supervisor.cause is None
    supervisor.exited(2, 0, 101)
    supervisor.exited(3, 0, 101)
    assert supervisor.deadline() == 111  # the rest has the grace to end


def test_the_agent_is_asked_for_servers() -> None:
    spec, supervisor = job("-n", "1", "--max-restarts", "1", "--max-servers", "3")
    assert change(spec, supervisor, {"servers": 3}) == Change("", servers=3)


def test_what_is_said_of_shards_that_have_moved() -> None:
    moved = [(1, 0, 1, 0.051), (2, 0, 2, 1.5)]
    names = "shard 1 from server 0 to 1 (0.05 s), shard 2 from server 0 to 2 (1.50 s)"
    assert moved_text(3, moved, "") == f"3 servers: moved {names}"
    assert moved_text(1, [], "") == "1 server already"
    assert moved_text(2, moved, "the job is over") == f"the job is over; moved were {names}"
    assert moved_text(2, [], "the job is over") == "the job is over"


def test_who_asks_for_servers_is_answered_when_they_have_moved(tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    listener = control.Control(str(tmp_path))
    request = ["--servers", "2", "--job", str(tmp_path)]
    statuses: list[int] = []
    try:
        first = threading.Thread(target=lambda: statuses.append(scale.main(request)))
        first.start()
        listener.serve(lambda request: None)
        second = threading.Thread(target=lambda: statuses.append(scale.main(request)))
        second.start()
        listener.serve(lambda request: None)
        second.join(10)
        assert statuses == [1]
        assert "is being changed" in capsys.readouterr().err
        listener.answer("done", "2 servers already")
        first.join(10)
        assert statuses == [1, 0]
        assert capsys.readouterr().out == "2 servers already\n"
        last = threading.Thread(target=lambda: statuses.append(scale.main(request)))
        last.start()
        listener.serve(lambda request: None)
    finally:
        listener.close()
    last.join(10)
    assert capsys.readouterr().err == "pslite scale: error: the job has ended\n"


def test_a_request_travels_to_the_launcher_and_its_answer_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.setattr(control, "parent", lambda: str(tmp_path))
    directory = tmp_path / "pslite-1"
    directory.mkdir()
    assert scale.main(["--workers", "3"]) == 1
    assert "no jobs of this user here can be scaled" in capsys.readouterr().err

    def act(request: dict[str, Any]) -> str:
        if request["workers"] > 3:
            raise UsageError("too many")
        return f"{request['workers']} it is"

    listener = control.Control(str(directory))
    try:
        for arguments, status, out, err in (
            (["--workers", "3"], 0, "3 it is\n", ""),
            (["--workers", "4", "--job", str(directory)], 1, "", "pslite scale: error: too many\n"),
        ):
            # ``jobs`` connects, too, and says nothing
            served = threading.Thread(target=lambda: [listener.serve(act) for _ in range(2 if status == 0 else 1)])  # noqa: B023
            served.start()
            assert scale.main(arguments) == status
            served.join(10)
            assert capsys.readouterr() == (out, err)
    finally:
        listener.close()
    assert scale.main(["--workers", "3", "--job", str(directory)]) == 1
    assert "does not answer" in capsys.readouterr().err

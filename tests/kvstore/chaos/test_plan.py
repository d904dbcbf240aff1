from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.chaos.__main__ import main
from kvstore.chaos.options import Options, parse
from kvstore.chaos.plan import plan
from kvstore.chaos.report import document, table
from kvstore.chaos.stores import ours
from kvstore.chaos.trial import Outcome


def test_a_seed_gives_the_same_plan_each_time() -> None:
    plans = [plan("kill-worker+pause-server", seed, 10.0, 3, 2) for seed in range(50)]
    assert plans == [plan("kill-worker+pause-server", seed, 10.0, 3, 2) for seed in range(50)]
    assert len({fault.at for faults in plans for fault in faults}) == 100
    assert {fault.target for faults in plans for fault in faults} == {
        *("worker 0", "worker 1", "worker 2"),
        *("server 0", "server 1"),
    }


def test_faults_come_in_the_order_of_time_while_the_job_runs() -> None:
    for seed in range(50):
        times = [fault.at for fault in plan("kill-worker+kill-server+pause-scheduler", seed, 10.0, 3, 2)]
        assert times == sorted(times)
        assert times[0] > 0 and times[-1] < 10


def test_all_options_arrive() -> None:
    line = "-n 4 -s 3 --type dist_sync --transport tcp --faults none,kill-worker+stop-server --seconds 2.5 --rounds 2"
    line += " --trials 7 --seed 3 --within 30 --must-survive --json --peer mxnet --peer-python p -- --log-dir logs"
    assert parse(line.split(), "pslite chaos") == Options(
        workers=4,
        servers=3,
        type="dist_sync",
        transport="tcp",
        faults=("none", "kill-worker+stop-server"),
        seconds=2.5,
        rounds=2,
        trials=7,
        seed=3,
        within=30.0,
        must_survive=True,
        peer="mxnet",
        peer_python="p",
        json=True,
        launcher=("--log-dir", "logs"),
    )


def test_without_a_seed_each_run_has_another_one() -> None:
    assert len({parse([], "pslite chaos").seed for _ in range(5)}) > 1


def test_an_unknown_fault_is_told_which_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--faults", "kill-worker,kill-printer"]) == 2
    error = capsys.readouterr().err
    assert "--faults='kill-printer' is not allowed; give none, or kill, restart, stop, pause or freeze" in error


def test_nobody_can_hear_garbage_but_those_who_listen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--faults", "garbage-worker"]) == 2
    assert "or garbage-server or garbage-scheduler" in capsys.readouterr().err


def test_a_peer_needs_its_interpreter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--peer", "mxnet", "--peer-python", "/no/python"]) == 2
    assert "no such interpreter; python -m venv mx && mx/bin/pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("case", "has"),
    [("garbage-server", "PSLITE_SECURITY=none"), ("restart-worker", "--max-restarts"), ("none", "dist_sync")],
)
def test_the_launcher_gets_what_a_case_needs(case: str, has: str) -> None:
    command = ours(Options(launcher=("--env", "TYPE=dist_sync")), case).command(Path("/there"))
    assert has in " ".join(command)
    assert ("--max-restarts" in command) == (case == "restart-worker")
    assert ("PSLITE_TRANSPORT=tcp" in command) == (case == "garbage-server")


def test_the_report_sums_up_the_trials_of_a_case() -> None:
    outcomes = [
        Outcome("kill-worker", 7, pushes=100, ended=0.5),
        Outcome("kill-worker", 8, pushes=50, ended=1.5, lost=2, problems=["key 0: 2 pushes are lost"]),
        Outcome("none", 7, "mxnet", pushes=10, hung=True, stacks="Thread 0x1"),
    ]
    lines = table(outcomes).splitlines()
    assert " ".join(lines[1].split()) == "kill-worker pslite 7-8 2 0 150 2 0 0 1 - - 0.50/1.50"
    assert " ".join(lines[2].split()) == "none mxnet 7 1 0 10 0 0 1 1 - - -"
    assert lines[3:] == [
        "pslite, kill-worker, seed 8: key 0: 2 pushes are lost",
        "mxnet, none, seed 7: the watchdog ended it:",
        "Thread 0x1",
    ]
    assert document(outcomes)["cases"][0]["ended"] == [0.5, 1.5]

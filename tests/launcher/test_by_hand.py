"""Processes that are started one by one with ``pslite run``."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher import by_hand
from launcher.hosts import Host
from launcher.joining import one_more
from launcher.options import parse
from launcher.spec import plan

from .launching import LONGEST, ROOT, environment

HELLO = str(ROOT / "examples" / "hello.py")
WORKER = ["--role", "worker", "--root", "tcp://127.0.0.1:9091"]
ENVIRONMENT = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]


def with_commands(**extra: str) -> dict[str, str]:
    """An environment that finds the ``pslite`` of this interpreter."""
    return environment(PYTHONPATH=str(ROOT), **extra) | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    }


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[ExitStack]:
    """Ends what a failing test has left running."""
    with ExitStack() as stack:
        yield stack


def shell(shells: ExitStack, line: str, directory: Path, **extra: str) -> subprocess.Popen[str]:
    """A line as somebody types it, in a terminal of its own."""
    process = subprocess.Popen(
        ["sh", "-c", f"exec {line}" if "=" not in line.split()[0] else line],
        cwd=directory,
        env=with_commands(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    shells.enter_context(process)
    shells.callback(process.kill)
    return process


def printed(scheduler: subprocess.Popen[str]) -> tuple[str, str]:
    """The lines that start a server and a worker, as the scheduler prints them."""
    assert scheduler.stderr
    head, server, worker = (scheduler.stderr.readline() for _ in range(3))
    assert head.startswith("pslite: the scheduler listens on tcp://127.0.0.1:"), head
    return server.strip(), worker.strip()


@pytest.mark.processes
@pytest.mark.parametrize("with_keys", [False, True], ids=["without keys", "with keys"])
def test_a_job_of_four_lines(tmp_path: Path, shells: ExitStack, with_keys: bool) -> None:
    """The first prints the others, which are copied as they are, with another rank if they say so."""
    command = f"{sys.executable} {HELLO} dist_sync"
    key = " --key keys" if with_keys else ""
    if with_keys:
        subprocess.run(["pslite", "keys", "keys", "-n", "2", "-s", "1"], cwd=tmp_path, env=with_commands(), check=True)
    scheduler = shell(shells, f"pslite run --role scheduler -n 2 -s 1{key} -- {command}", tmp_path)
    server_line, worker_line = printed(scheduler)
    assert worker_line.endswith("# and --rank 1" if with_keys else "# 2 times")
    second = worker_line.replace("--rank 0", "--rank 1")
    workers = [shell(shells, line, tmp_path) for line in (worker_line, second)]
    members = [scheduler, shell(shells, server_line, tmp_path), *workers]
    results = [process.communicate(timeout=LONGEST) for process in members]
    assert [process.returncode for process in members] == [0] * 4, results
    pulled = sorted(out for out, _ in results[2:])
    assert pulled == [f"worker {rank} of 2 pulls [3. 3. 3.]\n" for rank in (0, 1)]


@pytest.mark.processes
def test_the_lines_carry_what_must_be_the_same_for_all(tmp_path: Path, shells: ExitStack) -> None:
    line = f"pslite run --role scheduler --root tcp://127.0.0.1 -n 3 -s 2 -- {sys.executable} -c '' 'a b' '$(c)'"
    scheduler = shell(shells, line, tmp_path, PSLITE_SECURITY="none", PSLITE_REPLICAS="1")
    server, worker = printed(scheduler)
    assert server.startswith("PSLITE_SECURITY=none PSLITE_REPLICAS=1 pslite run --role server --root tcp://127.0.0.1:")
    assert worker.endswith(f" -n 3 -s 2 -- {sys.executable} -c '' 'a b' '$(c)'  # 3 times")
    assert scheduler.wait(LONGEST) == 0


JOINER = """
import sys, time
import kvstore
kvstore.serve()
import numpy as np
kv = kvstore.create("dist_sync")
kv.init("w", np.zeros(3))
while kv.num_workers < 2:
    kv.push("w", np.ones(3))
    kv.step()
    time.sleep(0.01)
print("worker", kv.rank, "of", kv.live_ranks)
kv.close(join=True)
"""


@pytest.mark.processes
@pytest.mark.parametrize("security", ["", "none"], ids=["with keys", "without keys"])
def test_a_running_job_says_how_one_more_joins(tmp_path: Path, shells: ExitStack, security: str) -> None:
    (tmp_path / "join.py").write_text(JOINER)
    line = f"pslite-launch --elastic 1:2 -s 1 --on-worker-lost shrink -- {sys.executable} join.py"
    job = shell(shells, line, tmp_path, PSLITE_TRANSPORT="tcp", PSLITE_SECURITY=security)
    assert job.stderr
    mark = "another one by hand: "
    said = next(line for line in job.stderr if mark in line).split(mark)[1].strip()
    assert ("--rank 1 --key /" in said) is (not security), said
    worker = shell(shells, said, tmp_path)
    results = [process.communicate(timeout=LONGEST) for process in (worker, job)]
    assert (worker.returncode, job.returncode) == (0, 0), results
    assert results[0][0] == "worker 1 of [0, 1]\n"


def test_a_job_that_is_full_or_has_no_port_is_not_joined() -> None:
    options = parse(["--elastic", "1:2", "-n", "1", "-s", "1", "python", "t.py"], "launch.py")
    hosts = [Host("localhost")]
    assert one_more(plan(options, hosts, {}), "ipc:///tmp/x", "/tmp/d") is None
    tcp = plan(options, hosts, {"PSLITE_TRANSPORT": "tcp"})
    line = one_more(tcp, "tcp://h:1", "/tmp/a b")
    assert line == "pslite run --role worker --root tcp://h:1 --rank 1 --key '/tmp/a b/keys' -- python t.py"
    full = plan(parse(["--elastic", "1:2", "-n", "2", "python", "t.py"], "x"), hosts, {"PSLITE_TRANSPORT": "tcp"})
    assert one_more(full, "tcp://h:1", "/tmp/d") is None


def run(*arguments: str, **extra: str) -> dict[str, str]:
    """The environment of the command."""
    done = subprocess.run(
        ["pslite", "run", *arguments, *ENVIRONMENT], env=with_commands(**extra), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.processes
def test_what_a_process_is_told() -> None:
    """And nothing that it had inherited from another job."""
    others = {"DMLC_RANK": "7", "DMLC_SERVER_ID": "1", "PSLITE_ROOT_FD": "0", "PSLITE_MAX_RESTARTS": "2"}
    env = run(*WORKER, "--rank", "1", "-n", "2", "-s", "1", "--interface", "lo", **others)
    told = {name: value for name, value in env.items() if name.startswith(("DMLC_", "PSLITE_", "RANK", "WORLD"))}
    assert told == {
        "DMLC_ROLE": "worker",
        "DMLC_NUM_WORKER": "2",
        "DMLC_NUM_SERVER": "1",
        "DMLC_WORKER_ID": "1",
        "DMLC_PS_ROOT_URI": "127.0.0.1",
        "DMLC_PS_ROOT_PORT": "9091",
        "DMLC_JOB_CLUSTER": "hand",
        "DMLC_INTERFACE": "lo",
        "PSLITE_ROOT": "tcp://127.0.0.1:9091",
        "PSLITE_MAX_RESTARTS": "2",
        "RANK": "1",
        "WORLD_SIZE": "2",
    }


@pytest.mark.processes
def test_the_rank_may_come_from_kubernetes() -> None:
    assert run(*WORKER, JOB_COMPLETION_INDEX="3")["DMLC_WORKER_ID"] == "3"
    assert run(*WORKER, "--rank", "1", JOB_COMPLETION_INDEX="3")["DMLC_WORKER_ID"] == "1"
    assert "DMLC_WORKER_ID" not in run(*WORKER)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.mkdir()
    for name in ("scheduler.key", "server-0.key", "worker-0.key", "worker-1.key"):
        (path / name).touch()
    return path


@pytest.mark.processes
def test_a_directory_of_keys_has_the_one_of_this_process(keys: Path) -> None:
    assert run(*WORKER, "--key", str(keys), "--rank", "1")["PSLITE_KEY_FILE"] == str(keys / "worker-1.key")
    server = run("--role", "server", "--root", "tcp://10.0.0.5:9091", "--key", str(keys))  # there is one only
    assert (server["PSLITE_KEY_FILE"], server["DMLC_SERVER_ID"]) == (str(keys / "server-0.key"), "0")
    env = run(*WORKER, "--key", str(keys / "worker-1.key"))
    assert (env["PSLITE_KEY_FILE"], env["RANK"]) == (str(keys / "worker-1.key"), "1")


@pytest.mark.processes
def test_the_scheduler_inherits_a_socket_that_listens() -> None:
    """Also if its port is given; then nobody needs the lines."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = "import os, socket; print(*socket.socket(fileno=int(os.environ['PSLITE_ROOT_FD'])).getsockname())"
    line = ["pslite", "run", "--role", "scheduler", "--root", f"tcp://127.0.0.1:{port}", "-n", "1", "-s", "1"]
    done = subprocess.run(
        [*line, sys.executable, "-c", code], env=with_commands(), capture_output=True, text=True, timeout=LONGEST
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"127.0.0.1 {port}\n", "", 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said about a mistake."""
    try:
        status = by_hand.main(arguments)
    except SystemExit as exit_:
        assert isinstance(exit_.code, int)
        status = exit_.code
    assert status == 2
    return capsys.readouterr().err


SCHEDULER = ["--role", "scheduler", "-n", "1", "-s", "1"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--role", "boss", "x"], "argument --role: invalid choice: 'boss'"),
        (["--root", "tcp://h:1", "x"], "the following arguments are required: --role"),
        ([*WORKER], "the command to run is missing"),
        ([*WORKER, "--frobnicate", "x"], "unrecognized arguments: --frobnicate"),
        ([*WORKER, "--rank", "-1", "x"], "'-1' is not a number that is at least 0"),
        (["--role", "worker", "x"], "a worker must know where the scheduler is: give --root tcp://HOST:PORT"),
        (["--role", "worker", "--root", "h:9091", "x"], "--root h:9091: give tcp://HOST:PORT"),
        (["--role", "worker", "--root", "tcp://h", "x"], "--root tcp://h: give tcp://HOST:PORT"),
        (["--role", "worker", "--root", "tcp://h:0", "x"], "--root tcp://h:0: give tcp://HOST:PORT"),
        (["--role", "worker", "--root", "tcp://h:70000", "x"], "--root tcp://h:70000: give tcp://HOST:PORT"),
        (["--role", "worker", "--root", "tcp://::1:9091", "x"], "--root tcp://::1:9091: give tcp://HOST:PORT"),
        (["--role", "worker", "--root", "tcp://h:1/x", "x"], "--root tcp://h:1/x: give tcp://HOST:PORT"),
        (["--role", "server", "--root", "tcp://10.0.0.5:1", "x"], "other hosts reach 10.0.0.5, and there is no key"),
        (["--role", "scheduler", "x"], "the scheduler must know how many it waits for: give -n and -s"),
        ([*SCHEDULER, "--root", "tcp://0.0.0.0", "x"], "make some with `pslite keys DIR -n 1 -s 1`"),
        ([*SCHEDULER, "--root", "ipc:///tmp/x", "x"], "give tcp://HOST or tcp://HOST:PORT, where it is to listen"),
        ([*SCHEDULER, "--interface", "eth77", "x"], "--interface eth77: it has no address; interfaces here are lo"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str
) -> None:
    for name in ("PSLITE_SECURITY", "PSLITE_KEY_FILE", "DMLC_NUM_WORKER", "DMLC_NUM_SERVER", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    said = refused(capsys, *arguments)
    assert said.splitlines()[-1].startswith("pslite run: error: ")
    assert text in said


def test_keys_that_are_not_there(capsys: pytest.CaptureFixture[str], keys: Path) -> None:
    several = "it has the keys of several workers (worker-0.key, worker-1.key); give --rank"
    assert several in refused(capsys, *WORKER, "--key", str(keys), "x")
    absent = "worker-2.key: no such file; the key comes from `pslite keys`"
    assert absent in refused(capsys, *WORKER, "--key", str(keys), "--rank", "2", "x")
    (keys / "server-0.key").unlink()
    server = ["--role", "server", "--root", "tcp://10.0.0.5:9091"]
    assert "it has no key of a server; give" in refused(capsys, *server, "--key", str(keys), "x")


def test_an_address_that_cannot_be_listened_at(capsys: pytest.CaptureFixture[str], keys: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused(capsys, *SCHEDULER, "--root", f"tcp://127.0.0.1:{port}", "x")
        assert f"cannot listen at 127.0.0.1, port {port}: Address already in use" in said
    nowhere = refused(capsys, *SCHEDULER, "--key", str(keys), "--root", "tcp://no-such-host.invalid", "x")
    assert "error: no-such-host.invalid: " in nowhere


@pytest.mark.processes
@pytest.mark.parametrize(("command", "status"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_be_run(command: str, status: int) -> None:
    done = subprocess.run(["pslite", "run", *WORKER, command], env=with_commands(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"pslite run: error: {command}: ")


def test_help_fits_80_columns_and_ends_with_three_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        by_hand.main(["--help"])
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert exit_.value.code == 0
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("  pslite run ") for line in lines[lines.index("examples:") :]) == 3

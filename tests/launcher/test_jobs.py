"""Whole jobs with real processes, as a user runs them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.launcher.launching import NOTE_PID, launch

pytestmark = pytest.mark.processes

PY = sys.executable
AS_WORKER = "import os, sys, time\nworker = os.environ.get('DMLC_WORKER_ID')\n"


def last_report(stderr: str) -> list[str]:
    """The lines from the last that begins with pslite:."""
    lines = stderr.splitlines()
    return lines[max(i for i, line in enumerate(lines) if line.startswith("pslite: ")) :]


def test_a_job_that_ends_well_has_status_0_and_says_nothing() -> None:
    done = launch("-n", "2", "-s", "1", PY, "-c", "print('hello')")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        "[scheduler] hello",
        "[server 0]  hello",
        "[worker 0]  hello",
        "[worker 1]  hello",
    ]
    assert done.stderr == ""


def test_all_fail_and_so_does_the_launcher() -> None:
    done = launch("-n", "2", "-s", "1", PY, "-c", "import sys; sys.exit(3)")
    assert done.returncode == 3
    assert "failed: exit code 3" in last_report(done.stderr)[0]


def test_one_worker_fails_while_all_others_sleep(notes: Path) -> None:
    code = NOTE_PID + "if role + rank == 'worker1': print('no such file', file=sys.stderr); sys.exit(3)\ntime.sleep(60)"
    done = launch("-n", "3", "-s", "2", PY, "-c", code, PIDS=str(notes))
    assert done.returncode == 3
    first, *rest = last_report(done.stderr)
    pid = (notes / "worker1").read_text()
    assert first.startswith(f"pslite: worker 1 on localhost (pid {pid}) failed: exit code 3, ")
    assert rest == [
        "  stopped after it: scheduler, server 0, server 1, worker 0, worker 2",
        "  last line of its stderr:",
        "    no such file",
    ]


FOLLOW = """
import json, os, sys, time
role, job = os.environ["DMLC_ROLE"], os.environ["PSLITE_JOB_DIR"]
who = role + os.environ.get("DMLC_WORKER_ID", "")

def fail(error, caused_by, code=1):
    path = f"{job}/error-{role}-{who[-1]}.json"
    with open(path + ".tmp", "w") as file:
        json.dump({"time": time.time(), "error": error, "caused_by": caused_by}, file)
    os.rename(path + ".tmp", path)
    if caused_by is None:
        open(f"{job}/down", "x").close()
        while not any(p["exit"] for p in json.load(open(f"{job}/processes.json"))):
            time.sleep(0.01)
    os._exit(code)

if who == "worker1":
    fail("ValueError: no such file", None, 3)
if who == "worker0":
    while not os.path.exists(f"{job}/down"):
        time.sleep(0.01)
    fail("WorkerFailed: worker 1", "worker 1")
time.sleep(60)
"""


def test_the_report_names_who_failed_first_not_who_ended_first() -> None:
    done = launch("-n", "3", "-s", "1", PY, "-c", FOLLOW)
    assert done.returncode == 3
    first, *rest = last_report(done.stderr)
    assert first.startswith("pslite: worker 1 on localhost (pid ")
    assert rest == [
        "  error: ValueError: no such file",
        "  failed because of it: worker 0",
        "  stopped after it: scheduler, server 0, worker 2",
        "  it wrote nothing to stderr",
    ]


def test_death_by_a_signal_is_128_more_and_named() -> None:
    code = AS_WORKER + "if worker == '0': os.kill(os.getpid(), 9)\ntime.sleep(60)"
    done = launch("-n", "2", "-s", "1", PY, "-c", code)
    assert done.returncode == 137
    report = last_report(done.stderr)
    assert "worker 0 on localhost" in report[0]
    assert "signal 9 (SIGKILL)" in report[0]
    assert "out-of-memory" in report[1]


def test_arguments_arrive_unchanged(tmp_path: Path) -> None:
    script = tmp_path / "a'; echo \"it\n.py"
    script.write_text("import sys\nsys.stdout.buffer.write(ascii(sys.argv[1:]).encode())")
    arguments = [
        "a b",
        "c",
        "",
        "'",
        '"',
        "$HOME",
        "*",
        "\\",
        "a\nb",
        "-n",
        "--",
        "--help",
        os.fsdecode(b"\xff"),
        "é;&|",
    ]
    done = launch("-n", "1", "-s", "1", "--no-prefix", PY, str(script), *arguments)
    assert done.stdout == f"{arguments!a}\n" * 3


def test_output_keeps_its_stream_and_its_lines() -> None:
    code = (
        "import os, sys, time\n"
        "for piece in (b'gr\\xc3', b'\\xb6\\xc3\\x9fe\\n', b'\\r10%', b'\\r100%\\n', b'unfinished'):\n"
        "    os.write(1, piece)\n"
        "    time.sleep(0.02)\n"
        "os.write(2, b'to stderr\\n')\n"
    )
    done = launch("-n", "1", "-s", "1", "--server-command", "true", PY, "-c", code)
    assert done.stdout.splitlines() == [
        "[worker 0]  größe",
        "[worker 0]  10%",
        "[worker 0]  100%",
        "[worker 0]  unfinished",
    ]
    assert done.stderr == "[worker 0]  to stderr\n"


@pytest.mark.parametrize(("environ", "coloured"), [({"FORCE_COLOR": "1"}, True), ({}, False)])
def test_colour_only_where_it_is_wanted(environ: dict[str, str], coloured: bool) -> None:
    done = launch("-n", "1", "-s", "1", "echo", "x", **environ)
    assert ("\x1b[" in done.stdout) is coloured


def test_log_files_and_the_report_that_names_them(tmp_path: Path) -> None:
    code = AS_WORKER + "print('out')\nif worker: print('bad', file=sys.stderr); sys.exit(1)\ntime.sleep(60)"
    done = launch("-n", "1", "-s", "1", "--log-dir", str(tmp_path / "runs"), PY, "-c", code)
    log = (tmp_path / "runs" / "latest").resolve() / "worker-0" / "stderr.log"
    assert log.read_text() == "bad\n"
    assert log.with_name("stdout.log").read_text() == "out\n"
    assert f"  log: {log}" in last_report(done.stderr)


def test_a_log_directory_that_cannot_be_made_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = launch("-n", "1", "--log-dir", str(tmp_path / "file"), "true")
    assert done.returncode == 2
    assert "--log-dir" in done.stderr


def test_a_missing_command_has_the_shells_status() -> None:
    done = launch("-n", "1", "-s", "1", "/no/such/program")
    assert done.returncode == 127
    assert last_report(done.stderr) == [
        "pslite: scheduler on localhost could not be started: No such file or directory: /no/such/program"
    ]


def test_servers_that_outlive_the_workers_are_stopped_and_named() -> None:
    code = AS_WORKER + "time.sleep(0 if worker else 60)"
    done = launch("-n", "1", "-s", "1", "--grace", "0.2", PY, "-c", code)
    assert done.returncode == 1
    report = last_report(done.stderr)
    assert report[0] == "pslite: all workers ended with 0; 0.2 s later these still ran and were stopped:"
    assert [line.split(" on ")[0].strip() for line in report[1:]] == ["scheduler", "server 0"]


def test_a_process_that_ignores_sigterm_or_is_stopped_ends_too(notes: Path) -> None:
    code = NOTE_PID + (
        "if role == 'server':\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if role == 'scheduler':\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "if role == 'worker':\n"
        "    while len([n for n in os.listdir(os.environ['PIDS']) if '.' not in n]) < 3: time.sleep(0.01)\n"
        "    time.sleep(0.2)\n    sys.exit(5)\n"
        "time.sleep(60)"
    )
    done = launch("-n", "1", "-s", "1", "--grace", "0.3", PY, "-c", code, PIDS=str(notes))
    assert done.returncode == 5
    assert "  stopped after it: scheduler, server 0 (killed)" in last_report(done.stderr)


ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"


def environments(*arguments: str, **env: str) -> dict[str, dict[str, str]]:
    done = launch("-n", "2", "-s", "1", *arguments, PY, "-c", ENVIRONMENT, **env)
    assert done.returncode == 0, done.stderr
    found = (line[1:].partition("]") for line in done.stdout.splitlines())
    return {label: json.loads(text) for label, _, text in found}


def test_the_environment_of_each_process(short_tmp: Path) -> None:
    stale = {"DMLC_RANK": "7", "RANK": "9", "PSLITE_ROOT": "tcp://x:1"}
    found = environments("--env", "A=1", TMPDIR=str(short_tmp), KEPT="yes", **stale)
    worker, server, scheduler = found["worker 1"], found["server 0"], found["scheduler"]
    assert [worker[name] for name in ("DMLC_WORKER_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["1", "1", "2", "1"]
    for env in found.values():
        assert env["A"] == "1"
        assert env["KEPT"] == "yes"
        assert env["PSLITE_ROOT"] == f"ipc://{env['PSLITE_JOB_DIR']}/scheduler.sock"
        assert (env["DMLC_PS_ROOT_URI"], env["DMLC_PS_ROOT_PORT"]) == ("127.0.0.1", "0")
        assert len(env["PSLITE_JOB_ID"]) == 16
        assert "DMLC_RANK" not in env
        assert Path(env["PSLITE_JOB_DIR"]).parent == short_tmp
    assert "RANK" not in server and "RANK" not in scheduler
    assert [label for label, env in found.items() if "PSLITE_ROOT_FD" in env] == ["scheduler"]
    assert len({env["PSLITE_JOB_ID"] for env in found.values()}) == 1
    assert not list(short_tmp.iterdir()), "the job's directory is left behind"


def test_a_long_tmpdir_still_gives_a_usable_socket(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    assert len(environments(TMPDIR=str(long))["scheduler"]["PSLITE_ROOT"]) < 100


MEET = """
import os, socket, sys, stat
root = os.environ["PSLITE_ROOT"]
family, address = socket.AF_UNIX, root.removeprefix("ipc://")
if root.startswith("tcp:"):
    host, port = root.removeprefix("tcp://").split(":")
    assert (host, port) == (os.environ["DMLC_PS_ROOT_URI"], os.environ["DMLC_PS_ROOT_PORT"])
    family, address = socket.AF_INET, (host, int(port))
if os.environ["DMLC_ROLE"] == "scheduler":
    listener = socket.socket(fileno=int(os.environ["PSLITE_ROOT_FD"]))
    listener.settimeout(20)
    for _ in range(2):
        print(listener.accept()[0].recv(99).decode())
else:
    with socket.socket(family) as peer:
        peer.connect(address)
        peer.send(os.environ["DMLC_ROLE"].encode())
    print(oct(stat.S_IMODE(os.stat(os.environ["PSLITE_JOB_DIR"]).st_mode)))
"""


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_all_meet_at_a_socket_that_listens_before_they_start(transport: str) -> None:
    done = launch("-n", "1", "-s", "1", PY, "-c", MEET, PSLITE_TRANSPORT=transport)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "[scheduler] server",
        "[scheduler] worker",
        "[server 0]  0o700",
        "[worker 0]  0o700",
    ]


TABLE = """
import json, os, signal, sys, time
if os.environ["DMLC_ROLE"] != "scheduler":
    os._exit(0) if os.environ["DMLC_ROLE"] == "server" else time.sleep(60) if os.environ["RANK"] == "1" else None
else:
    while True:
        table = json.load(open(os.environ["PSLITE_JOB_DIR"] + "/processes.json"))
        if sum(line["exit"] == 0 for line in table) == 2:
            break
        time.sleep(0.01)
    assert table[0]["pid"] == os.getpid()
    print(json.dumps([[l["role"], l["rank"], l["host"], l["pid"] is not None, l["exit"]] for l in table]))
    os.kill(table[-1]["pid"], signal.SIGKILL)
"""


def test_the_scheduler_can_read_who_runs_and_who_has_ended() -> None:
    done = launch("-n", "2", "-s", "1", "--no-prefix", PY, "-c", TABLE)
    assert done.returncode == 137
    assert json.loads(done.stdout) == [
        ["scheduler", 0, "localhost", True, None],
        ["server", 0, "localhost", True, 0],
        ["worker", 0, "localhost", True, 0],
        ["worker", 1, "localhost", True, None],
    ]


def test_the_packages_of_the_checkout_can_be_imported_from_anywhere(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import kvstore, pslite, launcher; print('found')")
    done = launch("-n", "1", "-s", "1", "--no-prefix", PY, str(script))
    assert done.stdout == "found\n" * 3


def test_a_users_modules_do_not_get_in_the_launchers_way(tmp_path: Path) -> None:
    for name in ("launcher", "select", "json", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    done = launch("-n", "1", "-s", "1", "--no-prefix", "sh", "-c", "echo fine", cwd=tmp_path)
    assert done.stdout == "fine\n" * 3


def test_dry_run_starts_nothing_and_shows_everything() -> None:
    done = launch("-n", "2", "-s", "1", "--dry-run", "--env-worker", "A=x y", "touch", "a b", OMP_NUM_THREADS="")
    assert done.returncode == 0
    assert done.stderr == ""
    blocks = done.stdout.split("worker 1 on localhost\n")
    assert blocks[1].startswith("  command: touch 'a b'\n")
    assert {"  env: A='x y'", "  env: RANK=1", "  env: OMP_NUM_THREADS=1"} <= set(blocks[1].splitlines())
    assert not Path("a b").exists()


def test_dry_run_as_json() -> None:
    done = launch("-n", "1", "-s", "1", "--dry-run", "--format", "json", "touch", "a b")
    document = json.loads(done.stdout)
    assert [(p["role"], p["rank"], p["host"], p["argv"]) for p in document["processes"]] == [
        (role, 0, "localhost", ["touch", "a b"]) for role in ("scheduler", "server", "worker")
    ]
    assert document["transport"] == "ipc"
    assert "PSLITE_ROOT" in document["set_at_start"]


def test_usage_errors_have_status_2() -> None:
    assert launch("-n", "1", "--nope", "true").returncode == 2
    done = launch("-n", "1", "--env", "RANK=1", "true")
    assert (done.returncode, done.stderr) == (2, "launch.py: error: --env RANK: this variable is set by the launcher\n")

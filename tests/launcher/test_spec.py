"""From the command line to the processes: no process is started here."""

from __future__ import annotations

import pytest

from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import parse
from launcher.spec import JOB_VARIABLES, ProcessSpec, plan

HERE = (Host("localhost"),)


def processes(*arguments: str, **environ: str) -> dict[str, ProcessSpec]:
    spec = plan(parse([*arguments, "python", "train.py"], "launch.py"), HERE, environ)
    return {process.label: process for process in spec.processes}


def test_the_scheduler_starts_first_then_servers_then_workers() -> None:
    assert list(processes("-n", "2", "-s", "1")) == ["scheduler", "server 0", "worker 0", "worker 1"]


def test_there_are_as_many_servers_as_workers_unless_told() -> None:
    assert sum(label.startswith("server") for label in processes("-n", "3")) == 3


def test_a_worker_knows_its_place_by_dmlc_and_by_torch_names() -> None:
    env = processes("-n", "2", "-s", "1")["worker 1"].env
    expected = {
        "DMLC_ROLE": "worker",
        "DMLC_NUM_WORKER": "2",
        "DMLC_NUM_SERVER": "1",
        "DMLC_WORKER_ID": "1",
        "DMLC_JOB_CLUSTER": "local",
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    assert expected.items() <= env.items()


@pytest.mark.parametrize("label", ["server 0", "scheduler"])
def test_servers_and_scheduler_have_no_torch_rank(label: str) -> None:
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "DMLC_WORKER_ID"} & processes("-n", "2")[label].env.keys()


def test_an_elastic_job_begins_with_the_least_number_of_workers() -> None:
    found = processes("--elastic", "2:5", "-n", "3", "-s", "1")
    assert list(found) == ["scheduler", "server 0", "worker 0", "worker 1", "worker 2"]
    for process in found.values():
        assert (process.env["DMLC_NUM_WORKER"], process.env["PSLITE_MAX_WORKERS"]) == ("2", "5")
    assert found["worker 2"].env["WORLD_SIZE"] == "2"
    assert "PSLITE_MAX_WORKERS" not in processes("-n", "2")["scheduler"].env
    assert "worker 1" in processes("--elastic", "2:5", "-s", "1")


def test_a_server_knows_its_rank() -> None:
    assert processes("-n", "1", "-s", "2")["server 1"].env["DMLC_SERVER_ID"] == "1"


def test_all_roles_run_the_command_unless_servers_have_their_own() -> None:
    assert {p.argv for p in processes("-n", "1").values()} == {("python", "train.py")}
    own = processes("-n", "1", "--server-command", "python 'my server.py' -v")
    assert own["worker 0"].argv == ("python", "train.py")
    assert own["server 0"].argv == own["scheduler"].argv == ("python", "my server.py", "-v")


@pytest.mark.parametrize("text", ["A=b=c:d", "A:b=c:d"])
def test_env_takes_both_spellings_and_splits_once(text: str) -> None:
    assert processes("-n", "1", "--env", text)["scheduler"].env["A"] == "b=c:d"


def test_env_values_may_hold_anything() -> None:
    assert processes("-n", "1", "--env", "A=\n'\" $x")["worker 0"].env["A"] == "\n'\" $x"
    assert processes("-n", "1", "--env", "A=")["worker 0"].env["A"] == ""


def test_env_with_a_name_only_passes_the_launchers_value() -> None:
    assert processes("-n", "1", "--env", "A", A="1")["worker 0"].env["A"] == "1"


def test_env_for_one_role_goes_to_that_role_and_wins() -> None:
    found = processes("-n", "1", "--env", "A=all", "--env-server", "A:s", "--env-worker", "A=w")
    assert [found[label].env["A"] for label in ("scheduler", "server 0", "worker 0")] == ["all", "s", "w"]


@pytest.mark.parametrize("text", ["", "=1", "1A=2", "A B=1", "A-B"])
def test_a_malformed_env_is_shown(text: str) -> None:
    with pytest.raises(UsageError, match="give NAME, NAME=VALUE or NAME:VALUE"):
        processes("-n", "1", "--env", text)


def test_env_of_an_unset_name_is_an_error() -> None:
    with pytest.raises(UsageError, match="--env-worker NOPE: not set"):
        processes("-n", "1", "--env-worker", "NOPE")


@pytest.mark.parametrize("name", sorted(JOB_VARIABLES))
def test_env_cannot_replace_what_the_launcher_sets(name: str) -> None:
    with pytest.raises(UsageError, match="set by the launcher"):
        processes("-n", "1", "--env", f"{name}=1")


def test_each_process_gets_one_thread_and_the_user_is_told_once() -> None:
    spec = plan(parse(["-n", "4", "-s", "2", "x"], "launch.py"), HERE, {})
    assert {p.env["OMP_NUM_THREADS"] for p in spec.processes} == {"1"}
    assert spec.notices == ("OMP_NUM_THREADS=1, for 7 processes share this host; set it to choose another number",)


@pytest.mark.parametrize(
    ("arguments", "environ"), [((), {"OMP_NUM_THREADS": "3"}), (("--env", "OMP_NUM_THREADS=3"), {})]
)
def test_a_chosen_number_of_threads_stays(arguments: tuple[str, ...], environ: dict[str, str]) -> None:
    spec = plan(parse(["-n", "1", *arguments, "x"], "launch.py"), HERE, environ)
    assert spec.notices == ()
    assert {p.env.get("OMP_NUM_THREADS", environ.get("OMP_NUM_THREADS")) for p in spec.processes} == {"3"}


def test_the_start_timeout_reaches_every_process() -> None:
    assert {p.env["PSLITE_START_TIMEOUT"] for p in processes("-n", "1", "--start-timeout", "5").values()} == {"5"}
    assert "PSLITE_START_TIMEOUT" not in processes("-n", "1")["worker 0"].env


def test_restarts_are_known_to_every_process() -> None:
    spec = plan(parse(["-n", "1", "--max-restarts", "3", "x"], "launch.py"), HERE, {})
    assert spec.max_restarts == 3
    assert {p.env["PSLITE_MAX_RESTARTS"] for p in spec.processes} == {"3"}
    assert "PSLITE_MAX_RESTARTS" not in processes("-n", "1")["worker 0"].env


def test_checkpoints_are_for_every_process() -> None:
    words = ("--checkpoint-dir", "d", "--checkpoint-every", "0.5", "--checkpoint-keep", "2", "--resume")
    for process in processes("-n", "1", *words).values():
        names = ("PSLITE_CHECKPOINT_DIR", "PSLITE_CHECKPOINT_EVERY", "PSLITE_CHECKPOINT_KEEP", "PSLITE_RESUME")
        assert [process.env[name] for name in names] == ["d", "0.5", "2", "1"]


def test_p3_is_for_every_process() -> None:
    assert {p.env["DMLC_PS_VAN_TYPE"] for p in processes("-n", "1", "--p3").values()} == {"p3"}
    assert "DMLC_PS_VAN_TYPE" not in processes("-n", "1")["worker 0"].env


@pytest.mark.parametrize(
    ("arguments", "environ", "transport"),
    [
        ((), {}, "ipc"),
        ((), {"PSLITE_TRANSPORT": " TCP "}, "tcp"),
        (("--env", "PSLITE_TRANSPORT=tcp"), {}, "tcp"),
        (("--env", "PSLITE_TRANSPORT=auto"), {"PSLITE_TRANSPORT": "tcp"}, "ipc"),
    ],
)
def test_no_tcp_port_is_opened_unless_asked(
    arguments: tuple[str, ...], environ: dict[str, str], transport: str
) -> None:
    assert plan(parse(["-n", "1", *arguments, "x"], "launch.py"), HERE, environ).transport == transport


def test_the_import_root_comes_first_in_pythonpath() -> None:
    options = parse(["-n", "1", "x"], "launch.py")
    assert plan(options, HERE, {"PYTHONPATH": "/a"}, "/check out").processes[0].env["PYTHONPATH"] == "/check out:/a"
    assert plan(options, HERE, {}, "/check out").processes[0].env["PYTHONPATH"] == "/check out"
    assert "PYTHONPATH" not in plan(options, HERE, {"PYTHONPATH": "/a"}).processes[0].env


@pytest.mark.parametrize(
    ("arguments", "environ", "keys"),
    [
        ((), {}, False),
        ((), {"PSLITE_TRANSPORT": "ipc"}, False),
        ((), {"PSLITE_TRANSPORT": "TCP"}, True),
        (("--env", "PSLITE_TRANSPORT=tcp"), {}, True),
        (("--env", "PSLITE_TRANSPORT=tcp"), {"PSLITE_SECURITY": "none"}, False),
        (("--env", "PSLITE_TRANSPORT=tcp", "--env", "PSLITE_SECURITY=none"), {}, False),
        ((), {"PSLITE_SECURITY": "none"}, False),
    ],
)
def test_tcp_means_keys_unless_they_are_declined(
    arguments: tuple[str, ...], environ: dict[str, str], keys: bool
) -> None:
    spec = plan(parse(["-n", "1", *arguments, "python", "train.py"], "launch.py"), HERE, environ)
    assert spec.keys is keys
    declined = spec.transport == "tcp" and not keys
    assert sum("PSLITE_SECURITY=none: whoever can connect" in notice for notice in spec.notices) == declined


def test_the_path_of_a_key_is_the_launchers_to_set() -> None:
    with pytest.raises(UsageError, match="PSLITE_KEY_FILE: this variable is set by the launcher"):
        processes("-n", "1", "--env", "PSLITE_KEY_FILE=x")


def test_servers_that_do_not_start_with_the_job_know_their_place_too() -> None:
    found = processes("-n", "1", "-s", "1", "--max-servers", "3", "--max-restarts", "1")
    assert [label for label, process in found.items() if not process.starts] == ["server 1", "server 2"]
    assert {process.env["DMLC_NUM_SERVER"] for process in found.values()} == {"3"}
    assert found["server 2"].env["DMLC_SERVER_ID"] == "2"

"""The settings: each variable, its default, and the error that a bad value gives."""

from __future__ import annotations

from typing import Any

import pytest

from pslite.config import Config, is_loopback
from pslite.errors import ConfigError


def test_defaults() -> None:
    config = Config.from_env({})
    assert (config.role, config.num_workers, config.num_servers, config.root) == ("worker", 1, 1, "")
    assert (config.timeout, config.start_timeout, config.resend_timeout) == (600.0, 60.0, 1.0)
    assert (config.rank, config.root_fd, config.notices) == (None, None, ())
    assert (config.p3, config.slice_threshold) == (False, 40_000)
    assert config == Config()


@pytest.mark.parametrize(
    ("env", "field", "value"),
    [
        ({"DMLC_ROLE": "server"}, "role", "server"),
        ({"DMLC_ROLE": " Scheduler "}, "role", "scheduler"),
        ({"DMLC_NUM_WORKER": "4"}, "num_workers", 4),
        ({"DMLC_NUM_SERVER": "2"}, "num_servers", 2),
        ({"DMLC_PS_ROOT_URI": "10.0.0.1", "DMLC_PS_ROOT_PORT": "9091"}, "root", "tcp://10.0.0.1:9091"),
        ({"DMLC_PS_ROOT_URI": "fe80::1", "DMLC_PS_ROOT_PORT": "9091"}, "root", "tcp://[fe80::1]:9091"),
        ({"PSLITE_ROOT": "ipc:///a/b", "DMLC_PS_ROOT_URI": "h", "DMLC_PS_ROOT_PORT": "1"}, "root", "ipc:///a/b"),
        ({"PSLITE_ROOT_FD": "7"}, "root_fd", 7),
        ({"PSLITE_MAX_RESTARTS": "3"}, "max_restarts", 3),
        ({"PSLITE_RESTARTS": "2"}, "restarts", 2),
        ({"PSLITE_AGENT_FD": "9"}, "agent_fd", 9),
        ({"PSLITE_JOB_ID": "abc"}, "job", "abc"),
        ({"PSLITE_JOB_DIR": "/x y"}, "job_dir", "/x y"),
        ({"DMLC_NODE_HOST": "10.0.0.9"}, "host", "10.0.0.9"),
        ({"DMLC_NODE_HOST": "[fd00::9]"}, "host", "fd00::9"),
        ({"DMLC_ROLE": "server", "DMLC_INTERFACE": "lo"}, "host", "127.0.0.1"),
        ({"DMLC_ROLE": "server", "DMLC_INTERFACE": "lo", "DMLC_NODE_HOST": "10.0.0.9"}, "host", "10.0.0.9"),
        ({"DMLC_ROLE": "worker", "DMLC_INTERFACE": "nothere0"}, "host", ""),  # it listens nowhere
        ({"DMLC_ROLE": "scheduler", "DMLC_INTERFACE": "nothere0"}, "host", ""),  # it listens at the root
        ({"DMLC_PS_ROOT_URI": "[fd00::1]", "DMLC_PS_ROOT_PORT": "1"}, "root", "tcp://[fd00::1]:1"),
        ({"PSLITE_SERVER_PORT": "9100"}, "server_port", 9100),
        ({"PSLITE_TRANSPORT": "TCP"}, "transport", "tcp"),
        ({"PSLITE_SECURITY": "none"}, "security", "none"),
        ({"PSLITE_CHECKPOINT_DIR": "/c"}, "checkpoint_dir", "/c"),
        ({"PSLITE_CHECKPOINT_EVERY": "2.5"}, "checkpoint_every", 2.5),
        ({"PSLITE_CHECKPOINT_EVERY": "0"}, "checkpoint_every", None),
        ({"PSLITE_CHECKPOINT_KEEP": "5"}, "checkpoint_keep", 5),
        ({"PSLITE_RESUME": "1"}, "resume", True),
        ({"PSLITE_TIMEOUT": "2.5"}, "timeout", 2.5),
        ({"PSLITE_TIMEOUT": "0"}, "timeout", None),
        ({"PSLITE_START_TIMEOUT": "5"}, "start_timeout", 5.0),
        ({"PSLITE_START_TIMEOUT": "0"}, "start_timeout", None),
        ({"PS_RESEND_TIMEOUT": "250"}, "resend_timeout", 0.25),
        ({"PS_DROP_MSG": "10"}, "drop_rate", 0.1),
        ({"PS_VERBOSE": "2"}, "verbose", 2),
        ({"MXNET_KVSTORE_BIGARRAY_BOUND": "100"}, "bigarray_bound", 100),
        ({"DMLC_PS_VAN_TYPE": "p3"}, "p3", True),
        ({"DMLC_PS_VAN_TYPE": "ZMQ"}, "p3", False),
        ({"MXNET_KVSTORE_SLICE_THRESHOLD": "100"}, "slice_threshold", 100),
        ({"DMLC_RANK": "3"}, "rank", 3),
        ({"DMLC_WORKER_ID": "2"}, "rank", 2),
        ({"DMLC_TASK_ID": "1", "DMLC_NUM_WORKER": "2"}, "rank", 1),
        ({"DMLC_TASK_ID": "2", "DMLC_NUM_WORKER": "2"}, "rank", None),  # it may count all processes
        ({"DMLC_ROLE": "server", "DMLC_SERVER_ID": "1", "DMLC_WORKER_ID": "5"}, "rank", 1),
        ({"DMLC_WORKER_ID": "2", "DMLC_TASK_ID": "7"}, "rank", 2),
        ({"DMLC_RANK": "3", "DMLC_WORKER_ID": "2"}, "rank", 3),
        ({"DMLC_NUM_WORKER": "  "}, "num_workers", 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
)
def test_a_variable_is_read(env: dict[str, str], field: str, value: Any) -> None:
    assert getattr(Config.from_env(env), field) == value


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DMLC_ROLE", "boss", "allowed are scheduler, server, worker"),
        ("DMLC_NUM_WORKER", "four", "give a number"),
        ("DMLC_NUM_WORKER", "0", "at least 1"),
        ("DMLC_NUM_WORKER", "1.5", "give a number"),
        ("DMLC_NUM_SERVER", "-1", "at least 1"),
        ("PSLITE_TRANSPORT", "rdma", "allowed are auto, shm, ipc, tcp"),
        ("PSLITE_SECURITY", "no", "allowed are none"),
        ("PSLITE_TIMEOUT", "-1", "at least 0"),
        ("PSLITE_TIMEOUT", "nan", "at least 0"),
        ("PSLITE_TIMEOUT", "10min", "give a number"),
        ("PSLITE_START_TIMEOUT", "-0.5", "at least 0"),
        ("PS_RESEND_TIMEOUT", "0", "at least 1"),
        ("PS_DROP_MSG", "-3", "at least 0"),
        ("PS_DROP_MSG", "101", "at most 100"),
        ("PS_VERBOSE", "loud", "give a number"),
        ("PSLITE_JOB_ID", "x" * 65, "at most 64 characters"),
        ("PSLITE_ROOT_FD", "x", "give a number"),
        ("DMLC_RANK", "first", "give a number"),
        ("MXNET_KVSTORE_BIGARRAY_BOUND", "0", "at least 1"),
        ("DMLC_PS_VAN_TYPE", "ibverbs", "allowed are zmq, p3"),
        ("MXNET_KVSTORE_SLICE_THRESHOLD", "0", "at least 1"),
        ("PSLITE_SERVER_PORT", "65536", "at most 65535"),
        ("DMLC_NODE_HOST", "0.0.0.0", "the address at which others reach this host"),
    ],
)
def test_a_bad_value_is_shown_with_what_is_allowed(name: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({name: value})
    assert caught.value.name == name
    assert f"{name}=" in str(caught.value)
    assert value in str(caught.value)
    assert said in str(caught.value)


def test_an_unknown_interface_is_shown_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"DMLC_INTERFACE='nothere0'.*no interface nothere0.*lo \(127\.0\.0\.1"):
        Config.from_env({"DMLC_ROLE": "server", "DMLC_INTERFACE": "nothere0"})


@pytest.mark.parametrize("port", ["", "0", "65536", "http", "-1"])
def test_the_root_needs_a_port(port: str) -> None:
    with pytest.raises(ConfigError, match=r"DMLC_PS_ROOT_PORT.*the scheduler's port, 1 to 65535"):
        Config.from_env({"DMLC_PS_ROOT_URI": "127.0.0.1", "DMLC_PS_ROOT_PORT": port})


def test_what_is_no_longer_needed_is_said_and_not_refused() -> None:
    config = Config.from_env({"PS_RESEND": "1"})
    assert config.notices == ("PS_RESEND is not needed: delivery is always on",)
    assert config == Config()


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMLC_NUM_WORKER", "6")
    assert Config.from_env().num_workers == 6


@pytest.mark.parametrize(
    ("root", "local"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://localhost:1", True),
        ("tcp://[::1]:1", True),
        ("ipc:///tmp/x", True),
        ("inproc://x", True),
        ("tcp://10.0.0.1:1", False),
        ("tcp://node7:1", False),
    ],
)
def test_whether_a_job_is_on_one_host(root: str, local: bool) -> None:
    assert Config(root=root).is_local is local


@pytest.mark.parametrize(
    ("host", "yes"), [("127.3.2.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("node7", False)]
)
def test_loopback(host: str, yes: bool) -> None:
    assert is_loopback(host) is yes

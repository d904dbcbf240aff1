"""Where a process listens, and which address of a peer it takes."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from pslite.config import Config
from pslite.errors import ConfigError
from pslite.postoffice.addresses import open_van, pick, to_listen

LOCAL, REMOTE = "tcp://127.0.0.1:9000", "tcp://192.0.2.1:9000"


def listen(**settings: Any) -> list[str]:
    return to_listen(Config(**{"role": "server", "root": LOCAL, **settings}), "job/server/0abc")


def test_workers_listen_nowhere_and_the_scheduler_at_the_root() -> None:
    assert listen(role="worker") == []
    assert listen(role="scheduler", root="tcp://127.0.0.1:1") == ["tcp://127.0.0.1:1"]


def test_a_job_in_one_directory_opens_no_port() -> None:
    assert listen(job_dir="/d") == ["ipc:///d/0abc.sock"]


def test_by_hand_there_is_no_directory_and_so_tcp() -> None:
    assert listen() == ["tcp://127.0.0.1:0"]
    assert listen(root="tcp://localhost:1") == ["tcp://127.0.0.1:0"]
    assert listen(root="tcp://[::1]:1") == ["tcp://[::1]:0"]


def test_the_transport_can_be_chosen() -> None:
    assert listen(job_dir="/d", transport="tcp") == ["tcp://127.0.0.1:0"]
    assert listen(job_dir="/d", transport="ipc") == ["ipc:///d/0abc.sock"]


def test_several_hosts_get_both() -> None:
    found = listen(root=REMOTE, job_dir="/d", host="192.0.2.7", security="none")
    assert found == ["ipc:///d/0abc.sock", "tcp://192.0.2.7:0"]


def test_an_address_that_others_reach_is_refused_unless_accepted(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="set PSLITE_SECURITY=none on every process"):
        listen(root=REMOTE, host="192.0.2.7")
    with caplog.at_level(logging.WARNING, "pslite"):
        assert listen(root=REMOTE, host="192.0.2.7", security="none") == ["tcp://192.0.2.7:0"]
    assert "without authentication" in caplog.text


def test_a_loopback_host_needs_no_acceptance() -> None:
    assert listen(host="127.0.0.1") == ["tcp://127.0.0.1:0"]


def test_an_ipv6_host_is_bracketed() -> None:
    assert listen(host="::1") == ["tcp://[::1]:0"]


def test_ipc_is_taken_when_its_socket_is_there(tmp_path: Path) -> None:
    there = tmp_path / "s.sock"
    there.touch()
    assert pick([f"ipc://{there}", LOCAL]) == f"ipc://{there}"
    assert pick([f"ipc://{tmp_path}/other.sock", LOCAL]) == LOCAL
    assert pick(["inproc://x"]) == "inproc://x"
    assert pick([f"ipc://{tmp_path}/other.sock"]) == f"ipc://{tmp_path}/other.sock"


@pytest.mark.parametrize("root", ["udp://127.0.0.1:1", "127.0.0.1:9000", "http://h"])
def test_another_scheme_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match="tcp://host:port or ipc:///path"):
        open_van(Config(root=root), "job/worker/1", time.monotonic)

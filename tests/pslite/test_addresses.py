"""Where a process listens, and which address of a peer it takes."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from pslite import Postoffice
from pslite.config import Config
from pslite.errors import BindError, ConfigError
from pslite.network import Interface
from pslite.postoffice.addresses import Endpoint, open_van, pick, to_listen

LOCAL, REMOTE = "tcp://127.0.0.1:9000", "tcp://192.0.2.1:9000"
HERE = [Interface("lo", True, ("127.0.0.1", "::1")), Interface("eth0", True, ("192.0.2.7", "fd00::7"))]


def endpoints(**settings: Any) -> list[Endpoint]:
    config = Config(**{"role": "server", "root": LOCAL, **settings})
    return to_listen(config, "job/server/0abc", lambda: HERE)


def listen(**settings: Any) -> list[str]:
    return [endpoint.address for endpoint in endpoints(**settings)]


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


OPEN: dict[str, Any] = {"root": REMOTE, "security": "none"}


@pytest.mark.parametrize(
    ("host", "address", "told"),
    [
        ("192.0.2.7", "tcp://192.0.2.7:0", "tcp://192.0.2.7:41"),
        ("fd00::7", "tcp://[fd00::7]:0", "tcp://[fd00::7]:41"),
        ("fd00:0:0::7", "tcp://[fd00:0:0::7]:0", "tcp://[fd00:0:0::7]:41"),
        ("127.0.1.1", "tcp://127.0.1.1:0", "tcp://127.0.1.1:41"),
        ("localhost", "tcp://127.0.0.1:0", "tcp://127.0.0.1:41"),
        ("203.0.113.9", "tcp://0.0.0.0:0", "tcp://203.0.113.9:41"),  # of a NAT: all addresses, that one is told
        ("2001:db8::9", "tcp://[::]:0", "tcp://[2001:db8::9]:41"),
        ("node7", "tcp://*:0", "tcp://node7:41"),  # who looks it up finds the address that leads here
    ],
)
def test_where_a_server_listens_and_what_others_are_told(host: str, address: str, told: str) -> None:
    [endpoint] = endpoints(**OPEN, host=host)
    assert endpoint.address == address
    assert endpoint.announced(address.replace("*", "[::]")[:-1] + "41") == told


def test_a_server_has_the_port_of_its_rank() -> None:
    ports: dict[str, Any] = {**OPEN, "host": "192.0.2.7", "server_port": 9100}
    assert listen(**ports) == ["tcp://192.0.2.7:9100"]  # there is one server, so it is rank 0
    assert listen(**ports, num_servers=3, rank=2) == ["tcp://192.0.2.7:9102"]
    with pytest.raises(ConfigError, match=r"PSLITE_SERVER_PORT=9100.*DMLC_SERVER_ID"):
        listen(**ports, num_servers=3)
    with pytest.raises(ConfigError, match="below 65536"):
        listen(**{**ports, "server_port": 65535}, num_servers=2, rank=1)


@pytest.mark.parametrize(
    ("root", "settings", "address"),
    [
        ("tcp://192.0.2.7:9091", {}, "tcp://192.0.2.7:9091"),
        ("tcp://192.0.2.7:9091", {"host": "fd00::7"}, "tcp://192.0.2.7:9091"),  # all look for it at the root
        ("tcp://[fd00::7]:9091", {}, "tcp://[fd00::7]:9091"),
        ("tcp://0.0.0.0:9091", {}, "tcp://0.0.0.0:9091"),
        ("tcp://[::]:9091", {}, "tcp://[::]:9091"),
        ("tcp://localhost:9091", {}, "tcp://127.0.0.1:9091"),
        ("tcp://203.0.113.9:9091", {}, "tcp://203.0.113.9:9091"),  # no address of this host: it cannot be bound
        ("tcp://203.0.113.9:9091", {"host": "203.0.113.9"}, "tcp://0.0.0.0:9091"),  # of a NAT, it says
        ("tcp://[2001:db8::9]:9091", {"host": "2001:db8::9"}, "tcp://[::]:9091"),
        ("tcp://no-such-host.invalid:9091", {"host": "no-such-host.invalid"}, "tcp://*:9091"),
        ("tcp://no-such-host.invalid:9091", {"root_fd": 3}, "tcp://no-such-host.invalid:9091"),  # the socket is open
    ],
)
def test_where_the_scheduler_listens(root: str, settings: dict[str, Any], address: str) -> None:
    assert listen(role="scheduler", security="none", root=root, **settings) == [address]


@pytest.mark.parametrize(
    ("found", "said"),
    [(["192.0.2.7"], ""), (["203.0.113.9", "fd00::7"], ""), (["127.0.1.1"], ""), (["203.0.113.9"], r"203\.0\.113\.9")],
)
def test_the_schedulers_name_must_be_one_of_this_host(
    found: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pslite.network.resolve", lambda host: found)
    if not said:
        assert listen(role="scheduler", security="none", root="tcp://node7:9091") == ["tcp://*:9091"]
        return
    with pytest.raises(BindError, match=f"scheduler cannot listen on tcp://node7:9091: node7 is {said}, .*eth0"):
        listen(role="scheduler", security="none", root="tcp://node7:9091")


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b"])
def test_a_name_of_the_scheduler_may_be_known_later(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert listen(role="scheduler", security="none", root=f"tcp://{name}:9091") == ["tcp://*:9091"]
    assert f"the name {name} does not resolve on this host" in caplog.text


def test_on_the_schedulers_host_its_name_may_be_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian writes ``127.0.1.1 node1`` to /etc/hosts; a server there is reached as the scheduler is."""
    monkeypatch.setattr("pslite.network.source_towards", lambda host: "127.0.0.1")
    [endpoint] = endpoints(root="tcp://node1:9000", security="none")
    assert (endpoint.address, endpoint.announced("tcp://[::]:41")) == ("tcp://*:0", "tcp://node1:41")


@pytest.mark.parametrize(
    "root", ["tcp://h", "tcp://h:0", "tcp://:1", "tcp://h:99999", "tcp://h:http", "tcp://fd00::1:1", "tcp://[fd00::1:1"]
)
def test_a_root_that_is_no_address_is_refused(root: str) -> None:
    with pytest.raises(ConfigError, match=r"tcp://host:port.*IPv6 in brackets"):
        Postoffice(Config(root=root))


@pytest.mark.parametrize("root", ["tcp://0.0.0.0:9091", "tcp://[::]:9091"])
def test_nobody_connects_to_all_addresses(root: str) -> None:
    with pytest.raises(ConfigError, match="give the worker an address of its host"):
        Postoffice(Config(root=root))


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

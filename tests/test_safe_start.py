"""What listens where other hosts reach it says so, or does not start."""

from __future__ import annotations

import pytest

import pslite
from pslite.postoffice.addresses import to_listen


@pytest.mark.parametrize("role", ["scheduler", "server"])
@pytest.mark.parametrize("root", ["tcp://192.0.2.7:9091", "tcp://[2001:db8::7]:9091"])
def test_an_address_on_the_network_needs_consent(role: str, root: str) -> None:
    config = pslite.Config(role=role, root=root, host="192.0.2.8")
    with pytest.raises(pslite.ConfigError, match="PSLITE_SECURITY=none"):
        to_listen(config, "job/role/1")


def test_consent_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = pslite.Config(role="scheduler", root="tcp://192.0.2.7:9091", security="none")
    assert [endpoint.address for endpoint in to_listen(config, "job/role/1")] == ["tcp://192.0.2.7:9091"]
    assert "without authentication" in caplog.text


@pytest.mark.parametrize("root", ["tcp://127.0.0.1:9091", "tcp://[::1]:9091", "ipc:///tmp/job/scheduler.sock"])
def test_an_address_on_this_host_needs_none(root: str) -> None:
    config = pslite.Config(role="scheduler", root=root)
    assert [endpoint.address for endpoint in to_listen(config, "job/role/1")] == [root]


@pytest.mark.parametrize("host", ["node7", "203.0.113.9", "2001:db8::9"])
def test_all_addresses_of_a_host_need_consent(host: str) -> None:
    """A server whose address is a name, or that of a NAT, listens on all that its host has."""
    config = pslite.Config(role="server", root="tcp://127.0.0.1:9091", host=host)
    with pytest.raises(pslite.ConfigError, match="PSLITE_SECURITY=none"):
        to_listen(config, "job/role/1")


def test_a_server_without_consent_does_not_wait_for_a_scheduler() -> None:
    office = pslite.Postoffice(pslite.Config(role="server", root="tcp://192.0.2.7:9091"))
    with pytest.raises(pslite.ConfigError, match="anybody on the network can take part"):
        office.start()


def test_workers_listen_nowhere() -> None:
    assert to_listen(pslite.Config(role="worker", root="tcp://192.0.2.7:9091"), "job/role/1") == []


def test_a_scheduler_without_consent_does_not_listen() -> None:
    office = pslite.Postoffice(pslite.Config(role="scheduler", root="tcp://192.0.2.7:9091"))
    with pytest.raises(pslite.ConfigError, match="anybody on the network can take part"):
        office.start()

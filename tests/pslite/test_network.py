"""This host's interfaces, and which of their addresses is taken."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pslite import network
from pslite.config import host_of
from pslite.errors import ConfigError
from pslite.network import Interface

KNOWN = [
    Interface("lo", True, ("127.0.0.1", "::1")),
    Interface("both", True, ("10.0.0.7", "10.1.0.7", "2001:db8::7", "fd00::7", "fe80::7%both")),
    Interface("new", True, ("fd00::8", "fe80::8%new")),
    Interface("link", True, ("fe80::9%link",)),
    Interface("old", True, ("10.0.0.9",)),
    Interface("none"),
    Interface("off", False, ("10.0.0.8",)),
]


@pytest.mark.parametrize(
    ("name", "towards", "taken"),
    [
        ("both", "10.0.0.1", "10.0.0.7"),
        ("both", "node1", "10.0.0.7"),
        ("both", "", "10.0.0.7"),
        ("both", "2001:db8::1", "2001:db8::7"),
        ("both", "fd00::1", "fd00::7"),
        ("both", "fe80::1%eth0", "fe80::7%both"),
        ("new", "2001:db8::1", "fd00::8"),
        ("new", "node1", "fd00::8"),
        ("link", "fd00::1", "fe80::9%link"),
        ("link", "", "fe80::9%link"),
        ("lo", "127.0.0.1", "127.0.0.1"),
        ("lo", "::1", "::1"),
    ],
)
def test_the_address_that_is_taken(name: str, towards: str, taken: str) -> None:
    assert network.address_on(name, towards, KNOWN) == taken


@pytest.mark.parametrize(
    ("name", "towards", "said"),
    [
        ("eth9", "10.0.0.1", "no interface eth9"),
        ("off", "10.0.0.1", "it is down: ip link set off up"),
        ("none", "10.0.0.1", "it has no address"),
        ("new", "10.0.0.1", "it has IPv6 addresses only, and the scheduler's 10.0.0.1 is IPv4"),
        ("old", "fd00::1", "it has IPv4 addresses only, and the scheduler's fd00::1 is IPv6"),
    ],
)
def test_one_that_cannot_be_taken_is_shown_with_the_others(name: str, towards: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        network.address_on(name, towards, KNOWN)
    text = str(caught.value)
    assert f"DMLC_INTERFACE='{name}'" in text
    assert said in text
    assert "link (fe80::9%link); old (10.0.0.9)" in text
    assert "off (" not in text and "none (" not in text


def test_a_host_without_addresses_is_told_so() -> None:
    with pytest.raises(ConfigError, match="interfaces with addresses are none"):
        network.address_on("eth0", "", [])


ADDRESSES = st.lists(st.ip_addresses().map(str), max_size=4).map(tuple)
INTERFACES = st.builds(Interface, st.sampled_from(["a", "b", "c"]), st.booleans(), ADDRESSES)
HOSTS = st.one_of(st.ip_addresses().map(str), st.sampled_from(["", "node1"]))


@given(st.sampled_from(["a", "b", "c"]), HOSTS, st.lists(INTERFACES, max_size=3, unique_by=lambda i: i.name))
def test_what_is_taken_is_of_the_interface_and_the_family(name: str, towards: str, known: list[Interface]) -> None:
    fitting = [
        address
        for interface in known
        for address in interface.addresses
        if interface.name == name and interface.up
        if towards in ("", "node1") or ipaddress.ip_address(address).version == ipaddress.ip_address(towards).version
    ]
    try:
        assert network.address_on(name, towards, known) in fitting
    except ConfigError:
        assert fitting == []


@given(st.ip_addresses())
def test_an_address_in_a_root_is_read_as_it_was_written(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert host_of(network.join(str(address), 9091)) == str(address)
    assert network.is_ipv6(str(address)) == (address.version == 6)


@pytest.mark.parametrize(
    ("host", "interface"),
    [("10.1.0.7", "both"), ("FD00:0::7", "both"), ("fe80::9%link", "link"), ("10.9.9.9", ""), ("node1", "")],
)
def test_the_interface_of_an_address(host: str, interface: str) -> None:
    assert network.interface_of(host, KNOWN) == interface
    assert network.is_own(host, KNOWN) == bool(interface)


def test_all_of_the_loopback_is_of_this_host() -> None:
    assert network.is_own("127.9.9.9", []) and network.is_own("::1", [])


def test_the_loopback_of_this_host_is_found() -> None:
    found = {interface.name: interface for interface in network.interfaces()}
    assert found["lo"].up
    assert found["lo"].addresses[0] == "127.0.0.1"


def test_a_name_is_reached_by_the_family_that_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.is_reached_by_ipv6("fd00::1")
    assert not network.is_reached_by_ipv6("10.0.0.1")
    assert not network.is_reached_by_ipv6("")  # ipc
    assert network.is_reached_by_ipv6("no-such-host.invalid")  # it may be known later, by either
    assert not network.is_reached_by_ipv6("localhost")
    for found in (["fd00::1", "10.0.0.1"], ["10.0.0.1", "fd00::1"]):
        monkeypatch.setattr(network, "resolve", lambda host, found=found: found)
        assert network.is_reached_by_ipv6("node1") == (found[0] == "fd00::1")

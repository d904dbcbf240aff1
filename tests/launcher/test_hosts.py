"""Hostfiles and -H: what they may say, and what is said of mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.errors import UsageError
from launcher.hosts import Host, parse_hosts

FILE = """\
# the rack
node1 slots=4
alice@node2 slots=2 port=2222   # the old one
fd00::3

[fd00::4] slots=1
node5 address=192.0.2.5
"""


def test_a_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts of $(mine)\n"
    path.write_text(FILE)
    assert parse_hosts(str(path)) == (
        Host("node1", 4),
        Host("node2", 2, "alice", 2222),
        Host("fd00::3"),
        Host("fd00::4", 1),
        Host("node5", address="192.0.2.5"),
    )


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("node1", (Host("node1"),)),
        ("node1:slots=4,node2", (Host("node1", 4), Host("node2"))),
        ("bob@node1:slots=4:port=22", (Host("node1", 4, "bob", 22),)),
        ("[fd00::1]:slots=2,fd00::2", (Host("fd00::1", 2), Host("fd00::2"))),
        ("bob@[fd00::1],localhost", (Host("fd00::1", user="bob"), Host("localhost"))),
        ("a,b,a", (Host("a", 2), Host("b"))),
        ("a:slots=3,a:slots=2", (Host("a", 5),)),
    ],
)
def test_hosts_on_the_command_line(text: str, hosts: tuple[Host, ...]) -> None:
    assert parse_hosts(text) == hosts


@pytest.mark.parametrize("text", ["node1:4", "node1:22,node2", "[fd00::1]:22"])
def test_a_bare_number_shows_both_spellings(text: str) -> None:
    with pytest.raises(UsageError, match=r"may mean two things: write \S+ slots=\d+ .* \S+ port=\d+ for ssh's port"):
        parse_hosts(text)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("-oProxyCommand=reboot", "is not a host"),
        ("a,-b", "is not a host"),
        ("-l@a", "is not a host"),
        ("a b", "is not a host"),
        ("$(reboot)", "is not a host"),
        ("a;b", "is not a host"),
        ("a:slots=0", "slots=0: give a number from 1"),
        ("a:port=70000", "port=70000: give a number from 1 to 65535"),
        ("a:cpus=3", "'cpus=3' is not slots=N, port=N or address=ADDRESS"),
        ("a:slots=1:slots=2", "'slots=2' is not"),
        ("a:address=-x", "'-x' is not an address"),
        ("a:port=1,a:port=2", "a is named twice, with different settings"),
        (",", "no host is named there"),
        ("./no/such/file", "there is no such file"),
    ],
)
def test_mistakes_are_named(text: str, error: str) -> None:
    with pytest.raises(UsageError, match=re.escape(error)):
        parse_hosts(text)


def test_a_mistake_in_a_file_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("a\n\nb slots=many\n")
    with pytest.raises(UsageError, match="hosts, line 3: slots=many"):
        parse_hosts(str(path))
    path.write_text("node1:4\n")
    with pytest.raises(UsageError, match="hosts, line 1: node1:4 may mean two things"):
        parse_hosts(str(path))

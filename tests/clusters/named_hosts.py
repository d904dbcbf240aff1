"""Hosts that know each other by name, and a way from each to the others without ssh."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.network.hosts import Host, Network

#: apt-get install iproute2 nftables util-linux
NEEDS = ("root", "ip", "nft", "unshare", "nsenter")


def require(needs: Sequence[str]) -> None:
    """Skip the test where programs are not installed, which is a failure if CI=true."""
    lacking = [need for need in needs if (os.geteuid() != 0 if need == "root" else not shutil.which(need))]
    if lacking:
        reason = f"this needs {', '.join(lacking)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


class NamedHosts:
    """Network namespaces as ``node1``, ``node2`` and so on. They share this machine's files and processes."""

    def __init__(self, directory: Path, hosts: Sequence[Host]) -> None:
        self.directory = directory  # for files of these hosts
        self.by_name = {f"node{index}": host for index, host in enumerate(hosts, 1)}
        self._names = directory / "hosts"
        named = "".join(f"{host.address} {name}\n" for name, host in self.by_name.items())
        self._names.write_text(f"127.0.0.1 localhost\n{named}")

    def within(self, *command: str, node: str = "node1") -> list[str]:
        """The command that runs a command on a host."""
        there = f'hostname {node} && mount --bind {self._names} /etc/hosts && exec "$@"'
        return self.by_name[node].within("unshare", "--uts", "--mount", "sh", "-c", there, "sh", *command)

    def remote_shell(self, name: str, begin: str, run: str) -> Path:
        """A program that, after some lines of shell, runs ``run`` on the host ``$host``."""
        cases = "\n".join(f"{node}) exec {shlex.join(self.within(node=node))} {run} ;;" for node in self.by_name)
        program = self.directory / name
        program.write_text(f'#!/bin/sh\n{begin}\ncase "$host" in\n{cases}\nesac\necho "no host $host" >&2\nexit 255\n')
        program.chmod(0o755)
        return program


@contextmanager
def named_hosts(count: int) -> Iterator[NamedHosts]:
    """So many hosts. The directory of their files has a short name, so that sockets fit there."""
    with Network() as network, tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as directory:
        yield NamedHosts(Path(directory), network.hosts(count))

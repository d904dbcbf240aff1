"""Hosts that are network namespaces, on a switch that is another one: real TCP, with real faults, on this machine.

A namespace lives as long as our descriptor of it, or a process in it: nothing is left of a test that was killed, and
the network of the machine itself is never touched.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from .emulator import Faults, command

#: What these need, as ``tests.cases`` wants it named: apt-get install iproute2 nftables util-linux.
NEEDS = ("root", "ip", "nft", "ss", "tc", "unshare", "nsenter")
PREFIX, BAD_PREFIX = "10.77.0.", "10.78.0."
#: What a host does not take in: packets from the addresses in ``cut``, and resets, if it shall not see them; and what
#: it does not send: anything to those in ``mute``.
_RULES = """
table inet faults {
    set cut { type ipv4_addr; }
    set deaf { type ipv4_addr; }
    set mute { type ipv4_addr; }
    chain input {
        type filter hook input priority 0;
        ip saddr @cut drop
        ip saddr @deaf tcp flags rst drop
    }
    chain output {
        type filter hook output priority 0;
        ip daddr @mute drop
    }
}
"""

#: What a gateway does for the network behind it.
_TRANSLATION = """
table ip translation {
    chain before { type nat hook prerouting priority -100; }
    chain after {
        type nat hook postrouting priority 100;
        oifname "eth0" masquerade
    }
}
"""


class Place(Protocol):
    """Where processes of a job run."""

    address: str

    def within(self, *command: str) -> list[str]:
        """The command that runs a command there."""


class ThisMachine:
    """No namespace: the loopback of this machine."""

    address = "127.0.0.1"

    def within(self, *command: str) -> list[str]:
        return [*command]


class Namespace:
    """A network namespace with its loopback up."""

    def __init__(self) -> None:
        with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdin and holder.stdout
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            holder.stdout.readline()  # it runs in its namespace by now
            self.fd = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.run("ip", "link", "set", "lo", "up")

    def within(self, *command: str) -> list[str]:
        """The command that runs a command here."""
        return ["nsenter", f"--net={self.path}", *command]

    def run(self, *command: str, input: str | None = None) -> str:
        """Run a command here to its end, and return what it prints."""
        done = subprocess.run(self.within(*command), input=input, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        os.close(self.fd)


class Host(Namespace):
    """A host on the switch, with this address. Methods that take a host concern the packets from it to this one."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.run("nft", "-f", "-", input=_RULES)

    def cut_from(self, *others: Host) -> None:
        """Take in nothing of other hosts any more; they hear of nothing."""
        self.run("nft", f"add element inet faults cut {{ {_addresses(others)} }}")

    def separate_from(self, *others: Host) -> None:
        """Neither take in anything of other hosts nor send them anything, from one moment on."""
        listed = f"{{ {_addresses(others)} }}"
        self.run("nft", f"add element inet faults cut {listed}; add element inet faults mute {listed}")

    def deaf_to_resets_of(self, other: Host) -> None:
        """Ignore that the other host knows nothing of a connection: ours stays half open."""
        self.run("nft", "add", "element", "inet", "faults", "deaf", "{", other.address, "}")

    def heal(self) -> None:
        """Take in and send everything again."""
        self.run("nft", "; ".join(f"flush set inet faults {name}" for name in ("cut", "deaf", "mute")))

    def reset(self, other: Host | None = None) -> int:
        """End all live TCP connections, or those to another host; the number of ends that were here."""
        towards = [] if other is None else ["dst", other.address]
        return len(self.run("ss", "-K", "-H", "-t", "state", "established", *towards).splitlines())

    def give(self, *addresses: str) -> None:
        """More addresses, as ``ip`` writes them; IPv6 at once, since nobody else here can have them."""
        for address in addresses:
            self.run("ip", "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))

    def forward(self, port: int, to: Host) -> None:
        """What comes for a TCP port is for a host behind this one."""
        self.run("nft", f"add rule ip translation before tcp dport {port} dnat to {to.address}")

    def limit(self, rate: str) -> None:
        """So many bits a second, as tc writes them, leave this host."""
        self.run(
            "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kb", "latency", "200ms"
        )


def _port(host: Host) -> str:
    return f"port{host.address.removeprefix(PREFIX)}"


def _addresses(hosts: Sequence[Host]) -> str:
    return ", ".join(host.address for host in hosts)


class Named:
    """A host with its own /etc/hosts, which says what names stand for there."""

    def __init__(self, host: Host, names: Path) -> None:
        self.address, self._host, self._names = host.address, host, names

    def within(self, *command: str) -> list[str]:
        """The command that runs a command there."""
        mount = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(self._names)]
        return self._host.within(*mount, *command)


@dataclass
class Emulated:
    """The addresses of hosts in an emulated network, and at the end what it did to packets."""

    addresses: list[str]
    counts: dict[str, int] = field(default_factory=dict)


class Network:
    """A switch and its hosts. ``with Network() as network: a, b = network.hosts(2)``; at the end they are gone."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._switch = self._add(Namespace())
        self._switch.run("ip", "link", "add", "br0", "type", "bridge")
        self._switch.run("ip", "link", "set", "br0", "up")
        self._count = 0

    def _add(self, namespace: Namespace) -> Namespace:
        self._open.callback(namespace.close)
        return namespace

    def hosts(self, count: int) -> list[Host]:
        """New hosts, with a cable each."""
        return [self._host() for _ in range(count)]

    def _host(self) -> Host:
        self._count += 1
        host = Host(f"{PREFIX}{self._count}")
        self._add(host)
        port = _port(host)
        peer = ["peer", "name", "eth0", "netns", host.path]
        self._switch.run("ip", "link", "add", port, "type", "veth", *peer)
        self._switch.run("ip", "link", "set", port, "master", "br0", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        return host

    def behind(self, gateway: Host) -> Host:
        """A new host in a private network: the others see what it sends as the gateway's, and cannot reach it."""
        self._count += 1
        inside = f"10.79.{self._count}."
        host = Host(f"{inside}2")
        self._add(host)
        gateway.run("ip", "link", "add", "inside", "type", "veth", "peer", "name", "eth0", "netns", host.path)
        gateway.run("ip", "address", "add", f"{inside}1/24", "dev", "inside")
        gateway.run("ip", "link", "set", "inside", "up")
        gateway.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        gateway.run("nft", "-f", "-", input=_TRANSLATION)
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", f"{inside}1")
        return host

    def plug(self, host: Host, plugged: bool) -> None:
        """Pull a host's cable out of the switch, or put it back."""
        self._switch.run("ip", "link", "set", _port(host), "up" if plugged else "down")

    def limit_towards(self, host: Host, rate: str) -> None:
        """So many bits a second reach a host."""
        port = _port(host)
        self._switch.run(
            "tc", "qdisc", "replace", "dev", port, "root", "tbf", "rate", rate, "burst", "32kb", "latency", "200ms"
        )

    @contextmanager
    def emulated(self, faults: Faults, *hosts: Host) -> Iterator[Emulated]:
        """A second network between hosts, which loses and delays: ``addresses`` are theirs in it."""
        addresses = {host.fd: host.address.replace(PREFIX, BAD_PREFIX) for host in hosts}
        with subprocess.Popen(
            command(faults, addresses), stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=list(addresses)
        ) as process:
            assert process.stdin and process.stdout
            assert process.stdout.readline() == b"ready\n", "the emulator did not start"
            emulated = Emulated(list(addresses.values()))
            yield emulated
            process.stdin.close()
            emulated.counts.update(json.loads(process.stdout.read()))

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._open.close()

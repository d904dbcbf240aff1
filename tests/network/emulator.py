"""A network that delays, loses, doubles and reorders: a process that carries packets between TUN devices of hosts.

Not every kernel has netem. The process gets a namespace descriptor and an address for each host, makes a device
``bad0`` there, and decides what happens to each packet by the seed's random numbers. It ends when its stdin is closed,
and prints what it did.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_TUN_WITHOUT_HEADER = 0x1001  # IFF_TUN | IFF_NO_PI
_MTU = 9000
_QUEUE = 0.2  # seconds of packets that a narrow link keeps; then it loses them


@dataclass(frozen=True)
class Faults:
    """What happens to a packet: ``delay`` in seconds each way, the others are probabilities.

    A reordered packet has no delay, so it overtakes. ``rate``: bits per second towards each host; 0 has no limit.
    """

    delay: float = 0.0
    loss: float = 0.0
    double: float = 0.0
    reorder: float = 0.0
    rate: float = 0.0
    seed: int = 0


class Emulator:
    """Carries packets between devices until stdin is closed."""

    def __init__(self, faults: Faults, devices: dict[bytes, int]) -> None:
        self._faults, self._devices = faults, devices  # the devices by packed address
        self._random = random.Random(faults.seed)
        self._queue: list[tuple[float, int, int, bytes]] = []  # when, number, device, packet
        self._free = dict.fromkeys(devices.values(), 0.0)  # when the link to a device has sent all it took
        self.counts = dict.fromkeys(("packets", "lost", "doubled", "reordered", "overflow"), 0)

    def run(self) -> None:
        poller = select.poll()
        for fd in (0, *self._devices.values()):
            poller.register(fd, select.POLLIN)
        while True:
            wait = max(0.0, self._queue[0][0] - time.monotonic()) * 1000 if self._queue else None
            for fd, _ in poller.poll(wait):
                if fd == 0:
                    return
                self._receive(fd)
            self._send()

    def _receive(self, fd: int) -> None:
        for _ in range(64):
            try:
                packet = os.read(fd, 65536)
            except BlockingIOError:
                return
            if (device := self._devices.get(packet[16:20])) is not None:  # the destination, in IPv4
                self._decide(device, packet)

    def _decide(self, device: int, packet: bytes) -> None:
        faults, drawn = self._faults, self._random.random
        self.counts["packets"] += 1
        if drawn() < faults.loss:
            self.counts["lost"] += 1
            return
        copies = 2 if drawn() < faults.double else 1
        self.counts["doubled"] += copies - 1
        for _ in range(copies):
            at = time.monotonic()
            if drawn() < faults.reorder:
                self.counts["reordered"] += 1
            else:
                at += faults.delay
            if faults.rate:
                if self._free[device] > at + _QUEUE:
                    self.counts["overflow"] += 1
                    continue
                self._free[device] = at = max(at, self._free[device]) + len(packet) * 8 / faults.rate
            heapq.heappush(self._queue, (at, self.counts["packets"], device, packet))

    def _send(self) -> None:
        now = time.monotonic()
        while self._queue and self._queue[0][0] <= now:
            _, _, device, packet = heapq.heappop(self._queue)
            try:
                os.write(device, packet)
            except BlockingIOError:
                self.counts["overflow"] += 1


def _device(namespace: int, address: str) -> int:
    """A TUN device in a namespace; this process, which has one thread, visits it and stays."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", b"bad0", _TUN_WITHOUT_HEADER))
    subprocess.run(["ip", "address", "add", f"{address}/24", "dev", "bad0"], check=True)
    subprocess.run(["ip", "link", "set", "bad0", "up", "mtu", str(_MTU)], check=True)
    return fd


def command(faults: Faults, hosts: dict[int, str]) -> list[str]:
    """What starts the emulator for hosts, whose addresses are given by namespace descriptor."""
    return [sys.executable, __file__, json.dumps(asdict(faults)), json.dumps(hosts)]


def main() -> None:
    faults, hosts = Faults(**json.loads(sys.argv[1])), json.loads(sys.argv[2])
    devices = {bytes(map(int, address.split("."))): _device(int(fd), address) for fd, address in hosts.items()}
    emulator = Emulator(faults, devices)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    emulator.run()
    sys.stdout.write(json.dumps(emulator.counts) + "\n")


if __name__ == "__main__":
    main()

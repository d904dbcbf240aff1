"""Jobs on three hosts whose network does all that networks do."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.system.jobs import took

from .emulator import Faults
from .hosts import Network, separate
from .jobs import LanesJob, outage

pytestmark = [pytest.mark.processes, pytest.mark.slow]

SIZES = (1,) * 6 + (2000,) * 2  # of two workers: the large ones are 96 KB, one for each server


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
def test_connections_that_are_reset_lose_nothing(type: str, tmp_path: Path, network: Network) -> None:
    one, two, three = network.hosts(3)
    with LanesJob(tmp_path, one, [one, two], [two, three]) as job:
        job.begin(type, SIZES)
        resets = 0
        for _ in range(6):
            resets += sum(host.reset() for host in (one, two, three))
            job.go_on(2)
        assert resets >= 12
        job.finish()


def test_a_network_that_loses_doubles_and_reorders(tmp_path: Path, network: Network) -> None:
    one, two, three = network.hosts(3)
    faults = Faults(delay=0.02, loss=0.01, double=0.01, reorder=0.01, seed=1)
    with network.emulated(faults, one, two, three) as bad, LanesJob(tmp_path, one, [one, two], [two, three]) as job:
        job.root = bad.addresses[0]
        job.begin("dist_async", SIZES, dict(zip((one, two, three), bad.addresses, strict=True)))
        job.go_on(20)
        job.finish()
    assert bad.counts["lost"] and bad.counts["doubled"] and bad.counts["reordered"]


def test_a_short_partition_heals_and_a_long_one_is_an_error_everywhere(tmp_path: Path, network: Network) -> None:
    one, two, three = network.hosts(3)
    with LanesJob(tmp_path, one, [one, two], [two, three]) as job:
        job.begin("dist_async", SIZES)
        separate(three, [one, two])
        outage(0.6)  # and what nft takes on a busy machine: less than a peer is waited for
        for host in (one, two, three):
            host.heal()
        healed = time.monotonic()
        job.go_on(3)
        took(healed, "from the end of the partition until all had pushed")
        begin = time.monotonic()
        separate(three, [one, two])
        outage(5.0)
        for host in (one, two, three):
            host.heal()
        job.fail()
        for process in job.processes:
            assert process.ended is not None
            took(begin, f"to the end of {process.role}", process.ended)


@pytest.mark.parametrize("hears", [True, False])
def test_a_host_that_hears_but_is_not_heard_or_the_other_way_round_is_given_up(
    hears: bool, tmp_path: Path, network: Network
) -> None:
    one, two, three = network.hosts(3)
    with LanesJob(tmp_path, one, [one, two], [two, three]) as job:
        job.begin("dist_sync", SIZES)
        begin = time.monotonic()
        cut, other = (one, three) if hears else (three, one)
        cut.cut_from(other)
        job.fail()
        took(begin, "from the one-way cut to the end of all")


def test_a_host_that_loses_power_is_given_up(tmp_path: Path, network: Network) -> None:
    """Its connections stay as they are at the others: nobody says that they have ended."""
    one, two, three = network.hosts(3)
    with LanesJob(tmp_path, one, [one, two], [two, three]) as job:
        job.begin("dist_async", SIZES)
        begin = time.monotonic()
        separate(three, [one, two])
        lost = job.of("worker")[1]
        lost.signal(signal.SIGKILL)
        job.ledger.stop = True
        job.wait()
        took(begin, "from the loss of power to the end of all")
        for process in job.processes:
            assert process is lost or (process.status == 1 and "worker 1" in process.stderr), process


def test_a_connection_that_is_half_open_is_replaced(tmp_path: Path, network: Network) -> None:
    """The worker's end of its connections is gone, and the others are not told."""
    one, two, three = network.hosts(3)
    with LanesJob(tmp_path, one, [one, two], [two, three]) as job:
        job.begin("dist_async", SIZES)
        for other in (one, two):
            other.deaf_to_resets_of(three)
        assert three.reset() >= 3  # to the scheduler and two servers
        job.go_on(3)
        job.finish()


def test_a_worker_and_a_server_that_cannot_hear_each_other_end_with_an_error(tmp_path: Path, network: Network) -> None:
    """The scheduler hears both of them."""
    one, two, three = network.hosts(3)
    with LanesJob(tmp_path, one, [one, two], [one, three]) as job:
        job.begin("dist_sync", SIZES)
        begin = time.monotonic()
        separate(three, [two])
        job.fail()
        took(begin, "from the cut to the end of all")
        assert "server 1" in job.of("worker")[1].stderr

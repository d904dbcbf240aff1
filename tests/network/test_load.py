"""A peer that is slow, and workers that are too fast."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness import wait_until
from tests.system.jobs import LONGEST

from .hosts import Network, ThisMachine
from .jobs import NetworkJob

pytestmark = [pytest.mark.processes, pytest.mark.slow]

PROGRAMS = Path(__file__).parent / "programs"
MIB = 1 << 20


def test_keys_of_other_servers_go_on_beside_a_slow_one(tmp_path: Path, network: Network) -> None:
    one, two, three = network.hosts(3)
    two.limit("1mbit")
    network.limit_towards(two, "1mbit")
    with NetworkJob(tmp_path, one, [one, two], [three]) as job:
        job.start_job(str(PROGRAMS / "slow_peer.py"))
        job.wait()
        assert [process.status for process in job.processes] == [0] * 4, job.processes
        [worker] = job.of("worker")
        alone, beside = (int(worker.said(name)) for name in ("alone", "beside"))
        print(f"{alone} rounds alone, {beside} beside the slow one")  # noqa: T201 - a figure to look at
        assert worker.said("waiting") != "0", "the slow server was not slow"
        assert beside > alone / 4  # it would be none; the machine may have other things to do


def test_a_server_that_is_flooded_keeps_its_memory(tmp_path: Path) -> None:
    """What it has taken in and not added is bounded by three pushes of each key of each worker."""
    here, times, workers, model = ThisMachine(), 25, 3, 8 * MIB
    with NetworkJob(tmp_path, here, [here], [here] * workers) as job:
        job.start_job(str(PROGRAMS / "flood.py"), str(times), PSLITE_TRANSPORT="tcp")
        [server] = job.of("server")
        for worker in job.of("worker"):
            worker.said("ready")
        before = most = memory(server.popen.pid)

        def ended() -> bool:
            nonlocal most
            most = max(most, memory(server.popen.pid))
            return server.status is not None

        wait_until(ended, LONGEST, "the end of the server")
        job.wait()
        assert [process.status for process in job.processes] == [0] * 5, job.processes
        print(f"{most - before:.0f} MiB more")  # noqa: T201 - a figure to look at
        assert (most - before) * MIB <= workers * 3 * model + 2 * model + 32 * MIB < workers * times * model / 2


def memory(pid: int) -> float:
    """MiB of a process that are in memory; 0 if it has just ended."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0

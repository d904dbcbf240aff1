"""``pslite run`` on two hosts, each with the keys of its own processes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clusters.named_hosts import NEEDS, require
from tests.launcher.launching import LONGEST, ROOT
from tests.launcher.test_by_hand import with_commands
from tests.network.hosts import Host, Network

pytestmark = pytest.mark.processes


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    require(NEEDS)
    with Network() as network:
        yield network.hosts(2)


def typed(stack: ExitStack, host: Host, line: str, directory: Path) -> subprocess.Popen[str]:
    """A line in a terminal on a host."""
    command = host.within("sh", "-c", f"exec {line}")
    process = subprocess.Popen(
        command, cwd=directory, env=with_commands(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


def test_a_job_on_two_hosts(hosts: list[Host], tmp_path: Path) -> None:
    """The scheduler prints its host's address; each host has only the keys that it needs."""
    near, far = (tmp_path / "near", tmp_path / "far")
    subprocess.run(["pslite", "keys", near / "keys", "-n", "2", "-s", "1"], env=with_commands(), check=True)
    (far / "keys").mkdir(parents=True)
    for name in ("server-0.key", "worker-1.key"):
        shutil.move(near / "keys" / name, far / "keys" / name)
    shutil.copy(near / "keys" / "roster.json", far / "keys" / "roster.json")
    hello = shlex.join([sys.executable, str(ROOT / "examples" / "hello.py"), "dist_sync"])
    with ExitStack() as stack:
        line = f"pslite run --role scheduler --interface eth0 -n 2 -s 1 --key keys -- {hello}"
        scheduler = typed(stack, hosts[0], line, near)
        assert scheduler.stderr
        head, server, worker = (scheduler.stderr.readline().strip() for _ in range(3))
        assert head.startswith(f"pslite: the scheduler listens on tcp://{hosts[0].address}:"), head
        others = [typed(stack, hosts[0], worker, near)]
        others += [typed(stack, hosts[1], line.replace(" --rank 0", ""), far) for line in (server, worker)]
        results = [process.communicate(timeout=LONGEST) for process in (scheduler, *others)]
        assert [process.returncode for process in (scheduler, *others)] == [0] * 4, results
    pulled = [f"worker {rank} of 2 pulls [3. 3. 3.]\n" for rank in (0, 1)]
    assert [out for out, _ in results[1:]] == [pulled[0], "", pulled[1]]

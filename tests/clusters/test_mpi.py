"""Jobs by Open MPI's real mpirun: on this host, and on several to which a stand-in for ssh leads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import is_running, wait_until
from tests.launcher.launching import LAUNCH, LONGEST, SLEEP, children, environment, pids

from . import named_hosts
from .named_hosts import NamedHosts, require
from .programs import FAIL, HOSTILE, JOB, SHOW, TRAIN, local_results, results, shown

pytestmark = pytest.mark.processes

MPI = ("--launcher", "mpi")
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@pytest.fixture(scope="module", autouse=True)
def _mpirun() -> None:
    require(["mpirun"])


@pytest.mark.slow
def test_a_job_trains_as_a_local_one(tmp_path: Path) -> None:
    env = environment(**AS_ROOT, TMPDIR=str(tmp_path))
    done = subprocess.run([*LAUNCH, *MPI, *JOB, *TRAIN], env=env, capture_output=True, text=True, timeout=LONGEST)
    assert done.returncode == 0, done.stderr
    assert results(done.stdout) == local_results()


class Batch:
    """A job of PBS with two tasks on each of two hosts; a shell leads mpirun from the first to the second."""

    def __init__(self, hosts: NamedHosts) -> None:
        self._hosts = hosts
        shell = hosts.remote_shell("shell", "host=$1; shift", 'sh -c "$*"')
        listed = hosts.directory / "nodefile"
        listed.write_text("node1\nnode1\nnode2\nnode2\n")
        self._env = AS_ROOT | {"PBS_NODEFILE": str(listed), "OMPI_MCA_plm_rsh_agent": str(shell)}
        self._env["TMPDIR"] = str(hosts.directory)

    def popen(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start the launcher."""
        command = self._hosts.within(*LAUNCH, *MPI, *arguments)
        env = environment(**self._env, **env)
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run it to its end; returns its status and what it wrote."""
        with self.popen(*arguments) as launcher:
            try:
                stdout, stderr = launcher.communicate(timeout=LONGEST)
            finally:
                launcher.kill()
        return launcher.returncode, stdout, stderr


@pytest.fixture(scope="module")
def batch() -> Iterator[Batch]:
    require(named_hosts.NEEDS)
    with named_hosts.named_hosts(2) as hosts:
        yield Batch(hosts)


def test_ranks_are_placed_as_tasks_and_arguments_arrive_unchanged(batch: Batch) -> None:
    status, stdout, stderr = batch.run("-n", "4", "-s", "2", *SHOW, *HOSTILE)
    assert status == 0, stderr
    hosts = {"0": "node1", "1": "node1", "2": "node2", "3": "node2"}
    assert shown(stdout) == {rank: (host, [*HOSTILE]) for rank, host in hosts.items()}


def test_the_status_of_the_failing_worker_is_the_launchers_and_the_report_names_it(batch: Batch) -> None:
    status, _, stderr = batch.run(*JOB, *FAIL)
    assert status == 7, stderr
    assert re.search(r"^pslite: worker 3 on node2 \(pid \d+\) failed: exit code 7", stderr, re.MULTILINE), stderr


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where processes leave their pids."""
    path = tmp_path / "pids"
    path.mkdir()
    return path


@contextmanager
def sleeping(batch: Batch, notes: Path, program: str = SLEEP) -> Iterator[subprocess.Popen[str]]:
    """The launcher of a job that sleeps; at the end none of its processes runs."""
    line = ("-n", "2", "-s", "2", "--grace", "2", "python3", "-c", program)
    with batch.popen(*line, PIDS=str(notes)) as launcher:
        try:
            processes = [*pids(notes, 5).values()]
            yield launcher
            wait_until(lambda: not any(map(is_running, processes)), LONGEST, "the end of all processes")
            launcher.communicate(timeout=LONGEST)
        finally:
            launcher.kill()


def test_nothing_is_left_when_the_launcher_is_killed(batch: Batch, notes: Path) -> None:
    with sleeping(batch, notes) as launcher:
        launcher.kill()


#: It is there for longer than mpirun waits before it kills.
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP


@pytest.mark.parametrize(("node", "signum"), [("node1", signal.SIGKILL), ("node2", signal.SIGTERM)])
def test_a_run_of_mpi_that_is_ended_is_a_host_that_is_lost(batch: Batch, notes: Path, node: str, signum: int) -> None:
    with sleeping(batch, notes, STUBBORN) as launcher:
        runs = {Path(f"/proc/{pid}/cmdline").read_bytes(): pid for pid in children(launcher.pid)}
        [run] = [pid for line, pid in runs.items() if node.encode() in line.split(b"\0")]
        os.kill(run, signum)
        _, stderr = launcher.communicate(timeout=LONGEST)
        assert launcher.returncode != 0 and f" {node}" in stderr, stderr


def test_nothing_is_left_after_ctrl_c(batch: Batch, notes: Path) -> None:
    with sleeping(batch, notes) as launcher:
        launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=LONGEST)
        assert launcher.returncode == 130

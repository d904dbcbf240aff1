"""The script of a Grid Engine job, as far as that can be had without one: qrsh is a stand-in here."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.launching import LONGEST, environment, launch

from . import named_hosts
from .named_hosts import NamedHosts, require
from .programs import FAIL, HOSTILE, JOB, SHOW, shown

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def hosts() -> Iterator[NamedHosts]:
    """Two hosts; from the first a stand-in for qrsh leads to both."""
    require(named_hosts.NEEDS)
    with named_hosts.named_hosts(2) as hosts:
        (hosts.directory / "pe_hostfile").write_text("node1 2 all.q@node1 UNDEFINED\nnode2 2 all.q@node2 UNDEFINED\n")
        hosts.remote_shell("qrsh", '[ "$1 $2 $3" = "-inherit -V -noshell" ] || exit 9\nhost=$4; shift 4', '"$@"')
        yield hosts


def run(hosts: NamedHosts, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script that the launcher prints, as the job's on the first host."""
    printed = launch("--launcher", "sge", *arguments)
    assert printed.returncode == 0, printed.stderr
    script = hosts.directory / "job.sh"
    script.write_text(printed.stdout)
    env = environment(PE_HOSTFILE=str(hosts.directory / "pe_hostfile"), JOB_ID="1")
    env["PATH"] = f"{hosts.directory}:{env['PATH']}"
    command = hosts.within("/bin/bash", str(script))
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST)


def test_ranks_are_placed_as_slots_and_arguments_arrive_unchanged(hosts: NamedHosts) -> None:
    done = run(hosts, "-n", "4", "-s", "2", "--", *SHOW, *HOSTILE)
    assert done.returncode == 0, done.stderr
    placed = {"0": "node1", "1": "node1", "2": "node2", "3": "node2"}
    assert shown(done.stdout) == {rank: (host, [*HOSTILE]) for rank, host in placed.items()}


def test_the_status_of_the_failing_worker_is_the_scripts_and_the_report_names_it(hosts: NamedHosts) -> None:
    done = run(hosts, *JOB, *FAIL)
    assert done.returncode == 7 and "pslite: worker 3 on node2 (pid " in done.stderr, done.stderr


def test_a_job_without_its_hosts_is_named(tmp_path: Path) -> None:
    qrsh = tmp_path / "qrsh"
    qrsh.write_text("#!/bin/sh\n")
    qrsh.chmod(0o755)
    listed = tmp_path / "hosts"
    for text, why in (("", "no host is named there"), ("node1\n", "a line is not HOST SLOTS")):
        listed.write_text(text)
        path = f"{tmp_path}:{environment()['PATH']}"
        done = launch("--launcher", "sge", "-n", "1", "python3", PATH=path, PE_HOSTFILE=str(listed))
        assert done.returncode == 2 and f"PE_HOSTFILE={listed}: {why}" in done.stderr, done.stderr

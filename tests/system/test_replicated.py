"""Servers of real jobs are killed, their backups go on for them, and the job ends as it would have."""

from __future__ import annotations

import re
import sys

import pytest

from .jobs import SCRIPTS, launch, report

pytestmark = pytest.mark.processes

JOB = ("-n", 2, "-s", 2, "--replicas", 1, sys.executable, SCRIPTS / "replicated.py")


def weights(rule: str, server: int, step: int, **env: str) -> tuple[set[str], str]:
    """What the workers have at the end, and what the launcher said; they must have ended well."""
    done = launch(*JOB, rule, server, step, **env)
    assert done.returncode == 0, done.stderr
    said = re.findall(r"weights (.*)", done.stdout)
    assert len(said) == 2
    return set(said), done.stderr


@pytest.mark.parametrize(("rule", "transport"), [("adam", "shm"), ("sgd", "tcp")])
def test_the_weights_have_the_bits_of_a_job_in_which_nobody_died(rule: str, transport: str) -> None:
    expected, said = weights(rule, 0, -1)
    assert len(expected) == 1
    assert "died" not in said
    got, said = weights(rule, 0, 20, PSLITE_TRANSPORT=transport)
    assert got == expected
    assert "server 1 goes on for it, and the job would not survive the death of server 1" in said


def test_the_death_of_both_servers_is_the_end() -> None:
    script = """
import kvstore, os, signal, json, numpy, pathlib
kvstore.serve()
with kvstore.create("dist_sync") as kv:
    kv.init("w", numpy.zeros(3))
    kv.barrier()
    for process in json.loads((pathlib.Path(os.environ["PSLITE_JOB_DIR"]) / "processes.json").read_text()):
        if process["role"] == "server" and kv.rank == 0:
            os.kill(process["pid"], signal.SIGKILL)
    for _ in range(5):
        kv.pushpull("w", numpy.ones(3))
"""
    done = launch("-n", 2, "-s", 2, "--replicas", 1, sys.executable, "-c", script)
    assert done.returncode == 137, done.stderr
    assert re.match(r"pslite: server [01] on localhost \(pid \d+\) died: signal 9", report(done))

"""Jobs in a real Slurm of two nodes."""

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
from tests.launcher.launching import LAUNCH, LONGEST, SLEEP, children, launch, pids

from .named_hosts import require
from .programs import FAIL, HOSTILE, JOB, SHOW, TRAIN, local_results, results, shown
from .slurm_rig import NEEDS, Slurm
from .slurm_rig import slurm as running_slurm

pytestmark = pytest.mark.processes

LINE = (*LAUNCH, "--launcher", "slurm")
TASKS = ("salloc", "--quiet", "--ntasks=4", "--ntasks-per-node=2")  # two workers on each node


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    require(NEEDS)
    with running_slurm(nodes=2) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_batch_job_trains_as_a_local_one(slurm: Slurm, tmp_path: Path) -> None:
    script = launch("--launcher", "slurm", "--sbatch", *JOB, *TRAIN)
    assert script.returncode == 0, script.stderr
    account = slurm.batch(script.stdout, "--nodes=2", f"--chdir={tmp_path}")
    [log] = tmp_path.iterdir()
    assert re.fullmatch(r"pslite-train_images-\d+\.log", log.name)
    assert "JobState=COMPLETED" in account, log.read_text()
    assert "NodeList=node[1-2]" in account and results(log.read_text()) == local_results(), log.read_text()


def test_ranks_are_placed_as_tasks_and_arguments_arrive_unchanged(slurm: Slurm) -> None:
    done = slurm.run(*TASKS, *LINE, "-n", "4", "-s", "2", *SHOW, *HOSTILE)
    assert done.returncode == 0, done.stderr
    hosts = {"0": "node1", "1": "node1", "2": "node2", "3": "node2"}
    assert shown(done.stdout) == {rank: (host, [*HOSTILE]) for rank, host in hosts.items()}


def test_a_printed_script_has_the_arguments_unchanged(slurm: Slurm, tmp_path: Path) -> None:
    script = launch("--launcher", "slurm", "--sbatch", "-n", "1", "--", *SHOW, "--sbatch", *HOSTILE).stdout
    assert "JobState=COMPLETED" in slurm.batch(script, f"--chdir={tmp_path}", "--output=log")
    [(host, arguments)] = shown((tmp_path / "log").read_text()).values()
    assert host in ("node1", "node2") and arguments == ["--sbatch", *HOSTILE]


def test_the_status_of_the_failing_worker_is_the_launchers_and_the_report_names_it(slurm: Slurm) -> None:
    done = slurm.run(*TASKS, *LINE, *JOB, *FAIL)
    assert done.returncode == 7, done.stderr
    assert re.search(r"^pslite: worker 3 on node2 \(pid \d+\) failed: exit code 7", done.stderr, re.MULTILINE), done


def test_a_job_has_all_that_the_allocation_has_on_a_node(slurm: Slurm) -> None:
    show = "import os; print(os.environ['DMLC_ROLE'], os.environ['CUDA_VISIBLE_DEVICES'], len(os.sched_getaffinity(0)))"
    nodes = ("salloc", "--quiet", "--nodes=2", "--exclusive", "--gpus-per-node=2", "--mem=500")
    done = slurm.run(*nodes, *LINE, "-n", "2", "-s", "2", "--no-prefix", "python3", "-c", show)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"{role} 0,1 {os.cpu_count()}" for role in ("scheduler", "server", "server", "worker", "worker")
    ]


def test_mpirun_comes_to_the_nodes_by_slurm(slurm: Slurm, tmp_path: Path) -> None:
    require(["mpirun"])
    env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "TMPDIR": str(tmp_path)}
    done = slurm.run(*TASKS, *LAUNCH, "--launcher", "mpi", "-n", "4", "-s", "2", *SHOW, **env)
    assert done.returncode == 0, done.stderr
    assert [host for _, (host, _) in sorted(shown(done.stdout).items())] == ["node1", "node1", "node2", "node2"]


@contextmanager
def sleeping(slurm: Slurm, notes: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """salloc with the launcher of a job that sleeps, and the pids of all processes; at the end none of these runs."""
    sleep = ("-n", "2", "-s", "2", "python3", "-c", SLEEP)
    with slurm.popen("salloc", "--quiet", "--nodes=2", *LINE, *sleep, PIDS=str(notes)) as salloc:
        try:
            processes = [*pids(notes, 5).values()]
            yield salloc, processes
            wait_until(lambda: not any(map(is_running, processes)), LONGEST, "the end of all processes")
            salloc.communicate(timeout=LONGEST)
            slurm.settle()
        finally:
            salloc.kill()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where processes leave their pids."""
    path = tmp_path / "pids"
    path.mkdir()
    return path


def test_nothing_is_left_when_the_launcher_is_killed(slurm: Slurm, notes: Path) -> None:
    with sleeping(slurm, notes) as (salloc, _):
        [launcher] = children(salloc.pid)
        os.kill(launcher, signal.SIGKILL)


def test_nothing_is_left_of_a_cancelled_job(slurm: Slurm, notes: Path) -> None:
    with sleeping(slurm, notes):
        job = slurm.run("squeue", "-h", "-o", "%A").stdout.strip()
        assert slurm.run("scancel", job).returncode == 0


def test_a_step_that_is_killed_is_a_host_that_is_lost(slurm: Slurm, notes: Path) -> None:
    with sleeping(slurm, notes) as (salloc, _):
        [launcher] = children(salloc.pid)
        steps = {Path(f"/proc/{pid}/cmdline").read_bytes(): pid for pid in children(launcher)}
        [step] = [pid for line, pid in steps.items() if b"--nodelist=node2" in line]
        os.kill(step, signal.SIGKILL)
        _, stderr = salloc.communicate(timeout=LONGEST)
        assert salloc.returncode == 1, stderr
        assert stderr.endswith("pslite: node2: srun ended by signal 9\n  lost with it: server 1, worker 1\n")


@pytest.mark.parametrize(
    ("allocation", "env", "text"),
    [
        ([], {}, "--launcher slurm runs inside an allocation: put salloc"),
        (["salloc"], {"SLURM_LABELIO": "1"}, "SLURM_LABELIO=1: the steps of --launcher slurm cannot run with it"),
        (["salloc", "-N2", "--gpus=4"], {}, "--gpus gives a node's step not all of its GPUs: ask for --gpus-per"),
        (["salloc", "-n2", "--gpus-per-task=1"], {}, "--gpus-per-task gives a node's step not all"),
        (["salloc"], {"SLURM_JOB_NODELIST": ""}, "the nodes are not known"),
    ],
)
def test_what_is_in_the_way_is_named(slurm: Slurm, allocation: list[str], env: dict[str, str], text: str) -> None:
    line = ["env", *(f"{name}={value}" for name, value in env.items()), *LINE, "-n", "1", "python3"]
    done = slurm.run(*allocation, *line)
    assert done.returncode == 2 and text in done.stderr, done.stderr

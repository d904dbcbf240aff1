"""The jobs that are measured, ours and peers', and what their workers measured."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pslite.errors import ConfigError

from .peers.run import Job
from .processes import Process, execute

RUN = str(Path(__file__).parent / "peers" / "run.py")
ONE_THREAD = ("env", "OMP_NUM_THREADS=1")
PEERS = {
    "mxnet": ("mxnet", "python -m venv mx && mx/bin/pip install numpy==1.23.5 mxnet==1.9.1"),
    "gloo": ("torch", "pip install torch"),
    "mpi": ("mpi4py", "install Open MPI, and pip install mpi4py"),
}


@dataclass(frozen=True)
class Measured:
    """Of one job: seconds of each round, the slowest worker's; by role the CPU seconds of all its processes in all
    rounds, and the bytes of memory of the largest process (PSS, with the interpreter)."""

    rounds: list[float]
    cpu: dict[str, float]
    memory: dict[str, int]


def run_ours(job: dict[str, Any], servers: int, transport: str | None) -> Measured:
    """Run one job of this store under the launcher. ``job``: the fields of Job without ``directory``."""
    with tempfile.TemporaryDirectory(prefix="pslite-bench-") as directory:
        path = _write(Job(**job, directory=directory))
        command = launched(job["workers"], servers, transport, "kvstore.bench.ours", path)
        execute([("launcher", command)], Path(directory))
        return read(Path(directory), job["workers"])


def launched(workers: int, servers: int, transport: str | None, module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package in every process of a job; over tcp without encryption."""
    env = ["--env", "OMP_NUM_THREADS=1", *([] if transport is None else ["--env", f"PSLITE_TRANSPORT={transport}"])]
    env += ["--env", "PSLITE_SECURITY=none"] if transport == "tcp" else []  # peers do not encrypt either
    launch = [sys.executable, "-m", "launcher", "-n", str(workers), "-s", str(servers), "--grace", "5", "--no-prefix"]
    return [*launch, *env, sys.executable, "-m", module, *arguments]


def run_peer(name: str, python: str, job: dict[str, Any], servers: int) -> Measured:
    """Run one job of a peer, in its interpreter."""
    with tempfile.TemporaryDirectory(prefix="pslite-bench-") as directory:
        listed = str(Path(directory, "processes.json")) if name == "mxnet" else ""
        path = _write(Job(**job, directory=directory, processes=listed))
        workers = [[python, RUN, f"{name}_worker", path, str(rank)] for rank in range(job["workers"])]
        if name == "mxnet":
            execute(_mxnet(python, workers, servers), Path(directory))
        elif name == "gloo":
            command = [*ONE_THREAD, "GLOO_SOCKET_IFNAME=lo"]
            execute([("worker", [*command, *worker]) for worker in workers], Path(directory))
        else:
            root = ["--allow-run-as-root"] if os.getuid() == 0 else []
            launch = ["mpirun", "--oversubscribe", *root, "-n", str(job["workers"]), *ONE_THREAD]
            execute([("mpirun", [*launch, *workers[0]])], Path(directory))
        return read(Path(directory), job["workers"])


def _mxnet(python: str, workers: list[list[str]], servers: int) -> list[Process]:
    with socket.socket() as probe:  # the scheduler can only bind a port that is free, so it is chosen just before
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = [f"DMLC_NUM_WORKER={len(workers)}", f"DMLC_NUM_SERVER={servers}"]
    place += ["DMLC_PS_ROOT_URI=127.0.0.1", f"DMLC_PS_ROOT_PORT={port}"]
    serve = [python, "-c", "import mxnet"]  # in these roles the import serves until the job ends
    roles = [("scheduler", serve), *[("server", serve)] * servers, *[("worker", worker) for worker in workers]]
    return [(role, [*ONE_THREAD, f"DMLC_ROLE={role}", *place, *command]) for role, command in roles]


def check_peer(name: str, python: str) -> None:
    """Raise ConfigError unless the interpreter is there and has what the peer needs."""
    module, remedy = PEERS[name]
    remedy += ", and give the interpreter's path"
    if shutil.which(python) is None:
        raise ConfigError(name="--peer-python", value=python, allowed=f"no such interpreter; {remedy}")
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise ConfigError(name="--peer-python", value=python, allowed=f"{reason}; {remedy}")
    if name == "mpi" and shutil.which("mpirun") is None:
        raise ConfigError(name="--peer", value=name, allowed="mpirun is not installed; install Open MPI")


def baseline(python: str) -> int:
    """Bytes of memory of an interpreter that has imported numpy and done nothing."""
    return int(subprocess.run([python, RUN, "baseline"], capture_output=True, text=True, check=True).stdout)


def _write(job: Job) -> str:
    path = Path(job.directory, "job.json")
    path.write_text(json.dumps(asdict(job)))
    return str(path)


def read(directory: Path, workers: int) -> Measured:
    """What the workers of a job left in its directory."""
    found = [json.loads((directory / f"worker-{rank}.json").read_text()) for rank in range(workers)]
    cpu: dict[str, float] = {}
    memory: dict[str, int] = {}
    for process in (process for worker in found for process in worker["processes"]):
        role = process["role"]
        cpu[role] = cpu.get(role, 0.0) + process["cpu"]
        memory[role] = max(memory.get(role, 0), process["pss"])
    return Measured([max(times) for times in zip(*(worker["rounds"] for worker in found), strict=True)], cpu, memory)

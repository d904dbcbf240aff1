"""``--launcher slurm``: inside an allocation of Slurm, a job step for the agent of each node."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import Options

from .allocation import agent_on, named, offered

#: These change what srun does or writes, and have no option that says the contrary.
_IN_THE_WAY = ("SLURM_EXACT", "SLURM_EXCLUSIVE", "SLURM_LABELIO", "SLURM_UNBUFFEREDIO")
#: GPUs by any of these are not the node's: a step gets one task's, or srun refuses.
_GPUS = ("SLURM_GPUS_PER_TASK", "SLURM_GPUS_PER_SOCKET", "SLURM_NTASKS_PER_GPU", "SLURM_GPUS")
_TASKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
_LONGEST = 30  # seconds for scontrol, which asks nobody


def hosts(options: Options, environ: Mapping[str, str]) -> Sequence[Host]:
    """Those of ``-H``, else all nodes of the allocation."""
    if "SLURM_JOB_NODELIST" not in environ:
        ways = "put salloc -N 2 before this line, or --sbatch into it and | sbatch -N 2 after it"
        raise UsageError(f"--launcher slurm runs inside an allocation: {ways}")
    if shutil.which("srun") is None:
        raise UsageError("--launcher slurm needs the program srun: install Slurm's clients on this host")
    if wrong := [name for name in _IN_THE_WAY if name in environ]:
        raise UsageError(f"{wrong[0]}={environ[wrong[0]]}: the steps of --launcher slurm cannot run with it: unset it")
    found = named(options) or nodes(environ, options.num_workers)
    if wrong := [name for name in _GPUS if name in environ and (name != "SLURM_GPUS" or len(found) > 1)]:
        option = "--" + wrong[0].removeprefix("SLURM_").lower().replace("_", "-")
        raise UsageError(f"{option} gives a node's step not all of its GPUs: ask for --gpus-per-node or --gres=gpu:N")
    return found


def argv(host: Host, options: Options) -> list[str]:
    """A step with all that the job has on the node, beside any others."""
    step = ["srun", "--overlap", "--whole", "--nodes=1", "--ntasks=1", f"--nodelist={host.name}"]
    step += ["--cpu-bind=none", "--mem=0", "--export=ALL", "--input=all", "--output=all", "--error=all"]
    return [*step, "--", *agent_on(host, options)]


def nodes(environ: Mapping[str, str], workers: int) -> tuple[Host, ...]:
    """The nodes of the allocation, with its tasks if it was asked for a number of them. Raises UsageError."""
    command = ["scontrol", "show", "hostnames", environ["SLURM_JOB_NODELIST"]]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"--launcher slurm: the nodes are not known: {error}") from None
    names = done.stdout.split()
    if done.returncode or not names:
        raise UsageError(f"--launcher slurm: the nodes are not known: {done.stderr.strip()}")
    counts = _tasks(environ.get("SLURM_TASKS_PER_NODE", "")) if "SLURM_NTASKS" in environ else []
    return offered(zip(names, counts if len(counts) == len(names) else [0] * len(names), strict=True), workers)


def _tasks(text: str) -> list[int]:
    """By node, from ``2(x3),1``."""
    return [int(count) for count, times in _TASKS.findall(text) for _ in range(int(times or 1))]

"""``--launcher mpi``: Open MPI's mpirun starts the agent on each host, by ssh or by the batch system that it is in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence

from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import Options

from . import slurm
from .allocation import agent_on, listed, named, offered

#: Files with a line for each task (PBS, LSF) or for each host (Grid Engine: its name, then how many).
_NODE_FILES = ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE")


def hosts(options: Options, environ: Mapping[str, str]) -> Sequence[Host]:
    """Those of ``-H``, else of the batch system's job that this is in, else this host."""
    if shutil.which("mpirun") is None:
        raise UsageError("--launcher mpi needs the program mpirun: install Open MPI (openmpi-bin)")
    if (given := named(options)) is not None:
        return given
    for variable in _NODE_FILES:
        if path := environ.get(variable):
            lines = listed(variable, path)
            return offered(((words[0], _tasks(words)) for words in lines), options.num_workers)
    if "SLURM_JOB_NODELIST" in environ:
        return slurm.nodes(environ, options.num_workers)
    return (Host("localhost"),)


def argv(host: Host, options: Options) -> list[str]:
    """A run of one process, which may use the whole host."""
    run = ["mpirun", "-n", "1", "--host", host.name, "--bind-to", "none"]
    # mpirun kills what it started 1 s after SIGTERM. In a session of its own the agent has the time to end its
    # processes first: what it hears of mpirun's end is that stdin closes.
    return [*run, "setsid", "--fork", "--wait", *agent_on(host, options)]


def _tasks(words: Sequence[str]) -> int:
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 1

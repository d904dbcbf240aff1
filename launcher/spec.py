"""From options to the list of processes to start. Pure: no process, file or clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .options import Options

#: What exists only once the job has been opened; the last but one with TCP only, the last for the scheduler only.
SET_AT_START = (
    "DMLC_PS_ROOT_URI",
    "DMLC_PS_ROOT_PORT",
    "PSLITE_JOB_ID",
    "PSLITE_JOB_DIR",
    "PSLITE_ROOT",
    "PSLITE_KEY_FILE",
    "PSLITE_ROOT_FD",
)
#: What tells a process its place in a job. Inherited values belong to another job: the agent removes them.
JOB_VARIABLES = frozenset(
    (
        *("DMLC_ROLE", "DMLC_NUM_WORKER", "DMLC_NUM_SERVER", "DMLC_JOB_CLUSTER"),
        *("DMLC_RANK", "DMLC_TASK_ID", "DMLC_WORKER_ID", "DMLC_SERVER_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
        *("PSLITE_MAX_RESTARTS", "PSLITE_RESTARTS", "PSLITE_AGENT_FD", "PSLITE_REPLICAS", "PSLITE_MAX_WORKERS"),
        *SET_AT_START,
    )
)

_ENV = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:[=:](.*))?", re.DOTALL)


class UsageError(ValueError):
    """The command line cannot be carried out; the text says what to change."""


@dataclass(frozen=True)
class ProcessSpec:
    """One process to start: ``env`` is what it gets on top of the environment of its host's agent."""

    role: str
    rank: int
    host: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    starts: bool = True  # with the job; else it is a server for ``pslite scale`` to start

    @property
    def label(self) -> str:
        """``worker 0``, ``server 1``, ``scheduler``."""
        return self.role if self.role == "scheduler" else f"{self.role} {self.rank}"

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "role": self.role,
            "rank": self.rank,
            "host": self.host,
            "argv": list(self.argv),
            "env": dict(self.env),
            "starts": self.starts,
        }


@dataclass(frozen=True)
class Elastic:
    """How many workers a job may have at a time, and what to start for one more."""

    least: int  # it begins with these
    most: int
    worker: Callable[[int], ProcessSpec]  # by rank


@dataclass(frozen=True)
class JobSpec:
    """All processes of a job, in the order in which they start."""

    processes: tuple[ProcessSpec, ...]
    transport: str  # of the scheduler's listening socket: ipc or tcp
    keys: bool  # every process gets a key pair of its own
    notices: tuple[str, ...]  # said once on stderr
    max_restarts: int = 0  # of each process that a signal ended
    shrinks: bool = False  # when a signal ends a worker the others go on without it
    replicas: int = 0  # when a signal ends a server another one goes on for it
    elastic: Elastic | None = None  # workers may join the running job
    shards: int = 0  # servers' ranks that can be moved between processes


def plan(options: Options, environ: Mapping[str, str], import_root: str | None = None) -> JobSpec:
    """What to start for these options.

    ``environ`` is the launcher's own environment. ``import_root``, if given, is put first in every process's
    PYTHONPATH: the source checkout, when the packages are not installed. Raises UsageError.
    """
    common = dict(_common(options, environ, import_root)) | _parse_env("--env", options.env, environ)
    servers = common | _parse_env("--env-server", options.env_server, environ)
    workers = common | _parse_env("--env-worker", options.env_worker, environ)
    notices = []
    total = 1 + options.num_servers + options.num_workers
    # Every process would start a thread per core for its linear algebra, and they would fight for the cores.
    if not environ.get("OMP_NUM_THREADS") and any("OMP_NUM_THREADS" not in env for env in (servers, workers)):
        common, servers, workers = ({"OMP_NUM_THREADS": "1"} | env for env in (common, servers, workers))
        notices.append(f"OMP_NUM_THREADS=1, for {total} processes share this host; set it to choose another number")
    server_argv = options.server_command or options.command
    processes = [_process("scheduler", 0, server_argv, common)]
    processes += [
        _process("server", rank, server_argv, servers, starts=rank < options.num_servers)
        for rank in range(options.max_servers)
    ]

    def worker(rank: int) -> ProcessSpec:
        return _worker(rank, options, workers)

    processes += [worker(rank) for rank in range(options.num_workers)]
    elastic = None if options.elastic is None else Elastic(*options.elastic, worker)
    tcp, open_to_all = (
        common.get(name, environ.get(name, "")).strip().lower() == value
        for name, value in (("PSLITE_TRANSPORT", "tcp"), ("PSLITE_SECURITY", "none"))
    )
    if tcp and open_to_all:
        notices.append("PSLITE_SECURITY=none: whoever can connect to this host can read and change the model")
    listens, keys = "tcp" if tcp else "ipc", tcp and not open_to_all
    shrinks = options.on_worker_lost == "shrink"
    restarts, replicas = options.max_restarts, options.replicas
    shards = options.max_servers if restarts and not replicas else 0
    return JobSpec(tuple(processes), listens, keys, tuple(notices), restarts, shrinks, replicas, elastic, shards)


def _common(options: Options, environ: Mapping[str, str], import_root: str | None) -> Iterator[tuple[str, str]]:
    yield "DMLC_NUM_WORKER", str(_at_the_start(options))
    yield "DMLC_NUM_SERVER", str(options.max_servers)
    yield "DMLC_JOB_CLUSTER", options.launcher
    yield "PYTHONUNBUFFERED", "1"
    if options.start_timeout is not None:
        yield "PSLITE_START_TIMEOUT", f"{options.start_timeout:g}"
    if options.max_restarts:
        yield "PSLITE_MAX_RESTARTS", str(options.max_restarts)
    if options.replicas:
        yield "PSLITE_REPLICAS", str(options.replicas)
    if options.elastic is not None:
        yield "PSLITE_MAX_WORKERS", str(options.elastic[1])
    if options.on_worker_lost is not None:
        yield "PSLITE_ON_WORKER_LOST", options.on_worker_lost
    if options.p3:
        yield "DMLC_PS_VAN_TYPE", "p3"
    if options.checkpoint_dir is not None:
        yield "PSLITE_CHECKPOINT_DIR", options.checkpoint_dir
        yield "PSLITE_RESUME", "1" if options.resume else "0"
    if options.checkpoint_every is not None:
        yield "PSLITE_CHECKPOINT_EVERY", f"{options.checkpoint_every:g}"
    if options.checkpoint_keep is not None:
        yield "PSLITE_CHECKPOINT_KEEP", str(options.checkpoint_keep)
    if import_root:
        inherited = environ.get("PYTHONPATH")
        yield "PYTHONPATH", f"{import_root}:{inherited}" if inherited else import_root


def _at_the_start(options: Options) -> int:
    """How many workers the job begins with; in an elastic one the others join it."""
    return options.num_workers if options.elastic is None else options.elastic[0]


def _process(role: str, rank: int, argv: Sequence[str], env: dict[str, str], starts: bool = True) -> ProcessSpec:
    own = {"DMLC_ROLE": role}
    if role == "server":
        own["DMLC_SERVER_ID"] = str(rank)
    return ProcessSpec(role, rank, "localhost", tuple(argv), own | env, starts)


def _worker(rank: int, options: Options, env: dict[str, str]) -> ProcessSpec:
    own = {
        "DMLC_ROLE": "worker",
        "DMLC_WORKER_ID": str(rank),
        "RANK": str(rank),
        "WORLD_SIZE": str(_at_the_start(options)),
        "LOCAL_RANK": str(rank),
    }
    return ProcessSpec("worker", rank, "localhost", options.command, own | env)


def _parse_env(option: str, texts: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """``NAME=V``, ``NAME:V`` (as MXNet writes it), or ``NAME`` with the launcher's own value."""
    env = {}
    for text in texts:
        match = _ENV.fullmatch(text)
        if match is None:
            raise UsageError(f"{option} {text!r}: give NAME, NAME=VALUE or NAME:VALUE")
        name, value = match[1], match[2]
        if name in JOB_VARIABLES:
            raise UsageError(f"{option} {name}: this variable is set by the launcher")
        if value is None and name not in environ:
            raise UsageError(f"{option} {name}: not set in the launcher's environment; give {name}=VALUE")
        env[name] = environ[name] if value is None else value
    return env

"""From options to the list of processes to start. Pure: no process, file or clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import UsageError
from .hosts import Host
from .options import Options
from .placement import Placement

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

#: What other hosts get of the launcher's own environment: settings, and where Python looks for packages.
_SETTINGS = ("DMLC_", "PS_", "PSLITE_", "MXNET_")
_FORWARDED = ("OMP_NUM_THREADS", "PYTHONPATH")
_OF_ONE_HOST = ("DMLC_NODE_HOST", "DMLC_INTERFACE")

_ENV = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:[=:](.*))?", re.DOTALL)


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

    hosts: tuple[Host, ...]  # the scheduler is on the first
    processes: tuple[ProcessSpec, ...]
    transport: str  # of the scheduler's listening socket: ipc or tcp
    keys: bool  # every process gets a key pair of its own
    notices: tuple[str, ...]  # said once on stderr
    max_restarts: int = 0  # of each process that a signal ended
    shrinks: bool = False  # when a signal ends a worker the others go on without it
    replicas: int = 0  # when a signal ends a server another one goes on for it
    elastic: Elastic | None = None  # workers may join the running job
    shards: int = 0  # servers' ranks that can be moved between processes
    interface: str | None = None  # of the scheduler's host, where it listens
    cwd: Mapping[str, str] = field(default_factory=dict)  # where processes run, by host; elsewhere it must be said
    start_timeout: float | None = None  # seconds for all hosts to answer


def plan(
    options: Options,
    hosts: Sequence[Host],
    environ: Mapping[str, str],
    import_root: str | None = None,
    here: str = ".",
) -> JobSpec:
    """What to start for these options on these hosts.

    ``environ`` and ``here`` are the launcher's own environment and directory. ``import_root``, if given, is put first
    in every process's PYTHONPATH: the source checkout, when the packages are not installed. Raises UsageError.
    """
    common = dict(_common(options, hosts, environ, import_root)) | _parse_env("--env", options.env, environ)
    servers = common | _parse_env("--env-server", options.env_server, environ)
    workers = common | _parse_env("--env-worker", options.env_worker, environ)
    notices = []
    # Every process would start a thread per core for its linear algebra, and they would fight for the cores.
    if not environ.get("OMP_NUM_THREADS") and any("OMP_NUM_THREADS" not in env for env in (servers, workers)):
        for env in (common, servers, workers):
            env.setdefault("OMP_NUM_THREADS", "1")
        total = 1 + options.num_servers + options.num_workers
        shared = f"{len(hosts)} hosts" if len(hosts) > 1 else "this host" if hosts[0].is_here else hosts[0].name
        notices.append(f"OMP_NUM_THREADS=1, for {total} processes share {shared}; set it to choose another number")
    roles = _Roles(options, Placement(hosts, options.num_workers, options.servers_on), _addresses(hosts), workers)
    processes = [roles.scheduler(common), *(roles.server(rank, servers) for rank in range(options.max_servers))]
    processes += [roles.worker(rank) for rank in range(options.num_workers)]
    if options.replicas and len({p.host for p in processes if p.role == "server"}) == 1 < len(hosts):
        notices.append("all servers are on one host, and so are their replicas: --servers-on names several")
    transport, keys = _transport(hosts, common, environ)
    if transport == "tcp" and not keys:
        notices.append("PSLITE_SECURITY=none: whoever can connect to these hosts can read and change the model")
    return JobSpec(
        hosts=tuple(hosts),
        processes=tuple(processes),
        transport=transport,
        keys=keys,
        notices=tuple(notices),
        max_restarts=options.max_restarts,
        shrinks=options.on_worker_lost == "shrink",
        replicas=options.replicas,
        elastic=None if options.elastic is None else Elastic(*options.elastic, roles.worker),
        shards=_shards(options, processes),
        interface=options.interface,
        cwd={host.name: cwd for host in hosts if (cwd := _working_directory(host, options, here)) is not None},
        start_timeout=options.start_timeout,
    )


def _working_directory(host: Host, options: Options, here: str) -> str | None:
    if options.chdir is not None or host.is_here:
        return options.chdir
    return options.sync_dst_dir or here


def _transport(hosts: Sequence[Host], common: Mapping[str, str], environ: Mapping[str, str]) -> tuple[str, bool]:
    """Of the scheduler's listening socket; and whether there are keys."""

    def said(name: str) -> str:
        return common.get(name, environ.get(name, "")).strip().lower()

    tcp = said("PSLITE_TRANSPORT") == "tcp" or not all(host.is_here for host in hosts)
    return "tcp" if tcp else "ipc", tcp and said("PSLITE_SECURITY") != "none"


def _shards(options: Options, processes: Sequence[ProcessSpec]) -> int:
    """The agent that moves servers has all of them."""
    together = len({process.host for process in processes if process.role == "server"}) == 1
    if options.max_servers > options.num_servers and not together:
        raise UsageError(f"--max-servers {options.max_servers}: servers move on one host only: name it by --servers-on")
    return options.max_servers if options.max_restarts and not options.replicas and together else 0


def _common(
    options: Options, hosts: Sequence[Host], environ: Mapping[str, str], import_root: str | None
) -> Iterator[tuple[str, str]]:
    if not all(host.is_here for host in hosts):
        yield from _forwarded(environ)
    if options.interface is not None:
        yield "DMLC_INTERFACE", options.interface
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


def _forwarded(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in environ.items():
        ours = name.startswith(_SETTINGS) and name not in JOB_VARIABLES and name not in _OF_ONE_HOST
        if ours or name in _FORWARDED:
            yield name, value


def _addresses(hosts: Sequence[Host]) -> dict[str, dict[str, str]]:
    """By host: the variable that says where others reach it, if the user does."""
    return {host.name: {"DMLC_NODE_HOST": host.address} if host.address else {} for host in hosts}


@dataclass
class _Roles:
    """The processes of each role."""

    options: Options
    placement: Placement
    addresses: dict[str, dict[str, str]]
    workers: dict[str, str]  # the environment of each, but for its rank

    def scheduler(self, env: dict[str, str]) -> ProcessSpec:
        return self._process("scheduler", 0, self.placement.scheduler, env)

    def server(self, rank: int, env: dict[str, str]) -> ProcessSpec:
        host, starts = self.placement.server(rank), rank < self.options.num_servers
        return self._process("server", rank, host, {"DMLC_SERVER_ID": str(rank)} | env, starts)

    def worker(self, rank: int) -> ProcessSpec:
        own = {
            "DMLC_WORKER_ID": str(rank),
            "RANK": str(rank),
            "WORLD_SIZE": str(_at_the_start(self.options)),
            "LOCAL_RANK": str(self.placement.local_rank(rank)),
        }
        return self._process("worker", rank, self.placement.worker(rank), own | self.workers)

    def _process(self, role: str, rank: int, host: str, env: dict[str, str], starts: bool = True) -> ProcessSpec:
        other = None if role == "worker" else self.options.server_command
        own = {"DMLC_ROLE": role} | self.addresses[host]
        return ProcessSpec(role, rank, host, other or self.options.command, own | env, starts)


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

"""All settings of a process, validated in one place: nothing else reads the environment."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from . import network
from .errors import ConfigError
from .ids import ROLES

T = TypeVar("T")

MAX_JOB = 64  # characters; every message carries it
TRANSPORTS = ("auto", "shm", "ipc", "tcp")
ON_WORKER_LOST = ("raise", "wait", "shrink")
VANS = ("zmq", "p3")  # of ps-lite's, those that mean something here


@dataclass(frozen=True)
class Config:
    """What a process must know to join a job. ``Config.from_env()`` reads the DMLC_, PS_ and PSLITE_ variables.

    Times are seconds; ``None`` means for ever. ``rank`` is a wish that the scheduler grants or refuses.
    """

    role: str = "worker"
    num_workers: int = 1
    num_servers: int = 1
    root: str = ""  # where the scheduler listens: tcp://host:port, ipc:///path, inproc://name
    root_fd: int | None = None  # the scheduler's listening socket, opened by the launcher
    rank: int | None = None
    job: str = ""  # run id; empty lets the scheduler make one
    job_dir: str = ""  # 0700 directory of a local job: ipc sockets live here
    max_restarts: int = 0  # how often the launcher starts a process again that a signal ended
    restarts: int = 0  # how often it has started this one again
    replicas: int = 0  # other servers that have what a server has, and take its place if it dies
    agent_fd: int | None = None  # where a server process is told which servers it has
    keeper_fd: int | None = None  # a server's connection to who keeps its memory for a successor; told there
    host: str = ""  # the address that peers reach this process at; empty lets the route to the scheduler decide
    server_port: int = 0  # server r listens on this TCP port + r; 0: on any
    transport: str = "auto"
    security: str = ""  # "none": no keys, and any address
    key_file: str = ""  # this process's key; the roster of public keys is beside it
    timeout: float | None = 600.0
    start_timeout: float | None = 60.0
    resend_timeout: float = 1.0
    drop_rate: float = 0.0
    verbose: int = 0
    bigarray_bound: int = 1_000_000  # elements: a larger array is split over the servers
    p3: bool = False  # cut every array into slices that go by priority
    slice_threshold: int = 40_000  # elements of a slice
    on_worker_lost: str = ""  # what others do when a worker dies; "": wait if it may be started again, else raise
    checkpoint_dir: str = ""  # where the servers write checkpoints of the job
    checkpoint_every: float | None = None  # seconds between them; None: only when a worker asks
    checkpoint_keep: int = 3  # how many stay
    resume: bool = False  # go on from the newest one there
    max_workers: int = 0  # how many there may be at a time, if workers may join a running job; 0: they may not
    failpoints: str = ""  # for tests, see failpoints.py
    notices: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """Read and validate the environment; raises ConfigError with the bad value and what is allowed."""
        env = os.environ if environ is None else environ
        read = _Reader(env)
        role = read.role() or "worker"
        root = _root(env)
        num_workers = read.number("DMLC_NUM_WORKER", 1, int, 1)
        num_servers = read.number("DMLC_NUM_SERVER", 1, int, 1)
        return cls(
            role=role,
            num_workers=num_workers,
            num_servers=num_servers,
            root=root,
            root_fd=read.optional("PSLITE_ROOT_FD", int),
            rank=_wanted_rank(read, role, num_servers if role == "server" else num_workers),
            job=_job(env.get("PSLITE_JOB_ID", "")),
            job_dir=env.get("PSLITE_JOB_DIR", ""),
            max_restarts=read.number("PSLITE_MAX_RESTARTS", 0, int, 0),
            restarts=read.number("PSLITE_RESTARTS", 0, int, 0),
            replicas=read.number("PSLITE_REPLICAS", 0, int, 0, 1),
            agent_fd=read.optional("PSLITE_AGENT_FD", int),
            host=_host(env, role, root),
            server_port=read.number("PSLITE_SERVER_PORT", 0, int, 0, 65535),
            transport=read.choice("PSLITE_TRANSPORT", "auto", TRANSPORTS),
            security=read.choice("PSLITE_SECURITY", "", ("", "none")),
            key_file=env.get("PSLITE_KEY_FILE", ""),
            timeout=read.number("PSLITE_TIMEOUT", 600.0, float, 0) or None,
            start_timeout=read.number("PSLITE_START_TIMEOUT", 60.0, float, 0) or None,
            resend_timeout=read.number("PS_RESEND_TIMEOUT", 1000, float, 1) / 1000,
            drop_rate=read.number("PS_DROP_MSG", 0, float, 0, 100) / 100,
            verbose=read.number("PS_VERBOSE", 0, int, 0),
            bigarray_bound=read.number("MXNET_KVSTORE_BIGARRAY_BOUND", 1_000_000, int, 1),
            p3=read.choice("DMLC_PS_VAN_TYPE", "zmq", VANS) == "p3",
            slice_threshold=read.number("MXNET_KVSTORE_SLICE_THRESHOLD", 40_000, int, 1),
            on_worker_lost=read.choice("PSLITE_ON_WORKER_LOST", "", ("", *ON_WORKER_LOST)),
            checkpoint_dir=env.get("PSLITE_CHECKPOINT_DIR", ""),
            checkpoint_every=read.number("PSLITE_CHECKPOINT_EVERY", 0.0, float, 0) or None,
            checkpoint_keep=read.number("PSLITE_CHECKPOINT_KEEP", 3, int, 1),
            resume=read.choice("PSLITE_RESUME", "0", ("0", "1")) == "1",
            max_workers=_max_workers(read, num_workers),
            failpoints=env.get("PS_FAILPOINTS", ""),
            notices=("PS_RESEND is not needed: delivery is always on",) if "PS_RESEND" in env else (),
        )

    @property
    def policy(self) -> str:
        """What becomes of the others when a worker dies: 'raise', 'wait' or 'shrink'."""
        return self.on_worker_lost or ("wait" if self.max_restarts else "raise")

    @property
    def servers_return(self) -> bool:
        """Whether others wait for a server that dies, because another process takes its place."""
        return self.max_restarts > 0 or self.replicas > 0

    @property
    def is_local(self) -> bool:
        """Whether every process of the job is on this host, as far as the root address tells."""
        return not self.root.startswith("tcp:") or is_loopback(host_of(self.root))


def role_in_job() -> str:
    """This process's role, or "" outside a job; raises ConfigError for an unknown one."""
    return _Reader(os.environ).role()


def host_of(address: str) -> str:
    """The host of ``tcp://host:port``, as it is written; "" for other addresses, and for one that is malformed."""
    try:
        parts = urlsplit(address)
        return (parts.hostname or "") if parts.scheme == "tcp" else ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this host's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Reader:
    """Typed look-ups whose errors show the variable, its value, and what is allowed."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    def optional(self, name: str, kind: Callable[[str], T]) -> T | None:
        text = self._env.get(name, "").strip()
        if not text:
            return None
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(name=name, value=text, allowed="give a number") from None

    def number(
        self, name: str, default: Any, kind: Callable[[str], Any], least: float, most: float = float("inf")
    ) -> Any:
        value = self.optional(name, kind)
        if value is not None and not least <= value <= most:
            limit = "" if most == float("inf") else f" and at most {most}"
            raise ConfigError(name=name, value=value, allowed=f"give a number that is at least {least}{limit}")
        return default if value is None else value

    def role(self) -> str:
        return self.choice("DMLC_ROLE", "", ("", *ROLES))

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self._env.get(name, "").strip().lower() or default
        if value not in allowed:
            listed = ", ".join(a for a in allowed if a)
            raise ConfigError(name=name, value=value, allowed=f"allowed are {listed}")
        return value


def _max_workers(read: _Reader, num_workers: int) -> int:
    most: int = read.number("PSLITE_MAX_WORKERS", 0, int, 0)
    if 0 < most < num_workers:
        allowed = f"give at least DMLC_NUM_WORKER, which is {num_workers}, or 0"
        raise ConfigError(name="PSLITE_MAX_WORKERS", value=most, allowed=allowed)
    return most


def _job(name: str) -> str:
    if len(name) > MAX_JOB:
        raise ConfigError(name="PSLITE_JOB_ID", value=name, allowed=f"give at most {MAX_JOB} characters")
    return name


def _root(env: Mapping[str, str]) -> str:
    if env.get("PSLITE_ROOT"):
        return env["PSLITE_ROOT"]
    uri, port = env.get("DMLC_PS_ROOT_URI", ""), env.get("DMLC_PS_ROOT_PORT", "")
    if not uri:
        return ""
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(name="DMLC_PS_ROOT_PORT", value=port or None, allowed="give the scheduler's port, 1 to 65535")
    return network.join(uri.strip("[]"), port)


def _wanted_rank(read: _Reader, role: str, count: int) -> int | None:
    for name in ("DMLC_RANK", "DMLC_SERVER_ID" if role == "server" else "DMLC_WORKER_ID", "DMLC_TASK_ID"):
        rank = read.optional(name, int)
        if rank is not None and (name != "DMLC_TASK_ID" or 0 <= rank < count):  # some trackers number all tasks in one
            return rank
    return None


def _host(env: Mapping[str, str], role: str, root: str) -> str:
    """The address that others reach this process at, if the environment says so. An interface counts for servers
    only: the scheduler listens where the root says, workers nowhere, and they need not have it."""
    host, name = env.get("DMLC_NODE_HOST", "").strip(" []"), env.get("DMLC_INTERFACE", "").strip()
    if network.is_wildcard(host):
        raise ConfigError(name="DMLC_NODE_HOST", value=host, allowed="give the address at which others reach this host")
    if host or not name or role != "server":
        return host
    return network.address_on(name, host_of(root), network.interfaces())

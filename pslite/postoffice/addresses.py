"""Which addresses a process listens on, and which of a peer's it connects to."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pslite import security
from pslite.config import Config, is_loopback
from pslite.errors import ConfigError
from pslite.van import shared
from pslite.van.base import Van
from pslite.van.shared.exchange import Exchange
from pslite.van.zmq_van import ZmqVan

log = logging.getLogger("pslite")


def with_rank_of_key(config: Config) -> tuple[Config, security.Keys | None]:
    """The keys of this process, if it has any, and its settings with the rank that its key stands for.

    Raises ConfigError for a file that is not safe, or that is another process's.
    """
    if not config.key_file or config.security == "none":
        return config, None
    keys = security.load(config.key_file)
    if keys.role != config.role or config.rank not in (None, keys.rank):
        whose = security.file_name(config.role, config.rank or 0)
        remedy = f"this is the key of {keys.role} {keys.rank}: give this process {whose}"
        raise ConfigError(name="PSLITE_KEY_FILE", value=config.key_file, allowed=remedy)
    return replace(config, rank=None if config.role == "scheduler" else keys.rank), keys


def key_beside(config: Config, rank: int) -> str:
    """Where a server finds the key of another one, whose place it is to take: beside its own; "" without keys."""
    if not config.key_file or config.security == "none":
        return ""
    path = Path(config.key_file).with_name(security.file_name("server", rank))
    if not path.exists():
        remedy = f"this process may take the place of server {rank}: put {path.name} beside its own key"
        raise ConfigError(name="PSLITE_KEY_FILE", value=config.key_file, allowed=remedy)
    return str(path)


def open_van(
    config: Config, identity: str, clock: Callable[[], float], keys: security.Keys | None = None
) -> Van:
    """The van for the root's address scheme; with shared memory if the job has a directory that its processes share."""
    if config.job_dir:
        _must_be_private(config.job_dir)
    scheme = urlsplit(config.root).scheme
    if scheme not in ("tcp", "ipc"):
        raise ConfigError(name="root", value=config.root, allowed="addresses are tcp://host:port or ipc:///path")
    exchange = None
    if config.transport in ("auto", "shm") and config.role != "scheduler":
        if config.job_dir and shared.available():
            exchange = Exchange(config.job_dir, identity.rsplit("/", 1)[1], clock)
        elif config.transport == "shm":
            remedy = "it needs Linux 5.1 and PSLITE_JOB_DIR, which the launcher makes: choose auto, ipc or tcp"
            raise ConfigError(name="PSLITE_TRANSPORT", value="shm", allowed=remedy)
    return ZmqVan(identity, config.role == "scheduler", exchange, keys)


def to_listen(config: Config, identity: str) -> list[str]:
    """Where this process accepts connections. Workers bind nothing, and so work behind NAT.

    A job in one job directory uses ipc there and opens no TCP port unless the transport says so. Raises ConfigError
    for an address that other hosts reach, unless there are keys or PSLITE_SECURITY=none.
    """
    scheme = urlsplit(config.root).scheme
    if config.role == "worker":
        return []
    if config.role == "scheduler":
        if scheme == "tcp":
            _must_be_safe(urlsplit(config.root).hostname or "", config)
        return [config.root]
    if scheme == "inproc":
        return [f"inproc://{identity}"]
    listen = []
    if config.job_dir and config.transport != "tcp":
        listen.append(f"ipc://{config.job_dir}/{identity.rsplit('/', 1)[1]}.sock")
    if config.transport == "tcp" or not config.is_local or not config.job_dir:
        host = config.host or _host_towards(config.root)
        _must_be_safe(host, config)
        listen.append(f"tcp://[{host}]:0" if ":" in host else f"tcp://{host}:0")
    return listen


def pick(candidates: list[str]) -> str:
    """The best of a peer's addresses: ipc if its socket is on this host, else tcp."""
    for address in candidates:
        if address.startswith("ipc://") and os.path.exists(address[len("ipc://") :]):
            return address
    return next((a for a in candidates if not a.startswith("ipc://")), candidates[0])


def _host_towards(root: str) -> str:
    """The address of this host on the route to the scheduler."""
    parts = urlsplit(root)
    host, port = parts.hostname or "127.0.0.1", parts.port or 1
    if is_loopback(host):
        return "127.0.0.1" if host == "localhost" else host
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # a UDP connect sends nothing, it only chooses the route
        return str(probe.getsockname()[0])


def _must_be_private(directory: str) -> None:
    """Whoever can enter it can take part in the job, by the sockets that are in it."""
    try:
        found = os.stat(directory)
    except OSError as error:
        raise ConfigError(name="PSLITE_JOB_DIR", value=directory, allowed=f"{error.strerror}") from None
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o077:
        remedy = f"others can enter it: make it with mkdir -m 700, or chmod 700 {directory}"
        raise ConfigError(name="PSLITE_JOB_DIR", value=directory, allowed=remedy)


def _must_be_safe(host: str, config: Config) -> None:
    if config.security == "none":
        log.warning("listening on %s without authentication: PSLITE_SECURITY=none", host)
    elif not is_loopback(host) and not config.key_file:
        raise ConfigError(
            name="DMLC_PS_ROOT_URI",
            value=config.root,
            allowed=f"other hosts reach this address: make keys with `pslite keys DIR -n {config.num_workers} "
            f"-s {config.num_servers}` and give each process its own in PSLITE_KEY_FILE, or set PSLITE_SECURITY=none "
            "on every process to accept that anybody on the network can take part",
        )

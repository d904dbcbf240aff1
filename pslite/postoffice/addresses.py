"""Which addresses a process listens on, and which of a peer's it connects to."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pslite import network, security
from pslite.config import Config, host_of, is_loopback
from pslite.errors import BindError, ConfigError
from pslite.network import Interface
from pslite.van import shared
from pslite.van.base import Van
from pslite.van.causes import no_such_name, not_own
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


@dataclass(frozen=True)
class Endpoint:
    """Where a process listens. ``host``: what others are told instead of that address's own; "" if that will do."""

    address: str
    host: str = ""

    def announced(self, bound: str) -> str:
        """What others are told, when it is known at which address it listens, with the port."""
        return network.join(self.host, bound.rpartition(":")[2]) if self.host else bound


def to_listen(
    config: Config, identity: str, interfaces: Callable[[], Sequence[Interface]] = network.interfaces
) -> list[Endpoint]:
    """Where this process accepts connections. Workers bind nothing, and so work behind NAT.

    A job in one job directory uses ipc there and opens no TCP port unless the transport says so. Raises ConfigError
    for an address that other hosts reach, unless there are keys or PSLITE_SECURITY=none.
    """
    scheme = urlsplit(config.root).scheme
    if config.role == "worker":
        return []
    if config.role == "scheduler":
        return [_root_endpoint(config, interfaces) if scheme == "tcp" else Endpoint(config.root)]
    if scheme == "inproc":
        return [Endpoint(f"inproc://{identity}")]
    listen = []
    if config.job_dir and config.transport != "tcp":
        listen.append(Endpoint(f"ipc://{config.job_dir}/{identity.rsplit('/', 1)[1]}.sock"))
    if _opens_a_port(config):
        host = config.host or _host_towards(config.root)
        _must_be_safe(host, config)
        endpoint = _endpoint(host, _server_port(config), interfaces())
        _say_if_open(endpoint.address, config)
        listen.append(endpoint)
    return listen


def _endpoint(host: str, port: int, known: Sequence[Interface]) -> Endpoint:
    """Where to listen to be reached at a host: there if that is an address of this one, else at all addresses.

    Others find what a name stands for by themselves, and an address that is not of this host is that of a NAT, of a
    container's host, or the like, which leads here.
    """
    if host == "localhost":
        return Endpoint(network.join("127.0.0.1", port))
    if network.is_own(host, known) or network.is_wildcard(host):
        return Endpoint(network.join(host, port))
    if network.kind_of(host) == "name":
        return Endpoint(network.join("*", port), host)
    return Endpoint(network.join("::" if network.is_ipv6(host) else "0.0.0.0", port), host)


def _root_endpoint(config: Config, interfaces: Callable[[], Sequence[Interface]]) -> Endpoint:
    """Where the scheduler listens: at the root, where all look for it, whatever interface it should prefer.

    The root must be of this host, unless DMLC_NODE_HOST says the same, and so that it leads here. Raises BindError.
    """
    host = host_of(config.root)
    _must_be_safe(host, config)
    _say_if_open(host, config)
    if config.root_fd is not None:
        return Endpoint(config.root)
    endpoint = _endpoint(host, urlsplit(config.root).port or 0, interfaces())
    if not endpoint.host or host == config.host:
        return endpoint
    if network.kind_of(host) != "name":
        return Endpoint(config.root)  # it cannot be listened on, and that error says what there is
    try:
        found = network.resolve(host)
    except OSError as error:  # a cluster may name a host a little later than it starts what runs there
        log.warning("%s", no_such_name(host, error))
        return endpoint
    if not any(network.is_own(address, interfaces()) for address in found):
        reason = f"{host} is {', '.join(found)}, {not_own(interfaces())}"
        raise BindError(address=config.root, node=config.role, reason=reason)
    return endpoint


def _server_port(config: Config) -> int:
    """The port of a server, or 0 for any. A process may have several ranks, so each has a port of its own."""
    if not config.server_port:
        return 0
    rank = 0 if config.num_servers == 1 else config.rank
    if rank is None or config.server_port + rank > 65535:
        remedy = "server r listens on this port + r: give the server its rank, in DMLC_SERVER_ID"
        raise ConfigError(
            name="PSLITE_SERVER_PORT",
            value=config.server_port,
            allowed=remedy if rank is None else "the ports of all servers must be below 65536",
        )
    return config.server_port + rank


def check_root(config: Config) -> None:
    """Raise ConfigError for a root that nobody can listen on, or that a process cannot connect to."""
    if not config.root.startswith("tcp:"):
        return
    try:
        host, port = host_of(config.root), urlsplit(config.root).port
    except ValueError:
        host, port = "", None
    if not host or not port or "@" in config.root:
        remedy = "give tcp://host:port, with a port from 1 to 65535; IPv6 in brackets: tcp://[fd00::1]:9091"
        raise ConfigError(name="root", value=config.root, allowed=remedy)
    if config.role != "scheduler" and network.is_wildcard(host):
        remedy = f"{host} is to listen on, for the scheduler only: give the {config.role} an address of its host"
        raise ConfigError(name="root", value=config.root, allowed=remedy)


def pick(candidates: list[str]) -> str:
    """The best of a peer's addresses: ipc if its socket is on this host, else tcp."""
    for address in candidates:
        if address.startswith("ipc://") and os.path.exists(address[len("ipc://") :]):
            return address
    return next((a for a in candidates if not a.startswith("ipc://")), candidates[0])


def _host_towards(root: str) -> str:
    """The address of this host on the route to the scheduler; or, on the scheduler's own host, the name of that."""
    host = host_of(root) or "localhost"
    if is_loopback(host):
        return "127.0.0.1" if host == "localhost" else host
    try:
        own = network.source_towards(host)
    except OSError as error:
        reason = f"which of its addresses leads to it is not known ({error.strerror}): give this one in DMLC_NODE_HOST"
        raise ConfigError(name="root", value=root, allowed=reason) from None
    return host if is_loopback(own) else own  # /etc/hosts may give the loopback to a host's own name


def _must_be_private(directory: str) -> None:
    """Whoever can enter it can take part in the job, by the sockets that are in it."""
    try:
        found = os.stat(directory)
    except OSError as error:
        raise ConfigError(name="PSLITE_JOB_DIR", value=directory, allowed=f"{error.strerror}") from None
    if found.st_uid not in (0, os.geteuid()) or stat.S_IMODE(found.st_mode) & 0o077:
        remedy = f"others can enter it: make it with mkdir -m 700, or chmod 700 {directory}"
        raise ConfigError(name="PSLITE_JOB_DIR", value=directory, allowed=remedy)


def check_consent(config: Config) -> None:
    """Raise ConfigError for a process that would listen where others reach it, and has no keys to know them by."""
    if config.role == "server" and _opens_a_port(config):
        _must_be_safe(config.host or host_of(config.root), config)


def _opens_a_port(config: Config) -> bool:
    """Whether a server listens by TCP."""
    return config.transport == "tcp" or not config.is_local or not config.job_dir


def _must_be_safe(host: str, config: Config) -> None:
    if config.security != "none" and not is_loopback(host or "localhost") and not config.key_file:
        raise ConfigError(
            name="DMLC_PS_ROOT_URI",
            value=config.root,
            allowed=f"other hosts reach this address: make keys with `pslite keys DIR -n {config.num_workers} "
            f"-s {config.num_servers}` and give each process its own in PSLITE_KEY_FILE, or set PSLITE_SECURITY=none "
            "on every process to accept that anybody on the network can take part",
        )


def _say_if_open(host: str, config: Config) -> None:
    if config.security == "none":
        log.warning("listening on %s without authentication: PSLITE_SECURITY=none", host)

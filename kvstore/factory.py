"""``create()`` and ``serve()``: from a name and the environment to a store, or to a server's life."""

from __future__ import annotations

import atexit
import json
import logging
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from pslite import Config, Postoffice
from pslite.config import ON_WORKER_LOST, role_in_job
from pslite.errors import ArgumentTypeError, ConfigError, JoinError, NoMemoryError, NotInClusterError, PeerError

from .base import KVStore
from .dist import DistStore
from .local import LocalStore
from .p3 import check_type, open_store
from .plugins import KVStoreBase
from .server.hosting import Host
from .server.orders import Orders
from .server.places import Places

log = logging.getLogger("kvstore")

LOCAL_TYPES = ("local", "device")
DIST_TYPES = (
    "dist",
    "dist_sync",
    "dist_async",
    "dist_device_sync",
    "dist_sync_device",
    "dist_device_async",
    "dist_async_device",
)
OPTIONS = {  # of the dist types
    "timeout": "give seconds above 0, or None for ever",
    "start_timeout": "give seconds above 0, or None for ever",
    "bigarray_bound": "give a number of elements, at least 1",
    "slice_threshold": "give a number of elements, at least 1",
    "p3": "give True or False",
    "on_worker_lost": "give 'raise', 'wait' or 'shrink'",
}

ELSEWHERE = {  # words of MXNet's types that are not here
    "nccl": "there is no NCCL; use 'device' for the devices of one process, 'dist_device_sync' for several processes",
    "horovod": "there is no Horovod; use 'dist_sync', whose pushpull is the sum over all workers",
    "byteps": "there is no BytePS; use 'dist_sync', whose pushpull is the sum over all workers",
}

_open: weakref.WeakSet[DistStore] = weakref.WeakSet()  # for the hooks of this process's end
_hooked = False  # whether they are installed
_created = False  # whether this process has had its dist store


def create(name: str = "local", **options: Any) -> KVStore:
    """A store of a type: ``local``, ``device``, ``dist_sync`` (or ``dist``), ``dist_async``, and ``dist_device_sync``,
    ``dist_sync_device``, ``dist_async_device``, which sum over devices first and are otherwise the same.

    A name registered with ``KVStoreBase.register`` comes first, and makes an object of that class.
    The dist types join the job that the launcher started; in its server and scheduler processes they serve until the
    job ends and do not return. Options of dist types: ``timeout`` and ``start_timeout`` (seconds, None for ever),
    ``bigarray_bound`` (elements from which an array is split over the servers), ``p3`` (True: arrays go in slices of
    ``slice_threshold`` elements, by priority), ``on_worker_lost``: what the others do when a worker dies, 'raise' a
    PeerLost, 'wait' for the launcher to start it again, or 'shrink': go on without it. Raises ConfigError,
    NotInClusterError, RendezvousTimeout.
    """
    plugin = KVStoreBase.kv_registry.get(name.lower()) if isinstance(name, str) else None
    kind = name.lower() if plugin else checked_type(name)
    role = role_in_job()
    if plugin or kind in LOCAL_TYPES:
        if role in ("server", "scheduler"):
            raise ConfigError(
                name="type", value=kind, allowed=f"this process is a {role}: begin the script with kvstore.serve()"
            )
        if options:
            raise ConfigError(name=next(iter(options)), value="given", allowed=f"{kind!r} takes no options")
        store: KVStore = plugin() if plugin else LocalStore(kind)
        return store
    if not role:
        raise NotInClusterError(name=kind)
    serve()
    return _join(kind, replace(Config.from_env(), **checked_options(options)))


def checked_type(name: Any) -> str:
    """The native type's name in lower case; raises ConfigError for an unknown one, ArgumentTypeError for no str."""
    types = "types are " + ", ".join([*LOCAL_TYPES, *DIST_TYPES, *KVStoreBase.kv_registry])
    if not isinstance(name, str):
        raise ArgumentTypeError(name="type", value=f"{name!r:.80}", allowed=f"give a str; {types}")
    kind = name.lower()
    if kind not in LOCAL_TYPES + DIST_TYPES:
        hint = next((text + "; " for word, text in ELSEWHERE.items() if word in kind), "")
        raise ConfigError(name="type", value=name, allowed=hint + types)
    return kind


def checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``create`` themselves; raises ConfigError for an unknown one or a value out of range."""
    for option, value in options.items():
        if option not in OPTIONS:
            raise ConfigError(name=option, value=f"{value!s:.80}", allowed="options are " + ", ".join(OPTIONS))
        if option == "p3":
            fits = isinstance(value, bool)
        elif option == "on_worker_lost":
            fits = value in ON_WORKER_LOST
        elif option in ("bigarray_bound", "slice_threshold"):
            fits = isinstance(value, int) and value >= 1
        else:
            fits = value is None or (isinstance(value, (int, float)) and value > 0)
        if not fits:
            raise ConfigError(name=option, value=f"{value!r:.80}", allowed=OPTIONS[option])
    return options


def _join(kind: str, config: Config) -> DistStore:
    global _created
    if _created:
        raise ConfigError(name="type", value=kind, allowed="one dist store per launch: this process has had its own")
    check_type(kind, config.p3)
    office = Postoffice(config)
    try:
        office.start()
        _created = True
        _install_hooks()
        store = open_store(kind, office)
    except JoinError as error:
        if config.max_workers:  # the launcher may have started it for a job that has ended meanwhile
            record_error(config, config.rank or 0, error)
        raise
    _open.add(store)
    return store


def serve() -> None:
    """Serve here until the job ends and exit, if this process is a server or the scheduler; else do nothing.

    An optional first line of a script: nothing below it is imported or run in those processes. What is registered
    above it (optimizers, updaters) exists on the servers. The exit status is 0, or 1 if a worker failed.
    """
    if role_in_job() not in ("server", "scheduler"):
        return
    config = Config.from_env()
    _log_to_stderr(config)
    orders = Orders.from_config(config) if config.role == "server" else None
    if orders is not None:
        _serve_places(config, Places(config, orders))
    try:
        host = Host(Postoffice(config))
    except NoMemoryError as error:  # a setting that is wrong shows its traceback
        log.error("%s", error)
        record_error(config, config.rank or 0, error)
        sys.exit(1)
    try:
        status = host.serve()
    except KeyboardInterrupt:  # the launcher passes Ctrl-C on to everybody: it is no error of this process
        host.office.close(linger=0)
        sys.exit(130)
    if status:
        record_error(config, host.office.rank, host.first_failure or RuntimeError("the job failed"))
    sys.exit(status)


def _serve_places(config: Config, places: Places) -> NoReturn:
    """Serve what the launcher's agent says, likewise."""
    try:
        status = places.serve()
    except KeyboardInterrupt:
        places.close()
        sys.exit(130)
    if status:
        record_error(config, config.rank or 0, places.first_failure or RuntimeError("the job failed"))
    sys.exit(status)


def _log_to_stderr(config: Config) -> None:
    if not logging.getLogger().handlers:
        level = logging.WARNING - 10 * min(config.verbose, 2)
        logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")


# -- the end of a worker ----------------------------------------------------------------------------------------------


def _install_hooks() -> None:
    """A worker that ends tells the others: after its pushes if it just ends, at once if an exception ends it."""
    global _hooked
    if _hooked:
        return
    _hooked = True
    previous = sys.excepthook

    def on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        previous(kind, error, trace)
        for store in list(_open):
            if store._office.forked:
                continue
            record_error(store._office.config, store.rank, error)
            if not store._closed:
                store._fail(error)

    sys.excepthook = on_exception
    atexit.register(_on_exit)


def _on_exit() -> None:
    for store in list(_open):
        if not store._office.forked:
            store._leave_without_waiting()


def record_error(config: Config, rank: int, error: BaseException) -> None:
    """Leave a note for the launcher, so that its report names the process that failed first, and not who followed."""
    if not config.job_dir:
        return
    caused_by = str(error.node).split(" (")[0] if isinstance(error, PeerError) else None  # without pid and host
    name = f"error-{config.role}-{rank}.json"
    note = {"time": time.time(), "error": f"{type(error).__name__}: {error}"[:2000], "caused_by": caused_by}
    path = Path(config.job_dir) / name
    try:
        path.with_suffix(".tmp").write_text(json.dumps(note))
        path.with_suffix(".tmp").rename(path)
    except OSError as problem:  # the job is ending: its directory may be gone
        log.debug("no error record: %s", problem)

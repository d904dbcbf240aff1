"""What a process's config says of its place in the job."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import replace

from pslite import failpoints
from pslite.config import Config
from pslite.errors import ConfigError
from pslite.security import Keys

from . import addresses

log = logging.getLogger("pslite")


def announce(config: Config) -> None:
    """Say its notices, and have this process die where it says, for tests: once for a process."""
    for notice in config.notices:
        log.warning("%s", notice)
    if config.failpoints:
        place = config.role, config.rank, config.restarts
        failpoints.arm(failpoints.parse(config.failpoints, *place, lambda: os.kill(os.getpid(), signal.SIGKILL)))


def checked(config: Config) -> tuple[Config, Keys | None]:
    """The config with the rank of its key, and the keys. Raises ConfigError."""
    if config.replicas >= config.num_servers:
        remedy = f"a replica needs another server, and there is {config.num_servers}: start at least 2"
        raise ConfigError(name="PSLITE_REPLICAS", value=config.replicas, allowed=remedy)
    if not config.root:
        raise ConfigError(name="DMLC_PS_ROOT_URI", value=None, allowed="give the address of the scheduler")
    addresses.check_root(config)
    config, keys = addresses.with_rank_of_key(config)
    if config.replicas and config.role == "server" and config.rank is not None:
        addresses.key_beside(config, (config.rank - 1) % config.num_servers)
    return config, keys


def beside(config: Config, rank: int, restarts: int, keeper_fd: int | None = None) -> Config:
    """The config of a server process for another rank, with the key that lies beside its own.

    Raises ConfigError if it is not there.
    """
    key_file = config.key_file if rank == config.rank else addresses.key_beside(config, rank)
    own = replace(config, rank=rank, restarts=restarts, key_file=key_file, keeper_fd=keeper_fd)
    return replace(own, failpoints="", notices=())  # the process has been announced

"""pslite: ps-lite's parameter-server layers in Python.

``start()`` joins the job that the environment describes and returns a Postoffice; KVWorker and KVServer talk over it.
"""

from __future__ import annotations

from . import errors
from ._version import __version__
from .cluster import InprocCluster, run_all
from .config import Config
from .customer import Request
from .default_handle import KVServerDefaultHandle
from .errors import *  # noqa: F403 - the tree of errors is part of the public names
from .ids import ALL, SCHEDULER, SERVER_GROUP, WORKER_GROUP, name_of, rank_of, role_of, server_id, worker_id
from .kv_pairs import KVPairs, Slicer, default_slicer
from .kv_server import KVMeta, KVServer
from .kv_worker import KVWorker
from .memory import Memory
from .postoffice import Postoffice
from .postoffice.actions import PeerAway, PeerBack
from .postoffice.place import announce, beside
from .postoffice.placement import Balancer
from .replica_link import ReplicaLink
from .simple_app import SimpleApp, SimpleData
from .wire import Flag

__all__ = [
    "ALL",
    "SCHEDULER",
    "SERVER_GROUP",
    "WORKER_GROUP",
    "Balancer",
    "Config",
    "Flag",
    "InprocCluster",
    "KVMeta",
    "KVPairs",
    "KVServer",
    "KVServerDefaultHandle",
    "KVWorker",
    "Memory",
    "PeerAway",
    "PeerBack",
    "Postoffice",
    "ReplicaLink",
    "Request",
    "SimpleApp",
    "SimpleData",
    "Slicer",
    "__version__",
    "announce",
    "beside",
    "default_slicer",
    "name_of",
    "rank_of",
    "role_of",
    "run_all",
    "server_id",
    "start",
    "worker_id",
    *errors.__all__,
]


def start(config: Config | None = None) -> Postoffice:
    """Join a job and return this process's Postoffice; end with ``finalize()``, after which one may start again.

    Without a Config the environment is read. Raises ConfigError, RendezvousTimeout, JoinError, BindError.
    """
    office = Postoffice(config or Config.from_env())
    office.start()
    return office

"""kvstore: MXNet's KVStore on pslite.

kv = kvstore.create('dist_sync')
kv.init('w', weights)
kv.push('w', gradient)
kv.pull('w', out=weights)
"""

from __future__ import annotations

from pslite import __version__, errors
from pslite.errors import *  # noqa: F403 - the tree of errors is part of the public names

from . import compression, optimizer, profiler, sparse
from .base import KVStore
from .bfloat16 import bfloat16
from .cluster import LocalCluster
from .factory import create, serve
from .handle import Handle
from .plugins import KVStoreBase
from .rules import updater

__all__ = [
    "Handle",
    "KVStore",
    "KVStoreBase",
    "LocalCluster",
    "__version__",
    "bfloat16",
    "compression",
    "create",
    "optimizer",
    "profiler",
    "serve",
    "sparse",
    "updater",
    *errors.__all__,
]

"""The KVStore that users hold: its methods on every type, and what all types share."""

from __future__ import annotations

import abc
import math
import operator
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np

from pslite.dtypes import code_named, storage
from pslite.errors import ConfigError, KeyTypeError, UnknownKeyError

from .arrays import Array, typed
from .handle import Handle
from .keys import Group, Key, checked, group, keys_of
from .optimizer.base import Optimizer
from .plugins import KVStoreBase
from .rules import Updater


class KVStore(KVStoreBase, abc.ABC):
    """A key-value store for synchronising arrays between devices, processes and hosts; ``kvstore.create()`` makes one.

    Keys are int or str, not both in one store. Where a key is accepted, a list of keys is too, with a list of values;
    where an array is accepted, a list of arrays (one per device) is too: pushed ones are summed, pulled into all.
    Arrays are numpy's, torch's, jax's, RowSparseArrays, or anything with ``__dlpack__`` or the buffer protocol.
    Arguments are never written to, except ``out`` and what ``pushpull`` gets without it, and may be overwritten as soon
    as the call returns. ``priority``: where messages wait for room the larger one leaves first; local types ignore it.
    Methods are thread-safe; calls take effect in order. Those that every worker must make are for one thread.

    Calls raise ClosedError after ``close``, UnknownKeyError for a key before its ``init``, KeyTypeError for what is no
    key; ShapeError, DTypeError, StorageError for arrays that are not as at ``init``. Then the call has changed nothing.
    """

    def __init__(self, name: str) -> None:
        self._type = name
        self._key_type: type | None = None  # of all keys, set by the first init
        self._step = 0  # how often ``step`` was called, and where that began

    # -- keys and values ----------------------------------------------------------------------------------------------

    def empty(self, shape: Any, dtype: Any = "float32") -> Any:
        """A new array with arbitrary contents, in memory that the servers of this host can read: a push of this very
        array, not of a view or a list, copies nothing.

        It is lent then: read-only, until the push's handle is done or the key is pulled. Where there is no such memory
        it is an ordinary array, which a push copies. ``shape``: an int, or ints. Raises ConfigError, DTypeError.
        """
        code = code_named(dtype)
        return typed(self._new_array(_shape(shape), code), code)

    def zeros(self, shape: Any, dtype: Any = "float32") -> Any:
        """Like ``empty``, filled with zeros."""
        code = code_named(dtype)
        data = self._new_array(_shape(shape), code)
        data.fill(0)
        return typed(data, code)

    def _new_array(self, shape: tuple[int, ...], code: int) -> Array:
        return np.empty(shape, storage(code))

    @abc.abstractmethod
    def init(self, key: Any, value: Any) -> None:
        """Create keys, row-sparse ones of RowSparseArrays; returns when they can be pushed and pulled.

        Every worker must call it; the value of rank 0 counts, the others' shape, dtype and kind must agree (ShapeError,
        DTypeError, StorageError). A key that exists is a DuplicateKeyError.
        """

    @abc.abstractmethod
    def push(self, key: Any, value: Any, priority: int = 0) -> Handle:
        """Send values; returns at once. Without an updater they replace what is stored.

        In dist_sync the sum over all workers counts, in dist_async each worker's push by itself. A failure is raised
        by the handle's ``wait``, or by the next call on this store.
        """

    @abc.abstractmethod
    def pull(self, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True, wait: bool = True) -> Any:
        """Read values into ``out`` (cast to its dtype), or return new arrays without it.

        Includes all pushes that this worker made before. A RowSparseArray as ``out`` is passed over if
        ``ignore_sparse``, else gets the rows that are not zero. ``wait=False`` returns a Handle; its ``wait()`` returns
        what ``pull`` would have.
        """

    @abc.abstractmethod
    def pushpull(self, key: Any, value: Any, out: Any = None, priority: int = 0, wait: bool = True) -> Any:
        """Push and pull in one message; without ``out`` the result is written into ``value``.

        ``wait`` as in ``pull``.
        """

    @abc.abstractmethod
    def row_sparse_pull(
        self, key: Any, out: Any = None, priority: int = 0, row_ids: Any = None, wait: bool = True
    ) -> Any:
        """Read some rows of a row-sparse key into ``out``, a RowSparseArray, or return new ones without it.

        ``row_ids``: numbers of rows, in an array of any shape and real dtype, in any order and repeated; the result has
        each of them once, ascending. With several outs (a list, one for each device) give one array for all, or a
        list with one for each. With a list of keys, ``out`` and ``row_ids`` are lists with one entry for each.
        Raises RowIndexError (an IndexError) for a row that does not exist, StorageError for a dense key or out.
        """

    def broadcast(self, key: Any, value: Any, out: Any, priority: int = 0) -> None:
        """``init`` and ``pull``: the value of rank 0 goes to all. Once per key."""
        self.init(key, value)
        self.pull(key, out=out, priority=priority)

    # -- how pushes change values -------------------------------------------------------------------------------------

    @abc.abstractmethod
    def set_optimizer(self, optimizer: Optimizer) -> None:
        """Update what is stored with an optimizer. Collective: equal on every worker, or ConflictError.

        One that is equal to what was set before changes nothing; another one starts with new state. Attributes may be
        changed afterwards, on each worker for itself: they count from the next push on. Raises ConfigError for what is
        no optimizer; on dist types also for one that is not registered, or that needs whole arrays when a key is split
        over the servers.
        """

    @abc.abstractmethod
    def set_updater(self, updater: Updater | str) -> None:
        """Update with ``fn(key, received, stored)``, which changes ``stored`` in place.

        On dist types it must be registered with ``@kvstore.updater('name')``; the name may be given instead. There it
        is collective: equal on every worker, or ConflictError. Raises ConfigError if it is not registered, or a key is
        split over the servers: an updater needs whole arrays.
        """

    def _set_updater(self, updater: Updater | str) -> None:
        """MXNet's name of ``set_updater``."""
        self.set_updater(updater)

    @abc.abstractmethod
    def set_gradient_compression(self, compression_params: Any) -> None:
        """Compress what is pushed from now on, with error feedback: ``{'type': '2bit', 'threshold': 0.5}``.

        Types are those of ``kvstore.compression``; 'none' ends it. ``'direction': 'both'`` compresses pulls too.
        Keys must be float32 and dense. On dist types it is collective: equal on every worker, or ConflictError.
        Raises ConfigError for a bad setting, and on type 'local', which moves nothing.
        """

    def is_capable(self, capability: str) -> bool:
        """Whether the store can do ``'optimizer'``: run one; raises ConfigError for another word."""
        if not isinstance(capability, str) or capability.lower() != "optimizer":
            raise ConfigError(name="capability", value=f"{capability!r:.80}", allowed="known is 'optimizer'")
        return True

    # -- on disk ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that training needs to go on into one file: values, versions, the optimizer with its states,
        and what compression has held back of each worker's gradients.

        On dist types every worker must call it; rank 0 writes, after the pushes that any worker made before. The file
        may be loaded by a job with another number of servers. Raises CheckpointError on every worker.
        """
        self._save(path, values=True, optimizer=True)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from what ``save`` wrote. Keys that this store does not have are created. An optimizer of the same
        class takes over the saved hyper-parameters; without one the saved one is set.

        On dist types every worker must call it; rank 0 reads. Raises CheckpointError if the file is damaged or does not
        fit the store's keys, ConfigError if it is of another optimizer.
        """
        self._load(path, values=True)

    def checkpoint(self) -> str:
        """Have the servers write a checkpoint of the whole job; returns its manifest's path when it is complete.

        Any worker may ask. It has all pushes that this worker made before; the other workers go on meanwhile, so each
        key is of one moment, but not all of the same, unless nobody pushes: see docs/checkpoints.md. Only on dist types
        under ``--checkpoint-dir``, else ConfigError. Raises CheckpointError if it cannot be written.
        """
        allowed = "there are no servers: call kv.save(path)"
        raise ConfigError(name="type", value=self.type, allowed=allowed)

    def save_optimizer_states(self, fname: str | os.PathLike[str], dump_optimizer: bool = False) -> None:
        """Write the optimizer's states and update counts, and its hyper-parameters too if ``dump_optimizer``.

        On dist types every worker must call it; rank 0 writes. Raises ConfigError if no optimizer is set.
        """
        self._save(fname, values=False, optimizer=dump_optimizer)

    def load_optimizer_states(self, fname: str | os.PathLike[str]) -> None:
        """Go on with the states that ``save_optimizer_states`` (or ``save``) wrote; the optimizer must be set before,
        unless it was dumped. On dist types every worker must call it; rank 0 reads. Raises as ``load`` does.
        """
        self._load(fname, values=False)

    @abc.abstractmethod
    def _save(self, path: str | os.PathLike[str], values: bool, optimizer: bool) -> None: ...

    @abc.abstractmethod
    def _load(self, path: str | os.PathLike[str], values: bool) -> None: ...

    # -- the job ------------------------------------------------------------------------------------------------------

    @property
    def type(self) -> str:
        """The name that the store was created with, in lower case."""
        return self._type

    @property
    @abc.abstractmethod
    def rank(self) -> int:
        """This worker's number, from 0."""

    @property
    @abc.abstractmethod
    def num_workers(self) -> int:
        """How many workers the job has."""

    @property
    def live_ranks(self) -> list[int]:
        """The workers that take part. It changes at ``step()`` only, when a worker was lost in a job that goes on
        without such (``on_worker_lost='shrink'``), or when one has joined (``--elastic``); so does ``num_workers``.
        Ranks stay as they are, with gaps.
        """
        return list(range(self.num_workers))

    @property
    def start_step(self) -> int:
        """The step to begin with: 0, or in a process that took the place of a worker that died, the first step of which
        the servers may not have all its pushes. What it pushes again of that step is not applied twice. In a worker
        that joined a running job it is the first step that needs it.
        """
        return 0

    def step(self) -> int:
        """Begin the next step; returns its number. Call it after each one, so that a worker that is restarted knows
        where to go on. Without it a step is one push of each key.
        """
        self._step += 1
        return self._step

    def get_num_dead_node(self, node_id: int = 6, timeout: float = 60) -> int:
        """How many processes of a group have died and are not there again: 2 are the servers, 4 the workers, 6 both,
        1 the scheduler; or a node id. ``timeout`` is MXNet's, and not needed: deaths are known within 2 seconds.
        """
        return 0

    def status(self) -> dict[str, str]:
        """Each process of the job, by name: 'up', 'away' (it died and is awaited), 'finished', or 'lost'."""
        return {"worker 0": "up"}

    @abc.abstractmethod
    def version(self, key: Key) -> int:
        """How often the value that this worker pulled last had changed; of a split key the lowest of its pieces."""

    @abc.abstractmethod
    def stats(self) -> dict[str, Any]:
        """Counters of this worker. ``['keys'][key]`` are bytes of values: ``push_bytes``, ``pull_bytes``, and what they
        would be without compression, ``push_bytes_raw``, ``pull_bytes_raw``. Under ``--checkpoint-dir`` there is
        ``['checkpoints']``, asked of server 0: how many were ``written`` and ``failed``, the ``last`` one's path, the
        ``error`` of the last attempt if it failed, and which one the job was ``resumed_from``.
        """

    @abc.abstractmethod
    def barrier(self, timeout: float | None = None) -> None:
        """Wait until every worker is here. It does not wait for pushes. Raises BarrierTimeout naming the missing.

        ``timeout``: seconds; None is PSLITE_TIMEOUT.
        """

    def _barrier(self) -> None:
        """MXNet's name of ``barrier``."""
        self.barrier()

    @abc.abstractmethod
    def send_command_to_servers(self, head: int, body: Any) -> None:
        """Send a command to every server and wait for their acknowledgement; servers log and ignore unknown ones."""

    def _send_command_to_servers(self, head: int, body: Any) -> None:
        """MXNet's name of ``send_command_to_servers``."""
        self.send_command_to_servers(head, body)

    @abc.abstractmethod
    def close(self, join: bool = False) -> None:
        """Wait for this worker's pushes, then for all workers to close. A second call does nothing.

        ``join=True`` lets the others' rounds go on without this worker. Raises what made a push fail, and the PeerError
        of a worker that failed or was lost.
        """

    @abc.abstractmethod
    def _fail(self, error: BaseException) -> None:
        """Tell the job at once that this worker ends with an error."""

    def __enter__(self) -> KVStore:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._fail(error)

    def __repr__(self) -> str:
        return f"<KVStore {self._type!r} rank={self.rank} of {self.num_workers}>"

    # -- shared by the types ------------------------------------------------------------------------------------------

    def _groups(self, key: Any, value: Any, known: Any, what: str = "value") -> list[Group]:
        """The call's groups, with their keys known to the store; raises UnknownKeyError."""
        groups = group(key, value, what)
        self._check_keys([g.key for g in groups], known)
        return groups

    def _keys(self, key: Any, known: Any) -> list[Key]:
        keys = keys_of(key)
        self._check_keys(keys, known)
        return keys

    def _known(self, key: Any, known: Any) -> Key:
        """One key, known to the store; raises KeyTypeError, for a list of keys too, and UnknownKeyError."""
        found = checked(key)
        self._check_keys([found], known)
        return found

    def _check_keys(self, keys: list[Key], known: Any) -> None:
        for k in keys:
            self._check_type(k)
            if k not in known:
                raise UnknownKeyError(key=k)

    def _check_type(self, key: Key) -> None:
        if self._key_type is not None and type(key) is not self._key_type:
            reason = f"this store's keys are {self._key_type.__name__}; int and str keys cannot be mixed"
            raise KeyTypeError(key=repr(key), reason=reason)


def check_priority(priority: Any) -> None:
    """Raise ConfigError unless it can travel."""
    if not (isinstance(priority, (int, np.integer)) and -(2**63) <= priority < 2**63):
        raise ConfigError(name="priority", value=f"{priority!r:.80}", allowed="give an integer of 64 bits, as -index")


def _shape(shape: Any) -> tuple[int, ...]:
    """The shape of a new array."""
    try:
        dimensions = tuple(map(operator.index, shape if isinstance(shape, Iterable) else [shape]))
    except TypeError:
        dimensions = (-1,)
    if any(dimension < 0 for dimension in dimensions) or math.prod(dimensions) >= 2**60:
        allowed = "give an integer from 0 on, or several: no more elements than memory has"
        raise ConfigError(name="shape", value=f"{shape!r:.80}", allowed=allowed)
    return dimensions

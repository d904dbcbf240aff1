"""The tree of errors, by situation.

Every error has fields, prints one sentence that says what to do, and crosses the wire: a server answers a request
with ``error.to_wire()``, the caller raises ``PSError.from_wire(...)``. ``docs/errors.md`` shows the tree on one page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

__all__ = [
    "ArgumentTypeError",
    "AuthError",
    "BarrierTimeout",
    "BindError",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "DTypeError",
    "DuplicateKeyError",
    "ForkError",
    "JoinError",
    "KeeperError",
    "KeyTypeError",
    "NoMemoryError",
    "NotInClusterError",
    "PSError",
    "PeerError",
    "PeerLost",
    "ProtocolError",
    "RemoteError",
    "RendezvousTimeout",
    "RequestTimeout",
    "RowIndexError",
    "ShapeError",
    "StateLost",
    "StorageError",
    "UnknownKeyError",
    "UnreachableError",
    "WaitTimeout",
    "WorkerDropped",
    "WorkerFailed",
    "WorkerFinished",
    "WorkerLeft",
]

_REGISTRY: dict[str, type[PSError]] = {}  # class name -> class; filled while this module is imported, then constant


class PSError(Exception):
    """The root of every error that the packages raise.

    Subclasses list their ``fields``; each field is a keyword of the constructor and an attribute of the error, and is
    a number, a string, None or a list of strings, so that the error can be sent to whoever asked.
    """

    fields: ClassVar[tuple[str, ...]] = ("message",)

    def __init_subclass__(cls) -> None:
        _REGISTRY[cls.__name__] = cls

    def __init__(self, message: str = "", /, **values: Any) -> None:
        if message:
            values["message"] = message
        for name in self.fields:
            setattr(self, name, values.pop(name, None))
        assert not values, f"{type(self).__name__} has no field {sorted(values)}"
        super().__init__(self.describe())

    def describe(self) -> str:
        """The sentence that the user reads."""
        return str(getattr(self, "message", "") or type(self).__name__)

    def __str__(self) -> str:
        return self.describe()

    def __reduce__(self) -> tuple[Any, ...]:
        return (PSError.from_wire, (self.to_wire(),))

    def to_wire(self) -> list[Any]:
        """``[class name, {field: value}]``, ready for msgpack."""
        return [type(self).__name__, {name: _plain(getattr(self, name)) for name in self.fields}]

    @staticmethod
    def from_wire(wire: Any) -> PSError:
        """The error that ``to_wire`` described; an unknown class or malformed record becomes a ``ProtocolError``."""
        if not (isinstance(wire, (list, tuple)) and len(wire) == 2 and isinstance(wire[1], dict)):
            return ProtocolError(f"malformed error record from a peer: {wire!r:.200}")
        cls = _REGISTRY.get(wire[0]) if isinstance(wire[0], str) else None
        if cls is None or not set(wire[1]) <= set(cls.fields):
            return ProtocolError(f"unknown error record from a peer: {wire!r:.200}")
        try:
            return cls(**wire[1])
        except (TypeError, ValueError):  # a field is missing or has another type: it cannot be described
            return ProtocolError(f"malformed error record from a peer: {wire!r:.200}")


_REGISTRY["PSError"] = PSError


def _plain(value: Any) -> Any:
    """A field as msgpack can carry it."""
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:  # a numpy number
        return _plain(value.item())
    return str(value).encode("utf-8", "backslashreplace").decode()


def _names(nodes: Sequence[str] | None) -> str:
    return ", ".join(map(str, nodes)) if nodes else "nobody known"


# -- what the user wrote ----------------------------------------------------------------------------------------------


class ConfigError(PSError, ValueError):
    """Raised when a setting or an argument is missing or not allowed."""

    fields = ("name", "value", "allowed")

    def describe(self) -> str:
        if self.value is None:
            return f"{self.name} is not set; {self.allowed}"
        return f"{self.name}={self.value!r} is not allowed; {self.allowed}"

    name: str
    value: Any
    allowed: str


class ArgumentTypeError(ConfigError, TypeError):
    """Raised when an argument is of a wrong type."""


class NotInClusterError(PSError, ValueError):
    """Raised when a ``dist_*`` store is created in a process that no launcher started."""

    fields = ("name",)
    name: str

    def describe(self) -> str:
        return (
            f"{self.name!r} needs a cluster, and DMLC_ROLE is not set in this process; start the script with\n"
            "    pslite-launch -n 2 -s 1 python train.py\n"
            "or use kvstore.create('local'), or kvstore.LocalCluster(workers=2, servers=1) in a notebook"
        )


class UnknownKeyError(PSError, KeyError):
    """Raised when a key is pushed or pulled before ``init``."""

    fields = ("key",)
    key: int | str

    def describe(self) -> str:
        return f"key {self.key!r} does not exist; call kv.init({self.key!r}, value) on every worker first"


class DuplicateKeyError(PSError, ValueError):
    """Raised when a worker initialises a key twice."""

    fields = ("key",)
    key: int | str

    def describe(self) -> str:
        return f"duplicate init of key {self.key!r}; init (or broadcast) each key once, then push to change its value"


class KeyTypeError(PSError, TypeError):
    """Raised for a key that is neither int nor str, and when int and str keys are mixed in one store."""

    fields = ("key", "reason")
    key: int | str
    reason: str

    def describe(self) -> str:
        return f"key {self.key}: {self.reason}"


class ShapeError(PSError, ValueError):
    """Raised when a value's shape is not the shape of its key."""

    fields = ("key", "got", "expected")
    key: int | str
    got: list[int]
    expected: list[int]

    def describe(self) -> str:
        return f"key {self.key!r}: the value has shape {tuple(self.got)}, expected {tuple(self.expected)}"


class DTypeError(PSError, TypeError):
    """Raised for a dtype that cannot travel, or that is not the dtype of the key."""

    fields = ("key", "got", "expected")
    key: int | str
    got: str
    expected: str

    def describe(self) -> str:
        return f"key {self.key!r}: the value has dtype {self.got}, expected {self.expected}"


class StorageError(PSError, TypeError):
    """Raised when a row-sparse array meets a dense key, or a dense array a row-sparse key, where that cannot be."""

    fields = ("key", "got", "expected")
    key: int | str
    got: str
    expected: str

    def describe(self) -> str:
        return f"key {self.key!r}: got {self.got}, expected {self.expected}"


class RowIndexError(PSError, IndexError):
    """Raised for a row id outside of its table."""

    fields = ("key", "got", "rows")
    key: int | str
    got: str
    rows: int

    def describe(self) -> str:
        return f"key {self.key!r}: row {self.got} does not exist; the array has {self.rows} rows, numbered from 0"


class CheckpointError(PSError, ValueError):
    """Raised when a file with values or optimizer states is damaged, incomplete, or of another job's keys."""

    fields = ("path", "reason")
    path: str
    reason: str

    def describe(self) -> str:
        return f"{self.path}: {self.reason}"


class ConflictError(PSError, ValueError):
    """Raised when a collective call got different arguments on different ranks."""

    fields = ("what", "rank", "got", "expected")
    what: str
    rank: int
    got: str
    expected: str

    def describe(self) -> str:
        return f"{self.what} must be the same on every rank: rank {self.rank} gave {self.got}, expected {self.expected}"


class ClosedError(PSError, RuntimeError):
    """Raised when something is used after ``close()`` or ``finalize()``."""

    fields = ("what",)
    what: str

    def describe(self) -> str:
        return f"{self.what} is closed; create a new one"


class ForkError(PSError, RuntimeError):
    """Raised in a forked child that uses the parent's store: its sockets and threads did not come along."""

    fields = ("what",)
    what: str

    def describe(self) -> str:
        return (
            f"{self.what} was created before this process was forked and cannot be used in the child; "
            "use it in the parent only (a DataLoader's workers should not touch it), or start processes by 'spawn'"
        )


# -- joining ----------------------------------------------------------------------------------------------------------


class JoinError(PSError):
    """Raised when a process cannot become a member of the job."""

    fields: ClassVar[tuple[str, ...]] = ("node", "reason")
    node: str
    reason: str

    def describe(self) -> str:
        return f"{self.node} cannot join: {self.reason}"


class BindError(JoinError):
    """Raised when an address cannot be listened on."""

    fields = ("node", "address", "interface", "reason")
    address: str
    interface: str | None

    def describe(self) -> str:
        where = f"{self.address} ({self.interface})" if self.interface else self.address
        return f"{self.node or 'this process'} cannot listen on {where}: {self.reason}"


class AuthError(JoinError, PermissionError):
    """Raised when a process does not let this one in, or is not who it should be, by its CURVE key."""

    def describe(self) -> str:
        return f"no connection to {self.node}: {self.reason}"


class RendezvousTimeout(JoinError, TimeoutError):
    """Raised when the job is not complete within PSLITE_START_TIMEOUT; names who is missing."""

    fields: ClassVar[tuple[str, ...]] = ("missing", "seconds")
    missing: list[str]
    seconds: float

    def describe(self) -> str:
        remedy = "start them, or correct DMLC_NUM_WORKER and DMLC_NUM_SERVER (PSLITE_START_TIMEOUT sets the limit)"
        if any(" ended " in name for name in self.missing or ()):
            remedy = "every process has to call kvstore.create('dist_...'); a script with 'local' needs no launcher"
        return f"the job was not complete after {self.seconds:g} s: missing {_names(self.missing)}; {remedy}"


class UnreachableError(RendezvousTimeout):
    """Raised when there is no connection to the scheduler, or to a server, within PSLITE_START_TIMEOUT."""

    fields = ("missing", "address", "source", "reason", "seconds")
    address: str
    source: str | None

    def describe(self) -> str:
        source = f", from {self.source}" if self.source else ""
        who = f"{_names(self.missing)} at {self.address}"
        return f"{who} was not reached in {self.seconds:g} s{source}: {self.reason}"


# -- waiting ----------------------------------------------------------------------------------------------------------


class WaitTimeout(PSError, TimeoutError):
    """The root of all waits on a peer that is alive but slow."""

    fields = ("what", "missing", "seconds")
    what: str
    missing: list[str]
    seconds: float

    def describe(self) -> str:
        return (
            f"{self.what} not done after {self.seconds:g} s, waiting for {_names(self.missing)} "
            "(PSLITE_TIMEOUT sets the limit, 0 waits for ever)"
        )


class RequestTimeout(WaitTimeout):
    """Raised when a request has no answer in time."""


class BarrierTimeout(WaitTimeout):
    """Raised when not all members of the group came to a barrier in time."""


# -- other processes --------------------------------------------------------------------------------------------------


class PeerError(PSError, ConnectionError):
    """The root of all errors that another process caused by ending."""

    fields = ("node", "reason")
    node: str
    reason: str

    def describe(self) -> str:
        return f"{self.node}: {self.reason}"


class PeerLost(PeerError):
    """Raised when a process that is needed died, or its host cannot be reached any more."""

    def describe(self) -> str:
        return f"{self.node} is lost: {self.reason}"


class StateLost(PeerLost):
    """Raised when a server was started again and has nothing of what its predecessor held, acknowledged pushes too."""

    def describe(self) -> str:
        return f"{self.node} came again without what its predecessor held: {self.reason}"


class WorkerDropped(PeerLost):
    """Tells that a worker is lost in a job that goes on without such workers (``on_worker_lost='shrink'``)."""


class WorkerFinished(PeerError):
    """Raised when a wait needs a worker that has closed its store already."""

    def describe(self) -> str:
        return (
            f"{self.node} has finished and will not contribute to {self.reason}; give every worker the same number of "
            "batches, or close with kv.close(join=True)"
        )


class WorkerLeft(WorkerFinished):
    """Tells that a worker closed with ``join=True``: rounds go on without it."""


class WorkerFailed(PeerError):
    """Raised when another worker ended with an exception."""

    def describe(self) -> str:
        return f"{self.node} failed: {self.reason}"


class RemoteError(PSError, RuntimeError):
    """Raised at the caller when user code on a server (a handle, an updater, an optimizer) raised there."""

    fields = ("node", "what", "error", "trace")
    node: str
    what: str
    error: str
    trace: str

    def describe(self) -> str:
        return f"{self.what} raised on {self.node}: {self.error}\n{self.trace or ''}".rstrip()


class NoMemoryError(PSError, MemoryError):
    """Raised when a process has no memory for what it is asked."""

    fields = ("node", "what")
    node: str
    what: str

    def describe(self) -> str:
        return (
            f"{self.node} has no memory for {self.what}; give it more (ulimit -v, a container's limit), "
            "or start more servers"
        )


class KeeperError(PSError, RuntimeError):
    """Raised when a server's memory cannot be kept for the process that would take its place."""

    fields = ("what", "reason")
    what: str
    reason: str

    def describe(self) -> str:
        return f"{self.what} failed: {self.reason}; the launcher keeps the memory of servers, see what it says"


class ProtocolError(PSError):
    """Raised for a message that is malformed, too large, or of another protocol version."""

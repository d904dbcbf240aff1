"""The wire: one message is a small msgpack header and raw little-endian buffers.

Frames: ``[header][pack]?[buffer]*``. The header is a positional list (``FIELDS``). Arrays smaller than ``PACK_BELOW``
bytes travel together, each at a multiple of 8 bytes, in the header's last field, or if that is ``PACK_BELOW`` bytes or
more in the pack frame. Every other array is a frame of its own, sent and received without a copy, or does not travel:
the header says where in the sender's memory the receiver finds it.

Evolution: new fields go last, with a default; the type of a field never changes; codes are never reused.
"""

from __future__ import annotations

import enum
import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np

from . import dtypes
from .config import MAX_JOB
from .errors import ConfigError, ProtocolError
from .memory import PACK_BELOW

MAGIC = 0x5053
VERSION = 1
MAX_HEADER = 4 * 1024 * 1024  # bytes
MAX_BODY = MAX_HEADER // 2  # bytes; the rest is for the table of arrays
MAX_FRAME = 16 << 30  # bytes; of a header or an array that travels
MAX_ARRAYS = 65_536
MAX_DIMENSIONS = 32
MAX_ACKS = 2048  # numbers in the list of acknowledgements

_ONLY_INTS, _ONLY_LISTS = {int}, {list}  # types are checked as sets: this runs for every message
_TYPES = (int, str, *[int] * 5, list, *[int] * 7)  # of fields 2 to 16

Frame = bytes | bytearray | memoryview
Array = np.ndarray[Any, Any]
Layout = tuple[np.dtype[Any], tuple[int, ...], int, int]  # of an array: dtype, shape, bytes, those taken of a pack
Place = tuple[int, int, int, int]  # in the sender's memory: segment, offset, offset of its block, generation
Lease = Callable[[], bool]  # whether an array in a peer's memory still is what the peer sent
Find = Callable[[int, Place, int], "tuple[memoryview, Lease] | None"]  # incarnation, place, bytes: their view
Link = int | bytes  # a connection we made to a node id, or the routing id of one that was made to us


class Kind(enum.IntEnum):
    """What a message is to the delivery layer."""

    REQUEST = 1
    REPLY = 2
    PROBE = 3  # which of my requests do you have?
    STATUS = 4  # these, and this is what they wait for
    BEAT = 5  # one way: shows that the connection carries
    CREDIT = 6  # one way: your requests below ``floor`` are taken in, more may follow
    ACK = 7  # one way: says early which replies came, more may follow
    HELLO = 8  # one way: what a member knows, to a scheduler that may be another one; its answer: the table of members


class Op(enum.IntEnum):
    """Which service a request is for."""

    JOIN = 1
    LEAVE = 2
    BARRIER = 3
    PUBLISH = 4
    LOOKUP = 5
    EVENT = 6
    DATA = 7  # KVWorker to KVServer
    SIMPLE = 8  # SimpleApp
    REPLICATE = 9  # a server to its backup


class Flag:
    """Bits of ``Message.flags``; plain ints, because the operators of an IntFlag cost microseconds."""

    PUSH = 1
    PULL = 2
    ERROR = 4
    REPLAY = 8  # it was applied before and must be answered only: a duplicate, or what asks for torn values again
    REFUSED = 32  # of an error: whoever says this does not take the sender for a member of its job
    BY_VALUE = 16  # the arrays travel themselves, not as places in shared memory; those of the answer likewise


@dataclass(slots=True, eq=False)
class Message:
    """One message; the fields up to ``body`` are the header, in this order."""

    kind: int
    job: str = ""
    sender: int = 0  # node id; 0 before the scheduler gave one
    recver: int = 0
    incarnation: int = 0  # of the sender: a fresh random number per process
    seq: int = 0  # of the request, per (sender incarnation, receiver); a reply repeats it
    floor: int = 0  # lowest number whose reply the sender waits for; of REPLY, STATUS, CREDIT: all below are taken in
    acks: list[int] = field(default_factory=list)  # replies received since the last request: [start, count, ...]
    op: int = 0
    app: int = 0
    customer: int = 0
    timestamp: int = 0
    flags: int = 0
    cmd: int = 0
    priority: int = 0
    body: Any = None
    arrays: list[np.ndarray[Any, Any]] = field(default_factory=list)
    codes: list[int] | None = None  # dtype codes of ``arrays``; None derives them
    leases: list[Lease] = field(default_factory=list)  # of received arrays that are memory of their sender
    lent: bool = False  # of a reply: its arrays are kept until it is acknowledged, for the receiver to read

    @property
    def nbytes(self) -> int:
        """Payload bytes, without the header."""
        return sum(a.nbytes for a in self.arrays)

    def intact(self) -> bool:
        """Whether no array that is memory of the sender has been written to since the message was made."""
        return all(lease() for lease in self.leases)


def append_range(ranges: list[Any], number: int) -> None:
    """Add a number to ``[start, count, start, count, ...]``."""
    if ranges and ranges[-2] + ranges[-1] == number:
        ranges[-1] += 1
    else:
        ranges += [number, 1]


def within(ranges: list[Any], known: dict[int, Any]) -> list[int]:
    """The known numbers that are in ``[start, count, ...]``; costs no more than there are known numbers and ranges."""
    found = []
    for start, count in zip(ranges[::2], ranges[1::2], strict=False):
        if count == 1:
            found += [start] if start in known else []
        else:
            found += [number for number in known if start <= number < start + count]
    return found


def integer(name: str, value: Any) -> int:
    """An argument that travels in the header as a plain int; numpy integers are integers. Raises ConfigError."""
    number = int(operator.index(value)) if hasattr(value, "__index__") else None
    if number is None or not -(2**63) <= number < 2**63:
        raise ConfigError(name=name, value=f"{value!r:.80}", allowed="give an integer of 64 bits")
    return number


def check(message: Message) -> None:
    """Find what would keep a message from being sent or understood, before it is numbered: then it must go out.

    Raises DTypeError, or ProtocolError that says what cannot travel.
    """
    codes, arrays = message.codes, message.arrays
    if codes is None:
        message.codes = [dtypes.code_of(a.dtype) for a in arrays]
    elif list(map(dtypes.ITEMSIZES.get, codes)) != [a.itemsize for a in arrays]:
        raise ProtocolError(f"the dtype codes {codes!r:.80} do not fit the {len(arrays)} arrays")
    if len(arrays) > MAX_ARRAYS or (arrays and max([a.ndim for a in arrays]) >= MAX_DIMENSIONS):
        raise ProtocolError(f"a message carries at most {MAX_ARRAYS} arrays of at most {MAX_DIMENSIONS - 1} dimensions")
    if max([a.nbytes for a in message.arrays], default=0) > MAX_FRAME:
        raise ProtocolError(f"an array of a message has at most {MAX_FRAME} bytes: give several smaller ones")
    numbers = (message.app, message.customer, message.cmd, message.priority)
    if {*map(type, numbers)} != _ONLY_INTS or min(numbers) < -(2**63) or max(numbers) >= 2**63:
        raise ProtocolError(f"app, customer, cmd, priority = {numbers!r:.320} must be whole numbers of 64 bits")
    if message.body is not None:
        _check_body(message.body)


def _check_body(body: Any) -> None:
    if type(body) is list and len(body) == 2 and type(body[0]) is int and body[1] is None and 0 <= body[0] < 2**63:
        return  # as ``kv_pairs.pack`` makes it for almost every message; a trial costs more than the rest of the check
    try:
        packed = msgpack.packb(body)
        _unpack(packed)
    except (ValueError, RecursionError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError(
            f"the body cannot be sent: {error}; use None, bool, int, float, str, bytes, and lists and dicts of them"
        ) from error
    if len(packed) > MAX_BODY:
        raise ProtocolError(f"the body would be {len(packed)} bytes, at most {MAX_BODY} are allowed: send fewer keys")


def encode(message: Message, place: Callable[[Array], Place | None] | None = None) -> list[Frame]:
    """The frames of a checked message. Buffers are views: they must not change until it is acknowledged.

    ``place``: where the receiver finds an array without its being sent, if it does.
    """
    codes = message.codes or [dtypes.code_of(a.dtype) for a in message.arrays]
    table: list[list[int]] = []
    places: list[int] = []
    packed: list[Frame] = []
    frames: list[Frame] = []
    for index, (code, array) in enumerate(zip(codes, message.arrays, strict=True)):
        table.append([code, *array.shape])
        if not array.dtype.isnative:  # the wire is little-endian
            array = array.astype(array.dtype.newbyteorder("="))
        if array.nbytes < PACK_BELOW:
            packed.append(data := array.tobytes())
            if len(data) % 8:
                packed.append(bytes(-len(data) % 8))
        elif place is not None and (found := place(array)) is not None:
            places += (index, *found)
        else:
            frames.append(_view(array))
    pack = b"".join(packed)
    if len(pack) >= PACK_BELOW:
        frames.insert(0, pack)
        pack = b""
    m = message
    header = msgpack.packb(
        [MAGIC, VERSION, int(m.kind), m.job, m.sender, m.recver, m.incarnation, m.seq, m.floor, m.acks,
         int(m.op), m.app, m.customer, m.timestamp, int(m.flags), m.cmd, m.priority, m.body, table, places, pack]
    )  # fmt: skip
    return [header, *frames]


def _view(array: np.ndarray[Any, Any]) -> memoryview:
    contiguous = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    if contiguous.dtype.name == "bfloat16":  # ml_dtypes: no buffer protocol
        contiguous = contiguous.view(np.uint16)
    return contiguous.reshape(-1).view(np.uint8).data


def decode(frames: Sequence[Any], find: Find | None = None) -> Message:
    """The message in these frames (anything with the buffer protocol); arrays are read-only views of the frames.

    ``find``: the view of an array that is in the sender's memory.

    Raises ProtocolError for anything that is not a message of this protocol version, before allocating.
    """
    if not frames or len(frames[0]) > MAX_HEADER:
        raise ProtocolError("no header, or one that is too large")
    try:
        fields = _unpack(frames[0])
    except (ValueError, RecursionError, TypeError, msgpack.UnpackException) as error:
        raise ProtocolError(f"the header is not msgpack: {error}") from error
    if not (isinstance(fields, list) and len(fields) >= 2 and fields[0] == MAGIC):
        raise ProtocolError("the header does not start with the magic number: the peer is not pslite")
    if fields[1] != VERSION:
        raise ProtocolError(
            f"the peer speaks protocol version {fields[1]!r:.20}, this process {VERSION}: install the same pslite"
        )
    if len(fields) < 19:
        raise ProtocolError(f"the header has {len(fields)} fields, expected 19")
    message = Message(*_checked(fields))
    try:
        layouts, places = _layouts(fields[18]), _places(fields[19] if len(fields) > 19 else [])
        views = {}
        for index, place in places.items():
            views[index], lease = _found(find, message.incarnation, place, layouts, index)
            message.leases.append(lease)
        message.arrays = _arrays(layouts, fields[20] if len(fields) > 20 else b"", frames, views)
        message.codes = [entry[0] for entry in fields[18]]
    except (ValueError, OverflowError) as error:  # numpy: an empty array with a dimension that no memory could hold
        raise ProtocolError(f"an array's shape is not possible: {error}") from error
    return message


def _unpack(data: Any) -> Any:
    return msgpack.unpackb(
        data, max_array_len=MAX_ARRAYS * 2, max_map_len=MAX_ARRAYS, max_ext_len=0, strict_map_key=False
    )


def _checked(fields: list[Any]) -> list[Any]:
    """Fields 2 to 17 with their types checked."""
    job, acks = fields[3], fields[9]
    if tuple(map(type, fields[2:17])) != _TYPES or len(job) > MAX_JOB:
        raise ProtocolError("a header field has the wrong type")
    if len(acks) % 2 or len(acks) > MAX_ACKS or not {*map(type, acks)} <= _ONLY_INTS:
        raise ProtocolError("the list of acknowledgements is malformed")
    return fields[2:18]


def _places(flat: Any) -> dict[int, Place]:
    """Which arrays are not sent, by index."""
    if flat == []:
        return {}
    if type(flat) is not list or len(flat) % 5 or {*map(type, flat)} != _ONLY_INTS:
        raise ProtocolError("the list of places is malformed")
    return {flat[i]: (flat[i + 1], flat[i + 2], flat[i + 3], flat[i + 4]) for i in range(0, len(flat), 5)}


def _found(
    find: Find | None, incarnation: int, place: Place, layouts: list[Layout], index: int
) -> tuple[memoryview, Lease]:
    nbytes = layouts[index][2] if 0 <= index < len(layouts) else 0
    found = None if find is None or nbytes < PACK_BELOW else find(incarnation, place, nbytes)
    if found is None:
        raise ProtocolError(f"array {index} should be in memory that the sender does not share with this process")
    return found


def _arrays(
    layouts: list[Layout], inline: Any, frames: Sequence[Any], shared: dict[int, memoryview]
) -> list[Array]:
    if type(inline) is not bytes:
        raise ProtocolError("the packed arrays are malformed")
    views = [memoryview(frame).toreadonly() for frame in frames[1:]]
    small = sum([room for _, _, _, room in layouts])
    own = sum([nbytes >= PACK_BELOW for _, _, nbytes, _ in layouts]) - len(shared)
    packed = small >= PACK_BELOW
    if len(views) != own + packed:
        raise ProtocolError(f"{len(views)} buffers came, {own + packed} were announced")
    pack, others = (views[0], iter(views[1:])) if packed else (inline, iter(views))
    if small > len(pack):
        raise ProtocolError("the packed arrays are longer than their frame")
    arrays, offset = [], 0
    for index, (dtype, shape, nbytes, room) in enumerate(layouts):
        if nbytes < PACK_BELOW:
            arrays.append(np.ndarray(shape, dtype, pack, offset))
            offset += room
            continue
        buffer = shared[index] if index in shared else next(others)
        if len(buffer) != nbytes:
            raise ProtocolError(f"an array of {nbytes} bytes came in a frame of {len(buffer)}")
        arrays.append(np.ndarray(shape, dtype, buffer))
    return arrays


def _layouts(table: Any) -> list[Layout]:
    """The dtype, shape and bytes of each array, checked before anything of that size exists."""
    if type(table) is not list or len(table) > MAX_ARRAYS or not {*map(type, table)} <= _ONLY_LISTS:
        raise ProtocolError(f"the table of arrays is malformed or has more than {MAX_ARRAYS} entries")
    try:
        return [_layout(*entry) for entry in table]
    except TypeError as error:  # it is empty, or has something that is no number
        raise ProtocolError("an entry of the table of arrays is malformed") from error


@functools.lru_cache(1024, typed=True)  # a job has few shapes; typed, for True is not 1 here
def _layout(code: int, *shape: int) -> Layout:
    if {type(code), *map(type, shape)} != _ONLY_INTS or min(shape, default=0) < 0 or len(shape) >= MAX_DIMENSIONS:
        raise ProtocolError("an entry of the table of arrays is malformed")
    dtype = dtypes.storage(code)
    nbytes = dtype.itemsize * math.prod(shape)
    return dtype, shape, nbytes, nbytes + -nbytes % 8 if nbytes < PACK_BELOW else 0

"""KVWorker: pushes values to the servers and pulls them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import ids
from .customer import Customer, Request, Torn
from .errors import ConfigError, ProtocolError
from .kv_pairs import Array, KVPairs, Slicer, checked_keys, checked_pairs, default_slicer, pack, pull_again, unpack
from .postoffice import SAME_AS_CONFIG, Postoffice
from .simple_app import answer_error
from .wire import Flag, Kind, Message, Op, integer

Callback = Callable[[], None]


class KVWorker:
    """Sends key-value requests to the servers, one message to each server that has some of the keys.

    Every call returns a timestamp at once. Order: a server works through one worker's requests in the order of the
    calls. The arrays given to ``push`` are copied unless ``zero_copy``; then they must not change until ``wait``.
    """

    def __init__(self, app_id: int, customer_id: int, office: Postoffice) -> None:
        self.office = office
        self.customer = Customer(office, app_id, customer_id, self._accept)
        self._slicer: Slicer = default_slicer

    def set_slicer(self, slicer: Slicer) -> None:
        """Replace the default slicer, which cuts by the servers' key ranges."""
        self._slicer = slicer

    def push(self, keys: ArrayLike, vals: ArrayLike, lens: ArrayLike | None = None, cmd: int = 0,
             callback: Callback | None = None, priority: int = 0, zero_copy: bool = False) -> int:  # fmt: skip
        """Push values: ``keys`` uint64 ascending, ``vals`` 1-D of any dtype of the wire, ``lens`` values per key."""
        pairs = checked_pairs(keys, vals, lens)
        if not zero_copy and isinstance(pairs.vals, np.ndarray):
            pairs.vals = pairs.vals.copy()
        return self.customer.keep(self.send(pairs, Flag.PUSH, cmd, priority, _then(callback)))

    def pull(self, keys: ArrayLike, vals: Array | None = None, lens: Array | None = None, cmd: int = 0,
             callback: Callback | None = None, priority: int = 0) -> int:  # fmt: skip
        """Pull values; ``wait(timestamp)`` returns them as KVPairs, or fills ``vals`` (and ``lens``) if given.

        ``vals`` must be 1-D with exactly as many elements as arrive; ConfigError otherwise.
        """
        pairs = KVPairs(checked_keys(keys), [])
        return self.customer.keep(self.send(pairs, Flag.PULL, cmd, priority, _into(vals, lens, callback)))

    def pushpull(self, keys: ArrayLike, vals: ArrayLike, outs: Array | None = None, lens: ArrayLike | None = None,
                 cmd: int = 0, callback: Callback | None = None, priority: int = 0) -> int:  # fmt: skip
        """Push and pull in one message; the values that come back are those after this push."""
        pairs = checked_pairs(keys, vals, lens)
        assert isinstance(pairs.vals, np.ndarray)
        pairs.vals = pairs.vals.copy()
        return self.customer.keep(self.send(pairs, Flag.PUSH | Flag.PULL, cmd, priority, _into(outs, None, callback)))

    def send(self, pairs: KVPairs | Iterable[KVPairs], flags: int, cmd: int = 0, priority: int = 0,
             finish: Callable[[list[Any]], Any] | None = None, meta: Any = None,
             keys_per_message: int | None = None, what: str = "",
             take: Callable[[KVPairs], Any] | None = None,
             ended: Callable[[], None] | None = None, server: int | None = None) -> Request:  # fmt: skip
        """Slice pairs and send each server its part.

        Several ``pairs`` are one request, sent one after the other: while one is on its way the next may be made.
        ``finish(parts)`` makes the request's result of what came back: the answers, or what ``take(answer)`` made of
        each. ``take`` runs as they come, after all is sent; it must not keep their arrays, and may run again for a key.
        ``ended()`` runs in any case, before the request is done; it must not block.

        ``meta`` is anything small that msgpack carries; servers see it as ``KVMeta.meta``. ``keys_per_message`` cuts
        longer parts into several messages: when values are lists, whose arrays a header has to describe. ``what`` is
        how errors call the request. ``server``: the rank of the one that has all the keys, if the caller knows: then
        the pairs are one message.
        """
        taken = None if take is None and finish is None else partial(_taken, take or KVPairs.kept)
        if server is not None:
            assert isinstance(pairs, KVPairs)
            message = Message(Kind.REQUEST, op=Op.DATA, flags=flags, cmd=cmd, priority=priority)
            one = ids.server_id(server), pack(pairs, message, meta)
            return self.customer.request([one], taken, finish, what, ended)
        cmd, priority = integer("cmd", cmd), integer("priority", priority)

        def messages(each: KVPairs) -> Iterator[tuple[int, Message]]:
            for rank, part in enumerate(self._slice(each)):
                for chunk in [] if part is None else _chunks(part, keys_per_message):
                    message = Message(Kind.REQUEST, op=Op.DATA, flags=flags, cmd=cmd, priority=priority)
                    yield ids.server_id(rank), pack(chunk, message, meta)

        if isinstance(pairs, KVPairs):
            return self.customer.request(list(messages(pairs)), taken, finish, what, ended)
        return self.customer.request(self._flowing(map(messages, pairs)), taken, finish, what, ended)

    def _flowing(self, sent: Iterable[Iterator[tuple[int, Message]]]) -> Iterator[tuple[int, Message]]:
        """All of these messages; between them room is noticed that the servers have made."""
        for index, messages in enumerate(sent):
            if index:
                self.office.progress()
            yield from messages

    def wait(self, timestamp: int, timeout: Any = SAME_AS_CONFIG) -> Any:
        """Wait for a request; returns what it pulled. Raises its error, or RequestTimeout naming the missing."""
        return self.customer.wait(timestamp, timeout)

    def close(self) -> None:
        """Accept nothing any more."""
        self.customer.close()

    def _accept(self, message: Message) -> None:
        answer_error(self.office, message, ProtocolError("a KVWorker answers no requests"), "the worker")

    def _slice(self, pairs: KVPairs) -> list[KVPairs | None]:
        slices = self._slicer(pairs, self.office.server_key_ranges())
        if len(slices) != self.office.num_servers:
            raise ConfigError(
                name="slicer",
                value=f"{len(slices)} slices",
                allowed=f"one for each of {self.office.num_servers} servers",
            )
        return slices


def _chunks(pairs: KVPairs, size: int | None) -> list[KVPairs]:
    count = len(pairs.keys)
    if size is None or count <= size:
        return [pairs]
    return [pairs.slice(lo, min(lo + size, count)) for lo in range(0, count, size)]


def _taken(take: Callable[[KVPairs], Any], asked: Message, answer: Message) -> Any:
    """Let an answer be taken in; if its arrays were written to meanwhile, by others, ask for them again."""
    part = take(unpack(answer))
    if answer.leases and not answer.intact():
        raise Torn(pull_again(asked))
    return part


def _then(callback: Callback | None) -> Callable[[list[KVPairs]], None] | None:
    return None if callback is None else (lambda _: callback())


def _into(
    vals: Array | None, lens: Array | None, callback: Callback | None
) -> Callable[[list[KVPairs]], KVPairs | None]:
    """Join what the servers sent, in key order, and put it where the caller wants it."""

    def finish(parts: list[KVPairs]) -> KVPairs | None:
        joined = _join(parts)
        result: KVPairs | None = joined
        if vals is not None:
            if not isinstance(joined.vals, np.ndarray):
                raise ProtocolError("no values came as one flat array from the servers' handle: pull without vals")
            if vals.shape != joined.vals.shape:
                raise ConfigError(
                    name="vals", value=f"shape {vals.shape}", allowed=f"{joined.vals.shape} came from the servers"
                )
            vals[:] = joined.vals
            result = None
        if lens is not None:
            lens[:] = _lens(joined)
        if callback is not None:
            callback()
        return result

    return finish


def _join(parts: Sequence[KVPairs]) -> KVPairs:
    parts = sorted(parts, key=lambda part: int(part.keys[0]) if len(part.keys) else 0)
    if not parts:
        return KVPairs(np.empty(0, np.uint64), np.empty(0, np.float32))
    if len(parts) == 1:
        return parts[0]
    keys = np.concatenate([p.keys for p in parts])
    if any(isinstance(p.vals, list) for p in parts):
        codes = [c for p in parts for c in p.codes or []]
        joined = KVPairs(keys, [a for p in parts for a in p.vals], codes=codes or None)
        for name in ("versions", "lens", "kinds"):
            columns = [getattr(p, name) for p in parts]
            setattr(joined, name, None if any(c is None for c in columns) else np.concatenate(columns))
        return joined
    joined = KVPairs(keys, np.concatenate([p.vals for p in parts]))
    lens = np.concatenate([_lens(p) for p in parts])
    if any(p.lens is not None for p in parts) or (lens != lens[0]).any():
        joined.lens = lens
    return joined


def _lens(pairs: KVPairs) -> NDArray[np.int64]:
    """How many values each key has."""
    if pairs.lens is not None:
        return pairs.lens
    return np.full(len(pairs.keys), len(pairs.vals) // max(len(pairs.keys), 1))

"""A store's use of gradient compression: the codec in force, and what it has held back of each key so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pslite.dtypes import CODES, NAMES
from pslite.errors import DTypeError, StorageError

from .arrays import Array
from .compression import Codec, Feedback, create
from .keys import Key
from .rows import Content, Rows
from .spec import Spec, check_whole

_FLOAT32 = CODES["float32"]

Stream = tuple[Key, int]
"""A key and a device's place in the list of arrays; 0 on dist types, which compress the sum of the devices."""


@dataclass(slots=True)
class Compression:
    """The setting, and the residuals of this process. The store's lock guards it."""

    codec: Codec | None = None
    pulls: bool = False  # whether pulls are compressed too
    feedback: dict[Stream, Feedback] = field(default_factory=dict)

    def to_wire(self) -> list[Any]:
        """The setting, as workers agree on it."""
        return [None if self.codec is None else self.codec.to_wire(), self.pulls]

    def check(self, spec: Spec, contents: list[Content]) -> None:
        """Raise unless this can be compressed."""
        if any(isinstance(content, Rows) for content in contents):
            raise StorageError(key=spec.key, got="row-sparse gradients", expected="dense ones, under compression")
        if spec.code != _FLOAT32:
            raise DTypeError(key=spec.key, got=NAMES[spec.code], expected="float32, under gradient compression")

    def encode(
        self, spec: Spec, device: int, grad: Array, cuts: list[tuple[int, int]] | None, salt: int
    ) -> list[list[Array]]:
        """One code for each piece of a gradient."""
        assert self.codec is not None
        stream = self.feedback.get((spec.key, device))
        if stream is None:
            stream = self.feedback[spec.key, device] = Feedback(spec.shape)
        return stream.encode(self.codec, grad, cuts, salt)

    @contextmanager
    def all_or_nothing(self, keys: Iterable[Key]) -> Iterator[None]:
        """If a user's codec raises at one of these keys, no gradient is lost: what was held back is again as before."""
        if self.codec is None or self.codec.trusted:
            yield
            return
        mine = set(keys)
        before = {stream: held.residual.copy() for stream, held in self.feedback.items() if stream[0] in mine}
        try:
            yield
        except BaseException:
            self.feedback = {stream: held for stream, held in self.feedback.items() if stream[0] not in mine}
            for stream, residual in before.items():
                self.feedback[stream] = Feedback(residual.shape)
                self.feedback[stream].residual = residual
            raise

    def release(self, key: Key, device: int, grad: Array) -> None:
        """Add what was held back to a gradient that is sent as it is, in place."""
        stream = self.feedback.pop((key, device), None) if self.feedback else None
        if stream is not None:
            grad += stream.residual

    def hold(self, spec: Spec, device: int, residual: Array | None) -> None:
        """Start with what was held back before a checkpoint, if anything was."""
        if residual is None:
            return
        self.feedback[spec.key, device] = stream = Feedback(spec.shape)
        stream.residual[...] = residual

    def through(self, spec: Spec, device: int, grad: Array, number: int) -> tuple[Array, int]:
        """What arrives of a gradient if it is compressed, and in how many bytes."""
        assert self.codec is not None
        salt = self.codec.salt_of(spec.key, number, device)
        [code] = self.encode(spec, device, grad, None, salt)
        return self.codec.decoded(code, grad.size, salt).reshape(spec.shape), sum(array.nbytes for array in code)


def setting(params: Any) -> Compression:
    """What the user asked for; raises ConfigError."""
    codec, direction = create(params)
    return Compression(codec, direction == "both" and codec is not None)


def check_codec(codec: Codec | None, split: Key | None) -> None:
    """Raise if a codec that needs whole arrays meets a key that is split over the servers."""
    if codec is not None and not codec.elementwise:
        check_whole("compression_params", codec.to_wire()[0], split)


@dataclass(slots=True)
class Traffic:
    """Bytes of values that one worker pushed and pulled of a key; ``raw``: without compression."""

    push: int = 0
    push_raw: int = 0
    pull: int = 0
    pull_raw: int = 0

    def to_dict(self) -> dict[str, int]:
        """As ``kv.stats()`` shows it."""
        return {
            "push_bytes": self.push,
            "push_bytes_raw": self.push_raw,
            "pull_bytes": self.pull,
            "pull_bytes_raw": self.pull_raw,
        }

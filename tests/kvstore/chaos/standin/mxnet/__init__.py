"""What the peer's worker uses of MXNet, for one worker in one process; ``STANDIN`` says what is wrong with it."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import numpy as np


class MXNetError(Exception):
    pass


class _Array:
    def __init__(self, values: Any) -> None:
        self.values = values

    def asnumpy(self) -> Any:
        return self.values

    def wait_to_read(self) -> None:
        pass


class _Store:
    rank = 0

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._pushes = 0

    def set_optimizer(self, optimizer: object) -> None:
        pass

    def init(self, key: str, value: _Array) -> None:
        self._values[key] = value.values.copy()

    def push(self, key: str, value: _Array, priority: int) -> None:
        self._pushes += 1
        if os.environ["STANDIN"] == "loses" and self._pushes == 3:
            return
        if os.environ["STANDIN"] == "raises" and self._pushes == 3:
            raise MXNetError("the server is gone")
        self._values[key] += value.values

    def pull(self, key: str, out: _Array, priority: int) -> None:
        out.values = self._values[key].copy()

    def _barrier(self) -> None:
        pass


nd = SimpleNamespace(
    zeros=lambda shape, dtype: _Array(np.zeros(shape, dtype)), array=lambda values, dtype: _Array(values.astype(dtype))
)
optimizer = SimpleNamespace(create=lambda name: None)
kv = SimpleNamespace(create=lambda type: _Store())

if os.environ["DMLC_ROLE"] == "scheduler" and os.environ["STANDIN"] == "hangs":
    signal.pause()

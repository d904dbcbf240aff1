"""What survives a death costs no message: a push is one request and one answer, as without."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from pslite.wire import Kind, Message

from .hosted_jobs import job

PUSHES = 20


class Counted:
    """Counts messages by kind, but for beats, which go out by the clock."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, sender: str, receiver: str, message: Message) -> int:
        if message.kind != Kind.BEAT:
            with self._lock:
                self.kinds[Kind(message.kind).name] += 1
        return 1


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
@pytest.mark.parametrize("max_restarts", [0, 3])
def test_a_push_is_one_request_and_one_answer(type: str, max_restarts: int) -> None:
    counted = Counted()
    with job(type, workers=2, servers=1, fault=counted, max_restarts=max_restarts, resend_timeout=60.0) as running:
        running.all(lambda kv: kv.init("w", np.zeros(100, np.float32)))
        running.all(lambda kv: kv.push("w", np.ones(100, np.float32)).wait())
        counted.kinds.clear()
        for _ in range(PUSHES):
            running.all(lambda kv: kv.push("w", np.ones(100, np.float32)).wait())
        assert counted.kinds == {"REQUEST": 2 * PUSHES, "REPLY": 2 * PUSHES}

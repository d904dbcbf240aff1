"""What a worker sent and did not wait for is in the model when it has closed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from kvstore import KVStore
from kvstore.dist import DistStore
from kvstore.server.hosting import serve
from pslite import InprocCluster, run_all
from pslite.wire import Kind, Message, Op

CALLS: dict[str, Callable[[KVStore], Any]] = {
    "push": lambda kv: kv.push("w", np.ones(3)),
    "pushpull": lambda kv: kv.pushpull("w", np.ones(3), out=np.zeros(3), wait=False),
}


@pytest.mark.parametrize("call", CALLS)
def test_close_waits_until_what_was_sent_is_applied(call: str) -> None:
    """The network loses worker 0's last message: the worker must be there to send it again."""
    seen = 0

    def lose_one(sender: str, receiver: str, message: Message) -> int:
        nonlocal seen
        if (sender, message.kind, message.op) == ("worker 0", Kind.REQUEST, Op.DATA):
            seen += 1
            return int(seen != 2)  # the first is the init
        return 1

    def work(office: Any) -> Any:
        office.start()
        with DistStore("dist_sync", office) as kv:
            kv.init("w", np.zeros(3))
            CALLS[call](kv)
            return kv.pull("w") if kv.rank else None

    cluster = InprocCluster(workers=2, servers=1, fault=lose_one, resend_timeout=0.05)
    try:
        servers = [partial(serve, office) for office in (cluster.scheduler, *cluster.servers)]
        results = run_all([*(partial(work, office) for office in cluster.workers), *servers])
    finally:
        cluster.close()
    np.testing.assert_array_equal(results[1], np.full(3, 2.0))

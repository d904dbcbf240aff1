"""What worker 0 alone may ask of a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.commands import INIT, LOAD, SAVE
from pslite import Flag, KVPairs
from pslite.errors import ProtocolError

REQUESTS = {
    "command 1 ": (Flag.PUSH, INIT, {9: ["x", False, [3]]}, 9),
    "command 2 ": (Flag.PULL, SAVE, True, 0),
    "command 3 ": (Flag.PUSH, LOAD, {0: [["value"], 1, 1]}, 0),
}


def test_another_worker_makes_no_keys_and_takes_no_checkpoints() -> None:
    def work(kv: Any) -> None:
        kv.init("w", np.ones(3))
        if kv.rank == 1:
            for what, (flags, cmd, meta, key) in REQUESTS.items():
                pairs = KVPairs(np.array([key], np.uint64), [np.zeros(3)] if flags == Flag.PUSH else [])
                with pytest.raises(ProtocolError, match=f"{what}is for worker 0 to send, not for worker 1"):
                    kv._worker.customer.wait_for(kv._worker.send(pairs, flags, cmd, meta=meta))
            for what in ("decide", "forget"):
                with pytest.raises(ProtocolError, match=f"{what} is for worker 0 to send, not for worker 1"):
                    kv._tell_first_server(what, [None, None])
        kv.barrier()
        assert kv.pull("w").tolist() == [1, 1, 1]

    kvstore.LocalCluster(2, 1, timeout=10).run(work)

"""What a peer would refuse to read is an error at the caller; what comes after it works."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

import kvstore
from kvstore import KVStore
from pslite import SERVER_GROUP, InprocCluster, ProtocolError, SimpleApp, SimpleData

BODIES = {
    "an object": object(),
    "a numpy scalar": np.int64(3),
    "an integer of more than 64 bits": 1 << 64,
    "an extension type": msgpack.ExtType(1, b"x"),
    "a list that is too long": [0] * 200_000,
    "a dict that is too large": dict.fromkeys(range(70_000)),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_command_that_cannot_travel(body: Any) -> None:
    def work(kv: KVStore) -> Any:
        with pytest.raises(ProtocolError, match="the body cannot be sent"):
            kv.send_command_to_servers(1, body)
        kv.init("w", np.zeros(2))
        kv.push("w", np.ones(2))
        return kv.pull("w")[0]

    assert kvstore.LocalCluster(workers=1, servers=1, timeout=5).run(work) == [1]


@pytest.mark.parametrize("answer", BODIES.values(), ids=BODIES)
def test_a_response_that_cannot_travel(answer: Any) -> None:
    def handle(data: SimpleData, app: SimpleApp) -> None:
        app.response(data, answer if data.body == "bad" else "good")

    with InprocCluster(workers=1, servers=1, timeout=5) as cluster:
        SimpleApp(7, 0, cluster.servers[0], handle)
        app = SimpleApp(7, 0, cluster.workers[0])
        with pytest.raises(ProtocolError, match="the body cannot be sent"):
            app.wait(app.request(1, "bad", SERVER_GROUP))
        assert app.wait(app.request(1, "fine", SERVER_GROUP)) == ["good"]

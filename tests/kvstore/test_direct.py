"""What random sequences of calls (``test_model.py``) found, one by one."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

import kvstore
from kvstore.ledger import MAX_AHEAD
from kvstore.sparse import from_dense

from .direct import Cluster

ONE = np.ones((2, 3), np.float32)


def test_a_push_of_several_keys_does_not_hold_up_later_pushes_of_one_of_them() -> None:
    cluster = Cluster(workers=2, servers=1, bound=1000, order=Random(0))
    for kv in cluster.stores:
        kv.init(["a", "b"], [ONE, ONE])
    fast, slow = cluster.stores
    both = fast.push(["a", "b"], [ONE, ONE])
    for _ in range(2 * MAX_AHEAD):
        slow.push("a", ONE)
        fast.push("a", ONE)  # these rounds are complete, or will be when the messages arrive
    slow.push("b", ONE)
    both.wait()
    np.testing.assert_array_equal(fast.pull("b"), 2 * ONE)


def test_the_rule_fails_on_one_key_of_a_local_push_and_changes_the_others() -> None:
    kv = kvstore.create("local")
    kv.init(["a", "counts", "b"], [ONE, ONE.astype(np.int32), ONE])
    kv.set_optimizer(kvstore.optimizer.create("test"))
    with pytest.raises(kvstore.DTypeError, match="counts"):
        kv.push(["a", "counts", "b"], [ONE, ONE.astype(np.int32), ONE])
    for key, expected in (("a", 2), ("counts", 1), ("b", 2)):
        np.testing.assert_array_equal(kv.pull(key), expected * ONE)


def test_rows_can_be_pushed_after_compression_has_ended() -> None:
    kv = kvstore.create("device")
    kv.init(["w", "table"], [ONE, from_dense(ONE)])
    kv.set_gradient_compression({"type": "2bit", "threshold": 2})
    kv.push("w", ONE)
    kv.set_gradient_compression({"type": "none"})
    kv.push("table", from_dense(3 * ONE))
    np.testing.assert_array_equal(kv.pull("table"), 3 * ONE)
    kv.push("w", ONE)
    np.testing.assert_array_equal(kv.pull("w"), 2 * ONE)  # with what was held back

"""What random sequences of calls (``test_model.py``) found, one by one."""

from __future__ import annotations

from random import Random

import numpy as np

from kvstore.dist import MAX_AHEAD

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

"""Workers count together and leave in different ways: leaving.py TYPE WAY-OF-RANK-0 WAY-OF-RANK-1 ...

Ways: exit (sys.exit(0), nothing closed), end (of the script), close, with, fail (sys.exit(3)), see (wait for the last
push of all others, then close).
"""

import sys

import kvstore


@kvstore.updater("add")
def add(key, received, stored):
    stored += received


kvstore.serve()

import numpy as np

kind, *ways = sys.argv[1:]


def count(kv: kvstore.KVStore) -> None:
    kv.set_updater(add)
    kv.init("count", np.zeros(1, np.int64))
    # In dist_async everybody is as fast as he likes.
    for _ in range(10 * (kv.rank + 1) if kind == "dist_async" else 10):
        kv.push("count", np.ones(1, np.int64))


kv = kvstore.create(kind)
way = ways[kv.rank]
print("rank", kv.rank, flush=True)
if way == "with":
    with kv:
        count(kv)
    sys.exit()
count(kv)
if way == "see":
    ranks = range(kv.num_workers)
    total = sum(10 * (rank + 1) for rank in ranks) if kind == "dist_async" else 10 * len(ranks)
    while (seen := int(kv.pull("count")[0])) != total:
        assert seen < total
    print("seen", total, flush=True)
    kv.close()
if way == "close":
    kv.close()
if way == "exit":
    sys.exit(0)
if way == "fail":
    sys.exit(3)

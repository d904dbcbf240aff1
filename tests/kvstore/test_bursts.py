"""Calls with one small key each, many at a time: they travel together, and each ends as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.burst import PAGE
from kvstore.commands import BUNDLE, OUTCOME
from pslite import Flag, KVPairs
from pslite.errors import DTypeError, ProtocolError, PSError, RemoteError, UnknownKeyError

from .direct import Cluster
from .sparse_jobs import KV
from .test_attacks import Lossy, run

pytestmark = pytest.mark.timeout(60)

NAMES = [f"k{i}" for i in range(20)]
FLOATS = np.float32


def grad(number: float) -> Any:
    return np.full(3, number, FLOATS)


def cluster(workers: int = 2, dtype: Any = FLOATS, names: list[str] = NAMES) -> Cluster:
    """A job in one thread, whose workers have the keys."""
    job = Cluster(workers=workers, servers=1, bound=1000, order=Random(3))
    for kv in job.stores:
        kv.init(names, [np.zeros(3, dtype) for _ in names])
    while job.step():
        pass
    return job


def waiting(job: Cluster) -> int:
    """How many messages are on their way."""
    return sum(map(len, job._lines.values()))


@kvstore.updater("refuses large numbers")
def careful(key: Any, received: Any, stored: Any) -> None:
    if received[0] > 1000:
        raise ValueError("too large")
    stored += received


# -- when they leave --------------------------------------------------------------------------------------------------


def test_a_call_that_finds_nothing_under_way_leaves_at_once() -> None:
    job = cluster()
    job.stores[0].push("k0", grad(1))
    assert waiting(job) == 1
    job.stores[1].pull("k0", out=grad(0), wait=False)
    assert waiting(job) == 2


def test_others_leave_together() -> None:
    job = cluster()
    for name in NAMES:
        job.stores[0].push(name, grad(1))
    for name in NAMES:
        job.stores[0].pull(name, out=grad(0), wait=False)
    assert waiting(job) == 1
    job.stores[0].version("k0")  # asks nobody
    assert waiting(job) == 1
    job.planned.pop(0)()  # something has joined since it was opened: more may come
    assert waiting(job) == 1
    job.planned.pop(0)()
    assert waiting(job) == 3  # the first push, the other pushes, the pulls


def test_they_end_at_the_same_keys_for_all() -> None:
    names = [f"k{i}" for i in range(PAGE + 20)]
    job = cluster(1, names=names)
    job.stores[0].push("k5", grad(1))
    for name in names:
        job.stores[0].push(name, grad(1))
    assert waiting(job) == 2
    [handle, *_] = [job.stores[0].push(name, grad(2)) for name in names[-2:]]
    handle.wait()
    assert job.stores[0].pull(names)[0].tolist() == [1, 1, 1]


OTHERS: dict[str, Callable[[KV, Any], Any]] = {
    "its handle": lambda kv, handle: handle.wait(),
    "another handle": lambda kv, handle: kv.push("big", np.zeros(10_000, FLOATS)).wait(),
    "a pull": lambda kv, handle: kv.pull("k19"),
    "a pull of a list": lambda kv, handle: kv.pull(NAMES[:10]),
    "a push of a list": lambda kv, handle: kv.push(NAMES, [grad(1)] * 20),
    "an optimizer": lambda kv, handle: kv.set_optimizer(kvstore.optimizer.create("test")),
    "saving": lambda kv, handle: kv._flush(),
}


@pytest.mark.parametrize("other", OTHERS)
def test_any_other_call_and_any_wait_sends_them(other: str) -> None:
    job = cluster(1)
    [kv] = job.stores
    kv.init("big", np.zeros(10_000, FLOATS))
    kv.push("k0", grad(1))
    handle = kv.push("k1", grad(5))
    OTHERS[other](kv, handle)
    job.planned.clear()
    while job.step():
        pass
    assert handle.done()
    assert kv.pull("k1")[0] == (1 if other == "a push of a list" else 5)


def test_the_end_of_a_store_sends_them() -> None:
    job = cluster(1)
    [kv] = job.stores
    handles = [kv.push(name, grad(1)) for name in NAMES]
    kv.close()
    assert all(handle.done() for handle in handles)


def test_a_worker_that_goes_off_to_compute_does_not_hold_them_up() -> None:
    def work(kv: KV) -> Any:
        kv.init(NAMES, [grad(0)] * 20)
        kv.barrier()
        if kv.rank == 0:
            for name in NAMES:
                kv.push(name, grad(1))
            return None  # the other's barrier below comes only after its pulls
        for name in NAMES:
            kv.push(name, grad(2))
        return [kv.pull(name)[0] for name in NAMES]

    assert kvstore.LocalCluster(workers=2, timeout=20).run(work)[1] == [3] * 20


# -- each ends by itself ----------------------------------------------------------------------------------------------


def test_no_call_waits_for_another_ones_key() -> None:
    job = cluster()
    fast, slow = job.stores
    pushed = [fast.push(name, grad(1)) for name in NAMES]
    outs = [grad(0) for _ in NAMES]
    pulled = [fast.pull(name, out=out, wait=False) for name, out in zip(NAMES, outs, strict=True)]
    for place in (7, 3):
        slow.push(NAMES[place], grad(2))
        pushed[place].wait()
        pulled[place].wait()
        assert outs[place].tolist() == [3, 3, 3]
    assert [place for place, handle in enumerate(pushed) if handle.done()] == [3, 7]
    for place in (7, 3):
        fast.push(NAMES[place], grad(4))  # what came for the others later must not be written here
        outs[place][:] = 99
    for place, name in enumerate(NAMES):
        if place not in (3, 7):
            slow.push(name, grad(2))
    for handle in [*pushed, *pulled]:
        handle.wait()
    assert [out[0] for out in outs] == [99 if place in (3, 7) else 3 for place in range(20)]


def test_three_pushes_of_a_key_may_be_ahead_and_their_bursts_do_not_count() -> None:
    job = cluster()
    fast, slow = job.stores
    fast.push("k19", grad(1))
    for others in (NAMES[1:9], NAMES[9:17], NAMES[1:9]):
        for name in ("k0", *others):
            fast.push(name, grad(1))
    for _ in range(3):
        slow.push("k0", grad(1))
    fast.push("k0", grad(1))  # its rounds are complete; nobody will push the others
    fast.push("k0", grad(1))


def test_an_error_is_that_of_its_call() -> None:
    job = cluster(1)
    [kv] = job.stores
    kv.set_updater(careful)
    handles = [kv.push(name, grad(2000 if name == "k9" else 1)) for name in NAMES]
    failed = [name for name, handle in zip(NAMES, handles, strict=True) if handle.exception() is not None]
    assert failed == ["k9"]
    assert isinstance(handles[9].exception(), RemoteError)
    assert [value[0] for value in kv.pull(NAMES)] == [0 if name == "k9" else 1 for name in NAMES]


def test_an_error_that_nobody_waits_for_is_raised_by_a_later_call() -> None:
    job = cluster(1, np.int32)
    [kv] = job.stores
    kv.set_optimizer(kvstore.optimizer.create("sgd"))
    for name in NAMES:
        kv.push(name, np.ones(3, np.int32))
    while job.step():
        pass
    with pytest.raises(DTypeError):
        kv.pull("k0")


def test_pushes_and_pulls_of_a_key_keep_their_order() -> None:
    job = cluster(1)
    [kv] = job.stores
    outs = [[grad(0) for _ in NAMES] for _ in range(4)]
    handles = []
    for step, row in enumerate(outs):
        for name, out in zip(NAMES, row, strict=True):
            kv.push(name, grad(step))
            handles.append(kv.pull(name, out=out, wait=False))
    for handle in handles:
        handle.wait()
    assert [[out[0] for out in row] for row in outs] == [[step] * 20 for step in range(4)]


def test_the_callers_array_may_change_at_once() -> None:
    job = cluster(1)
    [kv] = job.stores
    array = grad(0)
    for number, name in enumerate(NAMES):
        array[:] = number
        kv.push(name, array)
    array[:] = -1
    assert [value[0] for value in kv.pull(NAMES)] == list(range(20))


def test_the_same_over_a_network_that_loses_and_doubles() -> None:
    def work(kv: KV) -> Any:
        kv.init(NAMES, [grad(0)] * 20)
        kv.set_optimizer(kvstore.optimizer.create("adam"))
        found = []
        for step in range(4):
            for place, name in enumerate(NAMES):
                kv.push(name, grad(step + place + kv.rank))
            kv.push(NAMES, [grad(step)] * 20)
            outs = [grad(0) for _ in NAMES]
            for handle in [kv.pull(n, out=out, wait=False) for n, out in zip(NAMES, outs, strict=True)]:
                handle.wait()
            found.append(np.concatenate(outs).tobytes())
            kv.pull(NAMES, out=outs)
            found.append(np.concatenate(outs).tobytes())
        return found

    lossy = Lossy()
    assert run(work, lossy) == run(work)
    assert lossy.hits


# -- requests that no worker makes ------------------------------------------------------------------------------------

KEYS = np.arange(3, dtype=np.uint64)
VALUES = np.ones(9, FLOATS)
MALFORMED: dict[str, tuple[type[PSError], KVPairs, int, int, Any]] = {
    "arrays, not one": (ProtocolError, KVPairs(KEYS, [grad(1)] * 3), Flag.PUSH, BUNDLE, None),
    "too few values": (PSError, KVPairs(KEYS, VALUES[:8]), Flag.PUSH, BUNDLE, None),
    "another dtype": (DTypeError, KVPairs(KEYS, VALUES.astype(np.float64)), Flag.PUSH, BUNDLE, True),
    "keys that descend": (ProtocolError, KVPairs(KEYS[::-1].copy(), VALUES), Flag.PUSH, BUNDLE, None),
    "a key twice": (ProtocolError, KVPairs(KEYS[[0, 0, 1]], VALUES), Flag.PUSH, BUNDLE, None),
    "an unknown key": (UnknownKeyError, KVPairs(KEYS + np.uint64(18), VALUES), Flag.PUSH, BUNDLE, True),
    "a pull of an unknown key": (UnknownKeyError, KVPairs(KEYS + np.uint64(99), []), Flag.PULL, BUNDLE, None),
    "the outcome of no burst": (ProtocolError, KVPairs(KEYS[:1], []), 0, OUTCOME, [5, 0]),
    "the outcome of nothing": (ProtocolError, KVPairs(KEYS[:1], []), 0, OUTCOME, ["a"]),
    "the outcome without a burst": (ProtocolError, KVPairs(KEYS[:1], []), Flag.PULL, OUTCOME, None),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_request_is_an_error_at_its_sender(what: str) -> None:
    error, pairs, flags, cmd, meta = MALFORMED[what]
    job = cluster(1)
    [kv] = job.stores
    with pytest.raises(error):
        kv._worker.customer.wait_for(kv._worker.send(pairs, flags, cmd, meta=meta))
    kv.push(NAMES, [grad(1)] * 20)
    assert [value[0] for value in kv.pull(NAMES)] == [1] * 20
    assert job.services[0].store.parked == 0

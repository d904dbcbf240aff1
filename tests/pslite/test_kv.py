"""KVWorker and KVServer on the in-process van."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from pslite import InprocCluster, KVMeta, KVPairs, KVServer, KVServerDefaultHandle, KVWorker, run_all, server_id
from pslite.errors import (
    ClosedError,
    ConfigError,
    DTypeError,
    ProtocolError,
    PSError,
    RemoteError,
    RequestTimeout,
    ShapeError,
    UnknownKeyError,
)
from tests.harness import wait_until

HIGH = 2**63  # the first key of server 1 of 2
KEYS = np.array([1, 5, HIGH + 1, HIGH + 7, 2**64 - 1], np.uint64)


@pytest.fixture
def cluster() -> Iterator[InprocCluster]:
    with InprocCluster(workers=2, servers=2) as cluster:
        yield cluster


@pytest.fixture
def servers(cluster: InprocCluster) -> list[KVServer]:
    return serve(cluster, KVServerDefaultHandle)


@pytest.fixture
def kv(cluster: InprocCluster) -> KVWorker:
    return KVWorker(0, 0, cluster.workers[0])


def serve(cluster: InprocCluster, make: Any) -> list[KVServer]:
    """A KVServer on each server, each with a handle of its own."""
    served = [KVServer(0, office) for office in cluster.servers]
    for server in served:
        server.set_handle(make())
    return served


def pulled(kv: KVWorker, keys: Any = KEYS) -> list[float]:
    pairs = kv.wait(kv.pull(keys))
    assert np.array_equal(pairs.keys, keys)
    return list(pairs.vals)


# Push, pull, pushpull


@pytest.mark.usefixtures("servers")
def test_pushes_add_up_and_a_pull_returns_the_sum(cluster: InprocCluster, kv: KVWorker) -> None:
    other = KVWorker(0, 0, cluster.workers[1])
    for worker, factor in ((kv, 1), (other, 10)):
        worker.wait(worker.push(KEYS, np.arange(5, dtype=np.float32) * factor))
    assert pulled(kv) == pulled(other) == [0, 11, 22, 33, 44]


@pytest.mark.usefixtures("servers")
def test_requests_of_one_worker_are_done_in_the_order_of_the_calls(kv: KVWorker) -> None:
    pulls = []
    for i in range(1, 21):
        kv.push(KEYS, np.ones(5, np.float32))
        pulls.append((i, kv.pull(KEYS)))
    for i, timestamp in reversed(pulls):
        assert list(kv.wait(timestamp).vals) == [i] * 5


@pytest.mark.usefixtures("servers")
def test_pushpull_returns_the_values_after_the_push(kv: KVWorker) -> None:
    kv.wait(kv.push(KEYS, np.ones(5, np.float32)))
    out = np.empty(5, np.float32)
    assert kv.wait(kv.pushpull(KEYS, np.arange(5, dtype=np.float32), out)) is None
    assert out.tolist() == [1, 2, 3, 4, 5]
    assert kv.wait(kv.pushpull(KEYS, np.ones(5, np.float32))).vals.tolist() == [2, 3, 4, 5, 6]


@pytest.mark.usefixtures("servers")
def test_several_values_for_each_key(kv: KVWorker) -> None:
    vals = np.arange(15, dtype=np.float32)
    kv.wait(kv.push(KEYS, vals))
    assert kv.wait(kv.pull(KEYS)).vals.tolist() == vals.tolist()
    assert pulled(kv, KEYS[2:4]) == vals[6:12].tolist()


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("lens", [[1, 2, 1, 3, 2], [2, 2, 3, 3, 3], [0, 1, 2, 2, 2], [1, 1, 1, 2, 1]], ids=str)
def test_values_of_different_lengths(kv: KVWorker, lens: list[int]) -> None:
    vals = np.arange(sum(lens), dtype=np.float32)
    for _ in range(2):
        kv.wait(kv.push(KEYS, vals, lens=lens))
    pairs = kv.wait(kv.pull(KEYS))
    assert pairs.vals.tolist() == (2 * vals).tolist()
    assert pairs.lens.tolist() == lens, "also when each server had keys of one length only"
    out, out_lens = np.empty(sum(lens), np.float32), np.empty(5, np.int64)
    kv.wait(kv.pull(KEYS, out, out_lens))
    assert out.tolist() == (2 * vals).tolist()
    assert out_lens.tolist() == lens


@pytest.mark.usefixtures("servers")
def test_lens_are_filled_also_when_all_are_equal(kv: KVWorker) -> None:
    kv.wait(kv.push(KEYS, np.zeros(10, np.float32)))
    out, lens = np.empty(10, np.float32), np.full(5, -1)
    kv.wait(kv.pull(KEYS, out, lens))
    assert lens.tolist() == [2] * 5


@pytest.mark.usefixtures("servers")
def test_pull_into_a_given_array(kv: KVWorker) -> None:
    kv.wait(kv.push(KEYS, np.ones(5, np.float32)))
    out = np.zeros(5, np.float64)
    assert kv.wait(kv.pull(KEYS, out)) is None
    assert out.tolist() == [1] * 5


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("size", [0, 4, 6])
def test_an_array_of_another_size_is_refused(kv: KVWorker, size: int) -> None:
    kv.wait(kv.push(KEYS, np.ones(5, np.float32)))
    with pytest.raises(ConfigError, match=r"\(5,\) came from the servers"):
        kv.wait(kv.pull(KEYS, np.empty(size, np.float32)))
    assert pulled(kv) == [1] * 5


@pytest.mark.usefixtures("servers")
def test_what_is_pushed_is_copied(kv: KVWorker) -> None:
    vals = np.ones(100_000, np.float32)
    keys = np.arange(100_000, dtype=np.uint64)
    timestamp = kv.push(keys, vals)
    vals[:] = 7
    kv.wait(timestamp)
    assert kv.wait(kv.pull(keys)).vals.max() == 1


@pytest.mark.usefixtures("servers")
def test_what_was_pulled_belongs_to_the_caller(kv: KVWorker) -> None:
    """A push that comes later does not show through it."""
    kv.wait(kv.push(KEYS, np.ones(5, np.float32)))
    before = kv.wait(kv.pull(KEYS)).vals
    kv.wait(kv.push(KEYS, np.ones(5, np.float32)))
    assert before.tolist() == [1] * 5


@pytest.mark.usefixtures("servers")
def test_nothing_may_be_pushed_and_pulled(kv: KVWorker) -> None:
    none = np.empty(0, np.uint64)
    ran: list[str] = []
    kv.wait(kv.push(none, np.empty(0, np.float32), callback=lambda: ran.append("push")))
    pairs = kv.wait(kv.pull(none, callback=lambda: ran.append("pull")))
    assert (len(pairs.keys), len(pairs.vals)) == (0, 0)
    assert ran == ["push", "pull"]


# Bad input


@pytest.mark.parametrize(
    "keys",
    [[2, 1], [1, 1], [[1, 2]], 5, [-1, 2], [1.5, 2.5], ["a", "b"], [True, False]],
    ids=str,
)
def test_keys_that_are_not_ascending_integers_are_refused(kv: KVWorker, keys: Any) -> None:
    with pytest.raises(ConfigError, match=r"ascending|give integers"):
        kv.push(keys, np.ones(2, np.float32))
    with pytest.raises(ConfigError, match=r"ascending|give integers"):
        kv.pull(keys)


@pytest.mark.parametrize(
    ("vals", "lens", "said"),
    [
        (np.ones((2, 1)), None, "1-D"),
        (np.ones(3), None, "2 keys of equal length, or pass lens"),
        (np.ones(3), [1, 1], "sum 3"),
        (np.ones(3), [3], "one for each of 2 keys"),
        (np.ones(3), [4, -1], "one for each of 2 keys"),
    ],
)
def test_values_that_do_not_fit_the_keys_are_refused(kv: KVWorker, vals: Any, lens: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kv.push([1, 2], vals, lens=lens)


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("dtype", ["complex64", "U3", "O", ">f4"])
def test_a_dtype_that_cannot_travel_is_refused_and_nothing_else_breaks(kv: KVWorker, dtype: str) -> None:
    with pytest.raises(DTypeError):
        kv.push(KEYS, np.ones(5, dtype))
    kv.wait(kv.push(KEYS, np.ones(5, np.float32)), timeout=5)
    assert pulled(kv) == [1] * 5


@pytest.mark.parametrize("timestamp", [-1, 0, 99])
def test_a_timestamp_that_was_never_given(kv: KVWorker, timestamp: int) -> None:
    with pytest.raises(PSError, match="was not returned by this customer: it has given 0"):
        kv.wait(timestamp)


# Callbacks and waiting


@pytest.mark.usefixtures("servers")
def test_the_callback_has_run_when_wait_returns(kv: KVWorker) -> None:
    ran: list[int] = []
    for i in range(50):
        kv.wait(kv.push(KEYS, np.ones(5, np.float32), callback=lambda i=i: ran.append(i)))
        assert ran[-1] == i


@pytest.mark.usefixtures("servers")
def test_a_callback_may_start_and_wait_for_requests(kv: KVWorker) -> None:
    """In ps-lite this was a deadlock."""
    out = np.empty(5, np.float32)
    kv.wait(kv.push(KEYS, np.ones(5, np.float32), callback=lambda: kv.wait(kv.pull(KEYS, out))))
    assert out.tolist() == [1] * 5


@pytest.mark.usefixtures("servers")
def test_callbacks_of_callbacks(kv: KVWorker) -> None:
    depth: list[int] = []
    done = threading.Event()

    def again() -> None:
        depth.append(len(depth))
        if len(depth) == 20:
            done.set()
        else:
            kv.push(KEYS, np.ones(5, np.float32), callback=again)

    kv.push(KEYS, np.ones(5, np.float32), callback=again)
    assert done.wait(10)
    assert pulled(kv) == [20] * 5


@pytest.mark.usefixtures("servers")
def test_an_exception_in_a_callback_belongs_to_who_waits(kv: KVWorker) -> None:
    def broken() -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        kv.wait(kv.push(KEYS, np.ones(5, np.float32), callback=broken))
    assert pulled(kv) == [1] * 5


@pytest.mark.usefixtures("servers")
def test_a_result_is_given_once(kv: KVWorker) -> None:
    kv.wait(kv.push(KEYS, np.ones(5, np.float32)))
    timestamp = kv.pull(KEYS)
    assert kv.wait(timestamp) is not None
    assert kv.wait(timestamp) is None


def test_a_wait_in_vain_names_who_has_not_answered(cluster: InprocCluster, kv: KVWorker) -> None:
    answering = KVServer(0, cluster.servers[0])
    answering.set_handle(KVServerDefaultHandle())
    KVServer(0, cluster.servers[1]).set_handle(lambda meta, pairs, server: None)
    timestamp = kv.push(KEYS, np.ones(5, np.float32))
    with pytest.raises(RequestTimeout) as caught:
        kv.wait(timestamp, timeout=0.1)
    assert [name.split(" (")[0] for name in caught.value.missing] == ["server 1"]
    assert "PSLITE_TIMEOUT" in str(caught.value)


def test_a_server_says_what_a_parked_request_waits_for(cluster: InprocCluster, kv: KVWorker) -> None:
    parked: list[KVMeta] = []
    serve(cluster, lambda: lambda meta, pairs, server: parked.append(meta))
    for office in cluster.servers:
        office.on_parked(lambda message: [f"worker 1's push of round 3 at {message.sender}"])
    with pytest.raises(RequestTimeout) as caught:
        kv.wait(kv.push(KEYS, np.ones(5, np.float32)), timeout=0.05)
    assert caught.value.missing == ["worker 1's push of round 3 at 9"]


def test_a_wait_in_vain_can_be_repeated(cluster: InprocCluster, kv: KVWorker) -> None:
    parked: list[tuple[KVMeta, KVServer]] = []
    serve(cluster, lambda: lambda meta, pairs, server: parked.append((meta, server)))
    timestamp = kv.push(KEYS, np.ones(5, np.float32))
    with pytest.raises(RequestTimeout):
        kv.wait(timestamp, timeout=0.05)
    for meta, server in parked:
        server.response(meta)
    kv.wait(timestamp)


# The slicer


@pytest.mark.usefixtures("servers")
def test_a_slicer_decides_which_server_gets_what(cluster: InprocCluster, kv: KVWorker) -> None:
    def reversed_slicer(pairs: KVPairs, ranges: Sequence[tuple[int, int]]) -> list[KVPairs | None]:
        assert ranges == [(0, HIGH), (HIGH, 2**64)]
        return [pairs.slice(2, 5) if len(pairs.keys) == 5 else None, pairs.slice(0, 2)]

    kv.set_slicer(reversed_slicer)
    kv.wait(kv.push(KEYS, np.arange(5, dtype=np.float32)))
    assert pulled(kv) == [0, 1, 2, 3, 4], "in key order, whichever server it comes from"
    plain = KVWorker(0, 1, cluster.workers[0])
    with pytest.raises(UnknownKeyError):
        plain.wait(plain.pull(KEYS))


def test_a_slicer_must_think_of_every_server(kv: KVWorker) -> None:
    kv.set_slicer(lambda pairs, ranges: [pairs])
    with pytest.raises(ConfigError, match="one for each of 2 servers"):
        kv.push(KEYS, np.ones(5, np.float32))


# The server's side


def test_what_a_handle_sees(cluster: InprocCluster) -> None:
    seen: list[tuple[KVMeta, KVPairs]] = []

    def handle(meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        seen.append((meta, pairs))
        server.response(meta, KVPairs(pairs.keys, np.zeros(len(pairs.keys))) if meta.pull else None)

    serve(cluster, lambda: handle)
    kv = KVWorker(0, 3, cluster.workers[1])
    kv.wait(kv.push([5], np.ones(2), cmd=7, priority=-2))
    kv.wait(kv.pull([5]))
    kv.wait(kv.pushpull([5], np.ones(1)))
    assert [(m.push, m.pull, m.cmd, m.priority, m.timestamp) for m, _ in seen] == [
        (True, False, 7, -2, 0), (False, True, 0, 0, 1), (True, True, 0, 0, 2),
    ]  # fmt: skip
    assert all((m.sender, m.customer_id, m.replay) == (11, 3, False) for m, _ in seen)
    assert [list(p.keys) for _, p in seen] == [[5]] * 3
    assert not seen[0][1].vals.flags.writeable  # type: ignore[union-attr]


def test_a_response_may_come_later_from_another_thread(cluster: InprocCluster) -> None:
    """As a server does that waits for all workers' pushes."""
    parked: list[tuple[KVMeta, KVPairs, KVServer]] = []
    lock = threading.Lock()

    def handle(meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        with lock:
            parked.append((meta, pairs, server))
            if len(parked) < 2:
                return
            total = sum(np.asarray(p.vals) for _, p, _ in parked)
            ready, parked[:] = parked[:], []
        thread = threading.Thread(target=lambda: [s.response(m, KVPairs(p.keys, total)) for m, p, s in ready])
        thread.start()
        threads.append(thread)

    threads: list[threading.Thread] = []
    serve(cluster, lambda: handle)
    workers = [KVWorker(0, 0, office) for office in cluster.workers]

    def rounds(kv: KVWorker, value: float) -> list[Any]:
        return [kv.wait(kv.pushpull([3], np.full(4, i * value))).vals.tolist() for i in range(1, 6)]

    got = run_all([lambda: rounds(workers[0], 1.0), lambda: rounds(workers[1], 10.0)])
    assert got == [[[i * 11.0] * 4 for i in range(1, 6)]] * 2
    for thread in threads:
        thread.join()


def test_requests_that_come_before_the_handle_are_kept(cluster: InprocCluster, kv: KVWorker) -> None:
    timestamp = kv.push(KEYS, np.ones(5, np.float32))
    with pytest.raises(RequestTimeout):
        kv.wait(timestamp, timeout=0.02)
    serve(cluster, KVServerDefaultHandle)
    kv.wait(timestamp)
    assert pulled(kv) == [1] * 5


def test_a_handle_that_raises_costs_its_caller_only(cluster: InprocCluster, kv: KVWorker) -> None:
    default = KVServerDefaultHandle()

    def handle(meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        if meta.cmd == 1:
            raise ValueError("bad batch")
        default(meta, pairs, server)

    KVServer(0, cluster.servers[0]).set_handle(handle)
    timestamp = kv.push([1], np.ones(1, np.float32), cmd=1)
    with pytest.raises(RemoteError) as caught:
        kv.wait(timestamp)
    assert (caught.value.node, caught.value.what, caught.value.error) == (
        "server 0", "the handle", "ValueError: bad batch",
    )  # fmt: skip
    assert "in handle" in str(caught.value), "the traceback on the server"
    kv.wait(kv.push([1], np.ones(1, np.float32)))
    assert pulled(kv, np.array([1], np.uint64)) == [1]


@pytest.mark.parametrize("error", [UnknownKeyError(key="w"), UnknownKeyError(key=np.uint64(3))], ids=["str", "numpy"])
def test_an_error_response_is_raised_at_the_caller(cluster: InprocCluster, kv: KVWorker, error: PSError) -> None:
    """Even one with a field that msgpack does not know."""
    serve(cluster, lambda: lambda meta, pairs, server: server.error(meta, error))
    with pytest.raises(UnknownKeyError, match="does not exist"):
        kv.wait(kv.pull(KEYS), timeout=5)


def test_an_error_of_a_request_that_nobody_waits_for_is_kept(cluster: InprocCluster, kv: KVWorker) -> None:
    serve(cluster, KVServerDefaultHandle)
    failed = kv.pull(KEYS)
    kv.wait(kv.push(KEYS, np.ones(5, np.float32)))
    with pytest.raises(UnknownKeyError):
        kv.wait(failed)


def test_a_pull_that_gets_no_values_is_an_error(cluster: InprocCluster, kv: KVWorker) -> None:
    serve(cluster, lambda: lambda meta, pairs, server: server.response(meta))
    with pytest.raises(ProtocolError, match="no values"):
        kv.wait(kv.pull(KEYS, np.empty(5, np.float32)))


def test_a_response_whose_dtype_cannot_travel_is_the_callers_error(cluster: InprocCluster, kv: KVWorker) -> None:
    serve(cluster, lambda: lambda m, p, s: s.response(m, KVPairs(p.keys, np.ones(len(p.keys), "c8"))))
    with pytest.raises(DTypeError, match="complex64"):
        kv.wait(kv.pull(KEYS), timeout=5)


def test_a_second_response_is_ignored(cluster: InprocCluster, kv: KVWorker) -> None:
    serve(cluster, lambda: lambda meta, pairs, server: (server.response(meta), server.response(meta)))
    for _ in range(3):
        kv.wait(kv.push(KEYS, np.ones(5, np.float32)))


def test_a_worker_serves_nothing(cluster: InprocCluster) -> None:
    from pslite import SimpleApp

    KVWorker(0, 0, cluster.workers[1])
    asking = SimpleApp(0, 0, cluster.workers[0])
    with pytest.raises(ProtocolError, match="a KVWorker answers no requests"):
        asking.wait(asking.request(0, None, 11))


def test_after_the_end_a_request_is_refused(cluster: InprocCluster, kv: KVWorker) -> None:
    cluster.workers[0].close()
    with pytest.raises(ClosedError, match="create a new one"):
        kv.push(KEYS, np.ones(5, np.float32))


# Memory


@pytest.mark.usefixtures("servers")
def test_memory_does_not_grow_with_the_number_of_requests(cluster: InprocCluster, kv: KVWorker) -> None:
    vals = np.ones(1, np.float32)
    key = np.array([1], np.uint64)
    last = 0
    for i in range(20_000):
        last = kv.push(key, vals)
        if i % 100 == 99:
            kv.wait(last)
    for i in range(2000):  # never waited for: their results are given up, oldest first
        last = kv.pull(key)
        if i % 100 == 99:
            wait_until(lambda last=last: kv.customer.done(last))
    assert pulled(kv, key) == [20_000]
    assert len(kv.customer._requests) == 0
    assert len(kv.customer._results) <= 1024
    delivery = cluster.workers[0]._core.delivery
    assert sum(len(o.pending) for o in delivery._outboxes.values()) == 0
    served = cluster.servers[0]._core.delivery._inboxes.values()
    assert sum(len(i.done) + len(i.active) + len(i.held) for i in served) <= 200
    assert delivery.resent_requests == 0


# The default handle


class FakeServer:
    """Keeps the response of a handle."""

    def __init__(self) -> None:
        self.got: KVPairs | None = None

    def response(self, meta: Any, pairs: KVPairs | None = None) -> None:
        self.got = pairs


def handle_of(handle: KVServerDefaultHandle, keys: Any, vals: Any = None, lens: Any = None, pull: bool = False) -> Any:
    class Meta:
        push = vals is not None

    Meta.pull = pull  # type: ignore[attr-defined]
    server = FakeServer()
    pairs = KVPairs(np.array(keys, np.uint64), [] if vals is None else np.array(vals, np.float32))
    pairs.lens = None if lens is None else np.array(lens)
    handle(Meta, pairs, server)  # type: ignore[arg-type]
    return server.got


def test_keys_may_come_in_any_order_of_pushes() -> None:
    handle, rng, truth = KVServerDefaultHandle(), np.random.default_rng(0), {}
    for _ in range(100):
        keys = np.unique(rng.integers(0, 50, 12))
        vals = rng.integers(0, 100, len(keys))
        handle_of(handle, keys, vals)
        for key, val in zip(keys.tolist(), vals.tolist(), strict=True):
            truth[key] = truth.get(key, 0) + val
    got = handle_of(handle, sorted(truth), pull=True)
    assert got.vals.tolist() == [truth[key] for key in sorted(truth)]
    some = sorted(truth)[::3]
    assert handle_of(handle, some, pull=True).vals.tolist() == [truth[key] for key in some]


def test_lengths_may_differ_from_key_to_key() -> None:
    handle = KVServerDefaultHandle()
    handle_of(handle, [1, 2, 4], [1, 2, 3, 4, 5, 6], lens=[1, 3, 2])
    handle_of(handle, [2, 3], [10, 20, 30, 7], lens=[3, 1])
    got = handle_of(handle, [1, 2, 3, 4], pull=True)
    assert got.vals.tolist() == [1, 12, 23, 34, 7, 5, 6]
    assert got.lens.tolist() == [1, 3, 1, 2]


@pytest.mark.parametrize("known", [False, True])
def test_a_key_that_was_never_pushed_is_named(known: bool) -> None:
    handle = KVServerDefaultHandle()
    if known:
        handle_of(handle, [1, 3], [1, 1])
        handle_of(handle, [5], [1, 1])
    with pytest.raises(UnknownKeyError) as caught:
        handle_of(handle, [1, 2] if known else [2], pull=True)
    assert caught.value.key == "2"


def test_a_key_keeps_its_length_and_a_push_that_fails_changes_nothing() -> None:
    handle = KVServerDefaultHandle()
    handle_of(handle, [1, 2], [1, 1, 2, 2])
    with pytest.raises(ShapeError) as caught:
        handle_of(handle, [0, 1, 2], [9, 5, 5, 7, 7, 7], lens=[1, 2, 3])
    assert (caught.value.key, caught.value.got, caught.value.expected) == ("2", [3], [2])
    assert handle_of(handle, [1, 2], pull=True).vals.tolist() == [1, 1, 2, 2]
    with pytest.raises(UnknownKeyError):
        handle_of(handle, [0], pull=True)


def test_a_duplicate_of_a_pushpull_is_answered_and_not_added() -> None:
    handle = KVServerDefaultHandle()
    handle_of(handle, [1], [5])

    class Replay:
        push, pull = False, True

    server = FakeServer()
    handle(Replay, KVPairs(np.array([1], np.uint64), np.array([5.0])), server)  # type: ignore[arg-type]
    assert server.got is not None
    assert server.got.vals.tolist() == [5]  # type: ignore[union-attr]


def test_the_handle_keeps_another_dtype_if_asked(cluster: InprocCluster, kv: KVWorker) -> None:
    serve(cluster, lambda: KVServerDefaultHandle(np.float64))
    tiny = np.array([1 + 2.0**-40] * 5)
    kv.wait(kv.push(KEYS, tiny))
    assert pulled(kv) == tiny.tolist()
    assert server_id(1) == cluster.servers[1].node

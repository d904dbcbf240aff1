"""A pull is one version of a value, never a mixture of two, whatever writers do while it is read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.requests import Filling
from pslite import customer, run_all
from pslite.wire import Flag

from .shared_jobs import LARGE, SPLIT, WHOLE, Job, full, on_shared_memory, same

pytestmark = on_shared_memory

HALF = LARGE[0] // 2


def halves(array: Any, servers: int) -> list[float]:
    """The number that each server's piece is full of."""
    return [same(piece) for piece in np.split(array, servers)]


# -- writers as fast as they can --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["assign", "sgd"])
@pytest.mark.parametrize(("servers", "bound"), [(1, WHOLE), (2, SPLIT)])
def test_a_reader_beside_two_writers(tmp_path: Path, rule: str, servers: int, bound: int) -> None:
    """Every pull is of one version, and versions do not go back."""
    over = threading.Event()

    def write(kv: Any) -> None:
        kv.init("w", full(0))
        if rule == "sgd":
            kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=1.0))
        grads = [kv.empty(LARGE) for _ in range(3)]
        number = 0
        while not over.is_set():
            number += 1
            grad = grads[number % 3]
            grad[...] = -1 if rule == "sgd" else number
            kv.push("w", grad)
            if number % 3 == 2:
                kv.pull("w", out=np.empty(LARGE, np.float32))  # for the arrays' sake, which are lent

    def read(kv: Any) -> None:
        kv.init("w", full(0))
        if rule == "sgd":
            kv.set_optimizer(kvstore.optimizer.create("sgd", learning_rate=1.0))
        out, before = kv.empty(LARGE), [0.0] * servers
        try:
            for number in range(200):
                pulled = kv.pull("w", out=out, wait=True) or out
                if number % 3 == 0:
                    pulled = kv.pull("w")
                found = halves(pulled, servers)
                if rule == "sgd":
                    assert all(now >= then for now, then in zip(found, before, strict=True))
                    before = found
        finally:
            over.set()

    with Job(tmp_path, workers=3, servers=servers, bigarray_bound=bound) as job:
        job.run(write, write, read)


# -- a reader that is stopped in the midst of it ----------------------------------------------------------------------


class Stopped:
    """The first time that a value is taken in, half of it is read, then ``meanwhile`` runs, then the other half is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None], times: int = 1) -> None:
        self.taken = 0  # pieces of answers
        self.again: list[int] = []  # flags of what was asked again
        put = Filling._put

        def stopping(filling: Filling, record: Any, piece: Any, value: Any) -> None:
            self.taken += 1
            if self.taken <= times:
                read = value.copy()
                meanwhile()
                read[len(read) // 2 :] = value[len(read) // 2 :]
                value = read
            put(filling, record, piece, value)

        monkeypatch.setattr(Filling, "_put", stopping)
        monkeypatch.setattr("pslite.kv_worker.Torn", _noting(self.again))


def _noting(flags: list[int]) -> type[Exception]:
    class Noting(customer.Torn):
        def __init__(self, again: Any) -> None:
            flags.append(again.flags)
            super().__init__(again)

    return Noting


CALLS: dict[str, Callable[[Any], Any]] = {
    "pull into an array": lambda kv: _into(lambda out: kv.pull("w", out=out)),
    "pull into an array of the arena": lambda kv: _into(lambda out: kv.pull("w", out=out), kv.empty(LARGE)),
    "pull into another dtype": lambda kv: _into(lambda out: kv.pull("w", out=out), full(9, "float64")),
    "pull into two": lambda kv: _into(lambda out: kv.pull("w", out=[np.zeros_like(out), out])),
    "pull into what is not contiguous": lambda kv: _into(lambda out: kv.pull("w", out=out), full(9).T.copy().T),
    "pull of a new array": lambda kv: kv.pull("w"),
    "pull of a list": lambda kv: kv.pull(["w"])[0],
    "pull later": lambda kv: kv.pull("w", wait=False).wait(),
    "pushpull": lambda kv: _into(lambda out: kv.pushpull("w", full(1), out=out)),
    "pushpull in place": lambda kv: _into(lambda out: kv.pushpull("w", out), full(1)),
    "pushpull in place, lent": lambda kv: _into(lambda out: kv.pushpull("w", out), _one(kv)),
}


def _into(call: Callable[[Any], Any], out: Any = None) -> Any:
    out = full(9) if out is None else out
    call(out)
    return out


def _one(kv: Any) -> Any:
    array = kv.empty(LARGE)
    array[...] = 1
    return array


@pytest.mark.parametrize(("servers", "bound"), [(1, WHOLE), (2, SPLIT)])
@pytest.mark.parametrize("call", CALLS)
def test_a_reader_stopped_in_the_midst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, servers: int, bound: int
) -> None:
    """Both arrays of the value are written to meanwhile: it asks again, and gets one version, by value."""
    with Job(tmp_path, servers=servers, bigarray_bound=bound) as job:
        job.run(lambda kv: kv.init("w", full(7)))
        reader, writer = job.stores

        def write() -> None:
            for number in (100, 101):
                writer.push("w", full(number)).wait()

        stopped = Stopped(monkeypatch, write)
        pulled = CALLS[call](reader)
        assert 1 <= len(stopped.again) <= servers, "the other server's answer may have been there, too"
        assert all(flags & Flag.BY_VALUE for flags in stopped.again)
        assert 101 in halves(pulled, servers)
        assert stopped.taken == servers + len(stopped.again)
        monkeypatch.undo()
        assert halves(reader.pull("w"), servers) == [101.0] * servers, "what asked again has pushed nothing again"


def test_a_reader_that_was_passed_by_one_version_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next version is written to the other array: what it reads is what it was told of."""
    with Job(tmp_path) as job:
        job.run(lambda kv: kv.init("w", full(7)))
        reader, writer = job.stores
        stopped = Stopped(monkeypatch, lambda: writer.push("w", full(100)).wait())
        assert same(reader.pull("w")) == 7
        assert stopped.again == []


def test_a_reader_passed_by_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks again once: what is sent by value is nobody's but its own."""
    with Job(tmp_path) as job:
        job.run(lambda kv: kv.init("w", full(7)))
        reader, writer = job.stores

        def write() -> None:
            for number in (100, 101):
                writer.push("w", full(number)).wait()

        stopped = Stopped(monkeypatch, write, times=9)
        assert same(reader.pull("w")) == 101
        assert len(stopped.again) == 1


def test_what_asks_again_does_not_wait_for_later_pushes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In dist_sync they may be in a round that ends only when this pull has."""
    with Job(tmp_path, "dist_sync") as job:
        job.run(lambda kv: kv.init("w", full(7)))
        one, other = job.stores
        ahead: list[Any] = []

        def write() -> None:
            for number in (1, 2):
                handle = one.push("w", full(number))
                other.push("w", full(number)).wait()
                handle.wait()
            ahead.append(one.push("w", full(3)))

        stopped = Stopped(monkeypatch, write)
        assert same(one.pull("w")) == 4
        assert len(stopped.again) == 1
        assert not ahead[0].done()
        other.push("w", full(3)).wait()
        assert same(one.pull("w")) == 6


def test_many_keys_of_which_one_is_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"k{i}" for i in range(20)]
    with Job(tmp_path, servers=2) as job:
        job.run(lambda kv: kv.init(keys, [full(i) for i in range(20)]))
        reader, writer = job.stores

        def write() -> None:
            for number in (100, 101):
                writer.push("k0", full(number)).wait()

        stopped = Stopped(monkeypatch, write)
        found = [same(array) for array in reader.pull(keys)]
        assert found == [101 if key == "k0" and stopped.again else i for i, key in enumerate(keys)]


def test_readers_in_threads_of_one_store(tmp_path: Path) -> None:
    with Job(tmp_path) as job:
        job.run(lambda kv: kv.init("w", full(0)))
        reader, writer = job.stores
        over = threading.Event()

        def read() -> None:
            try:
                for _ in range(60):
                    same(reader.pull("w"))
            finally:
                over.set()

        def write() -> None:
            number = 0
            while not over.is_set():
                number += 1
                writer.push("w", full(number))

        run_all([write, read, read, read])

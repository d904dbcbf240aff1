"""The oracle sees every push that is lost or applied twice, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvstore
from kvstore import rules
from kvstore.chaos import lanes
from kvstore.chaos.lanes import Verdict, contribution, judge, torn, width
from kvstore.chaos.worker import Job, Worker, add

WORKERS = 3


def value(pushed: list[list[int]], size: int) -> lanes.Array:
    """The sum of the pushes with these numbers, by rank."""
    total = np.zeros(size)
    for rank, numbers in enumerate(pushed):
        for number in numbers:
            total += contribution(WORKERS, rank, number, size)
    return total


TOTALS = st.lists(st.integers(0, 300), min_size=WORKERS, max_size=WORKERS)


@given(totals=TOTALS, times=st.integers(1, 4), data=st.data())
def test_the_first_pushes_of_each_worker_are_right(totals: list[int], times: int, data: st.DataObject) -> None:
    held = value([list(range(1, total + 1)) for total in totals], width(WORKERS) * times)
    assert not torn(held, WORKERS)
    for rank, total in enumerate(totals):
        acked, attempted = data.draw(st.integers(0, total)), total + data.draw(st.integers(0, 2))
        assert judge(held, WORKERS, rank, acked, attempted) == Verdict()


@given(total=st.integers(1, 400), data=st.data())
def test_a_push_that_is_lost_or_doubled_is_named(total: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, total))
    numbers = list(range(1, total + 1))
    lost = judge(value([[], [n for n in numbers if n != number]], 9), WORKERS, 1, total, total)
    doubled = judge(value([[], [*numbers, number]], 9), WORKERS, 1, total, total)
    assert (lost.lost, lost.doubled, doubled.lost, doubled.doubled) == (1, 0, 0, 1)
    if number != total:  # else it is as if it never was pushed
        assert lost.text.endswith(f"push {number} was lost")
    assert doubled.text.endswith(f"push {number} was applied twice")


@given(total=st.integers(2, 50), data=st.data())
def test_one_lost_and_another_doubled_do_not_cancel(total: int, data: st.DataObject) -> None:
    lost, doubled = data.draw(st.permutations(range(1, total + 1)))[:2]
    numbers = [n for n in range(1, total + 1) if n != lost] + [doubled]
    verdict = judge(value([numbers], 9), WORKERS, 0, total, total)
    assert verdict.text and (verdict.lost or verdict.doubled)


def test_an_acknowledged_push_that_is_missing_at_the_end_is_lost() -> None:
    assert judge(value([[1, 2]], 9), WORKERS, 0, 4, 4).lost == 2
    assert judge(value([[1, 2, 3, 4, 5]], 9), WORKERS, 0, 3, 4).doubled == 1


def test_a_mixture_of_two_versions_is_torn() -> None:
    held = value([[1, 2]], 18)
    held[9:] += contribution(WORKERS, 1, 1, 9)
    assert torn(held, WORKERS)


def harmless(key: Any, received: lanes.Array, stored: lanes.Array) -> None:
    add(key, received, stored)


def doubles(key: Any, received: lanes.Array, stored: lanes.Array) -> None:
    stored += received * (2 if received[WORKERS] == 3 else 1)


def loses(key: Any, received: lanes.Array, stored: lanes.Array) -> None:
    stored += received * (received[WORKERS] != 3)


@pytest.mark.parametrize(
    ("mutant", "words"),
    [(harmless, ""), (doubles, "push 3 was applied twice"), (loses, "push 3 was lost")],
)
@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
def test_a_store_with_a_bug_is_found_out(
    type: str, mutant: Callable[..., None], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(rules._UPDATERS, "kvstore.chaos.add", mutant)
    job = Job(type, WORKERS, (width(WORKERS), width(WORKERS) * 3000))
    ledger = job.write(tmp_path)

    def work(kv: kvstore.KVStore) -> None:
        worker = Worker(kv, job, tmp_path)
        stop_after(worker, kv, ledger)
        worker.run()

    kvstore.LocalCluster(workers=WORKERS, servers=2, type=type).run(work)
    violations = "".join(path.read_text() for path in tmp_path.glob("violations-*"))
    assert len(list(tmp_path.glob("final-*.npz"))) == WORKERS
    assert (words in violations) if words else not violations, violations


def stop_after(worker: Worker, kv: kvstore.KVStore, ledger: Any, steps: int = 8) -> None:
    """Have the job stop when this worker begins a step."""
    push = worker._push

    def counted(step: int) -> None:
        ledger.stop = ledger.stop or step >= steps
        push(step)

    worker._push = counted  # type: ignore[method-assign]

"""A server tells its backup each change: at any point the backup can go on with what was acknowledged, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.arrays import Array
from kvstore.server.replica import Replica
from kvstore.server.replicating import Replicated
from kvstore.server.store import Store
from pslite import failpoints
from pslite.errors import KeeperError
from pslite.failpoints import failpoint
from pslite.memory import PLAIN

from .dying import DENSE, RULES, SHAPES, SPARSE, STEPS, WORKERS, Server, forget_keys, killing_at, run, sgd


class Backup:
    """What another process has of the server; each that takes its place has a backup of its own."""

    def __init__(self) -> None:
        self.replica: Replica | None = None
        self.told: list[list[Array]] = []
        self._starts = False

    def start(self, store: Store) -> None:
        if self.replica is not None:
            store.go_on(self.replica.open(PLAIN))
        self.replica, self._starts = Replica(), True
        store.tell(Replicated(PLAIN, self._take))
        self._starts = False

    def _take(self, number: int, change: list[Array]) -> None:
        if not self._starts:  # it has all of it, or there is no other server at all
            failpoint("before_replicate")
        assert self.replica is not None
        self.told.append(change)
        self.replica.take(change)
        if not self._starts:
            failpoint("after_replicate")


@settings(max_examples=60)
@given(
    steps=STEPS,
    times=st.sets(st.integers(1, 150), max_size=12),
    rule=st.sampled_from(sorted(RULES)),
    sync=st.booleans(),
)
def test_every_push_is_in_exactly_once(steps: Any, times: set[int], rule: str, sync: bool) -> None:
    expected = run(Server(None, sync, RULES[rule]()), steps)
    try:
        failpoints.arm(killing_at(times))
        found = run(server := Server(Backup(), sync, RULES[rule]()), steps)
    finally:
        failpoints.arm(None)
    assert found == expected
    assert all(not asked for asked in server.unanswered)


@pytest.mark.parametrize("rule", RULES)
def test_death_at_each_point(rule: str) -> None:
    steps = [(0, DENSE), (1, SPARSE), (0, "small"), (0, "small"), (1, "one small"), (0, SPARSE)]
    expected = run(Server(None, True, RULES[rule]()), steps)
    time, died = 0, True
    while died:
        time += 1
        failpoints.arm(killing_at({time}))
        server = Server(Backup(), True, RULES[rule]())
        assert run(server, steps) == expected
        died = server.deaths > 0
    assert time > 20


def test_of_a_table_only_the_rows_that_were_written_are_told() -> None:
    server = Server(backup := Backup(), True, RULES["momentum"]())
    run(server, [(0, SPARSE)])
    backup.told.clear()
    run(server, [(0, SPARSE)])
    [[_, *arrays]] = backup.told
    assert len(arrays) == 4  # ids and rows of the value and its slot
    assert max(len(array) for array in arrays) < SHAPES[SPARSE][0] / 2


def test_rules_that_are_not_in_force_any_more_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.server.replicating._MANY_RULES", 10)
    server = Server(backup := Backup(), True, sgd())
    for number in range(1, 60):
        for rank in range(WORKERS):
            server.change(rank, number, sgd(rate=1 / number)[1])
        run(server, [(0, DENSE)])
    assert backup.replica is not None
    assert len(backup.replica._journal.rules.wires) < 40
    expected = server.values()
    server.restart()
    assert server.values() == expected


def test_a_replica_that_is_damaged_is_no_store() -> None:
    server = Server(backup := Backup(), True, sgd())
    run(server, [(0, DENSE)])
    assert backup.replica is not None
    backup.replica._arrays[DENSE, 0] = np.zeros(3)
    with pytest.raises(KeeperError, match="an array is float64"):
        backup.replica.open(PLAIN)


def test_keys_that_were_forgotten_do_not_come_again() -> None:
    forget_keys(Server(Backup(), True, RULES["momentum"]()))

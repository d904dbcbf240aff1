"""A server dies at any point; its successor has each value as it was before a push or after it, never in between."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.rules import ASSIGN
from kvstore.server.store import Store
from pslite import failpoints
from pslite.errors import ConfigError, KeeperError
from pslite.van.shared import journal
from pslite.van.shared.kept import KeptArena

from .dying import DENSE, RULES, SPARSE, STEPS, WORKERS, Server, forget_keys, killing_at, run, sgd


class Keeper:
    """What the launcher's agent does for one server."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self._given: list[KeptArena] = []

    def keep(self, name: str, fd: int) -> None:
        self.drop(name)
        self.fds[name] = os.dup(fd)

    def drop(self, name: str) -> None:
        if name in self.fds:
            os.close(self.fds.pop(name))

    def open(self) -> KeptArena:
        """As the next process does; the one before is dead."""
        for arena in self._given:
            arena.close()
        self._given = [KeptArena(lambda: 0.0, self, {name: os.dup(fd) for name, fd in self.fds.items()})]
        return self._given[0]

    def start(self, store: Store) -> None:
        store.keep(self.open())

    def close(self) -> None:
        """The job is over."""
        for arena in self._given:
            arena.close()
        for name in list(self.fds):
            self.drop(name)


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    failpoints.arm(None)
    keeper.close()


@settings(max_examples=60)
@given(
    steps=STEPS,
    times=st.sets(st.integers(1, 150), max_size=12),
    rule=st.sampled_from(sorted(RULES)),
    sync=st.booleans(),
)
def test_every_push_is_in_exactly_once(steps: Any, times: set[int], rule: str, sync: bool) -> None:
    expected = run(Server(None, sync, RULES[rule]()), steps)
    keeper = Keeper()
    try:
        failpoints.arm(killing_at(times))
        found = run(server := Server(keeper, sync, RULES[rule]()), steps)
    finally:
        failpoints.arm(None)
        keeper.close()
    assert found == expected
    assert all(not asked for asked in server.unanswered)


@pytest.mark.parametrize("rule", RULES)
def test_death_at_each_point(keeper: Keeper, rule: str) -> None:
    steps = [(0, DENSE), (1, SPARSE), (0, "small"), (0, "small"), (1, "one small"), (0, SPARSE)]
    expected = run(Server(None, True, RULES[rule]()), steps)
    time, died = 0, True
    while died:
        time += 1
        failpoints.arm(killing_at({time}))
        server = Server(keeper, True, RULES[rule]())
        assert run(server, steps) == expected
        died = server.deaths > 0
        keeper.close()
    assert time > 20


def restarted(keeper: Keeper) -> Store:
    store = Store(WORKERS)
    store.keep(keeper.open())
    return store


def test_a_push_that_waits_keeps_the_rule_of_its_time(keeper: Keeper) -> None:
    found = []
    for dies in (False, True):
        server = Server(keeper, True, sgd(rate=0.5))
        server.push(0, DENSE)
        for rank in range(WORKERS):
            server.change(rank, 1, sgd(rate=0.125)[1])
        server.push(0, DENSE)
        if dies:
            server.restart()
        server.push(1, DENSE)
        server.push(1, DENSE)
        found.append(server.values())
        keeper.close()
    assert found[0] == found[1]


def test_a_full_journal_is_written_anew(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(0, DENSE), (1, SPARSE), (0, "small"), (1, "one small")] * 20
    expected = run(Server(None, True, sgd()), steps)
    monkeypatch.setattr(journal, "SMALLEST", 4096)
    server = Server(keeper, True, sgd())
    for each in range(0, len(steps), 4):
        run(server, steps[each : each + 4])
        server.restart()
    assert server.values() == expected
    assert restarted(keeper).unit(DENSE, True).version == 20


def test_what_peers_get_cannot_be_written_to(keeper: Keeper) -> None:
    arena = keeper.open()
    place = arena.locate(arena.empty((1000,), np.float32))
    assert place is not None
    with pytest.raises(PermissionError):
        mmap.mmap(arena.fd(place.segment), arena.size(place.segment), mmap.MAP_SHARED, mmap.PROT_WRITE)


def test_who_still_reads_what_a_dead_process_had_finds_out(keeper: Keeper) -> None:
    server = Server(keeper, True, ASSIGN)
    for rank in range(WORKERS):
        server.push(rank, DENSE)
    kept, value = server.store.kept, server.store.whole(DENSE).value
    assert kept is not None and value.spare is not None
    places = [kept.memory.place(array) for array in (value.data, value.spare)]
    generations = [os.pread(keeper.fds[f"segment-{segment}"], 8, header) for segment, header in places]
    restarted(keeper)
    again = [os.pread(keeper.fds[f"segment-{segment}"], 8, header) for segment, header in places]
    assert again[0] == generations[0], "it is the value still"
    assert generations[1] != bytes(8) == again[1], "what the journal does not name is free, and has no generation"


@pytest.mark.parametrize("harm", ["magic", "record", "end", "segment"])
def test_memory_that_is_not_what_it_was_is_refused(keeper: Keeper, harm: str) -> None:
    Server(keeper, True, ASSIGN)
    if harm == "segment":
        for name in [name for name in keeper.fds if name != "journal"]:
            keeper.drop(name)
    else:
        at, data = {"magic": (0, b"x"), "record": (32, b"x"), "end": (8, b"\xff" * 8)}[harm]
        os.pwrite(keeper.fds["journal"], data, at)
    with pytest.raises(KeeperError, match="going on from the predecessor's"):
        restarted(keeper)


def test_failpoints_that_are_none_are_refused() -> None:
    died = []
    points = failpoints.parse("after_ack=kill@2,before_apply=kill", "server", 0, 0, lambda: died.append(1))
    for name in ("after_ack", "before_apply", "after_ack"):
        points[name]()
    assert len(died) == 2
    for text in ("nowhere=kill", "after_ack=stop", "after_ack=kill@0"):
        with pytest.raises(ConfigError, match="PS_FAILPOINTS"):
            failpoints.parse(text, "server", 0, 0, lambda: None)


def test_failpoints_of_one_process_and_of_its_successors() -> None:
    text = "server1:before_apply=kill,after_recv=kill;server:after_ack=kill,worker:before_send=kill@3"

    def names(role: str, rank: int | None, life: int) -> set[str]:
        return set(failpoints.parse(text, role, rank, life, lambda: None))

    assert names("server", 1, 0) == {"before_apply", "after_recv"}
    assert names("server", 0, 0) == names("scheduler", None, 0) == {"after_recv"}
    assert names("server", 0, 1) == {"after_ack"} and names("worker", 2, 1) == {"before_send"}
    assert names("scheduler", None, 1) == names("server", 0, 2) == set()


def test_keys_that_were_forgotten_do_not_come_again(keeper: Keeper) -> None:
    forget_keys(Server(keeper, True, RULES["momentum"]()))

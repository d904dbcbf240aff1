"""A server dies at any point; its successor has each value as it was before a push or after it, never in between."""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvstore
from kvstore.rows import Rows
from kvstore.rules import ASSIGN, OptimizerRule
from kvstore.server.store import New, Store
from kvstore.spec import Spec
from pslite import failpoints
from pslite.dtypes import CODES
from pslite.errors import ConfigError, KeeperError
from pslite.van.shared import journal
from pslite.van.shared.kept import KeptArena

FLOAT32 = CODES["float32"]
DENSE, SPARSE, SMALL = 7, 2**63 + 5, (11, 12, 13)
SHAPES = {DENSE: (4, 3), SPARSE: (50, 2), **dict.fromkeys(SMALL, (2,))}
WORKERS = 2


class Killed(BaseException):
    """The process dies here."""


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


@kvstore.updater("kept.mix")
def mix(key: Any, received: Any, stored: Any) -> None:
    if key == SPARSE:
        stored.data[...] = received.data - stored.data
    else:
        stored[...] = received - stored


def sgd(rate: float = 0.5) -> Any:
    rule = OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=rate, momentum=0.75, lazy_update=True))
    return rule.to_wire()


RULES = {
    "assign": lambda: ASSIGN,
    "momentum": sgd,
    "sgd": lambda: OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=0.5)).to_wire(),
    "adam": lambda: OptimizerRule(kvstore.optimizer.create("adam", learning_rate=0.1)).to_wire(),
    "updater": lambda: ["updater", "kept.mix"],
}


def pushed(rank: int, number: int, key: int) -> Any:
    """What a worker pushes of a key."""
    rng = np.random.default_rng([rank, number, key % 1000])
    if key != SPARSE:
        return rng.standard_normal(SHAPES[key]).astype(np.float32)
    ids = np.sort(rng.choice(50, rng.integers(1, 9), replace=False)).astype(np.int64)
    return Rows(ids, rng.standard_normal((len(ids), 2)).astype(np.float32))


class Server:
    """A store that may die at any point, and the workers that send again what it has not answered."""

    def __init__(self, keeper: Keeper | None, sync: bool, rule: Any) -> None:
        self.keeper, self.deaths = keeper, 0
        self.unanswered: list[deque[Callable[[Any], list[Any]]]] = [deque() for _ in range(WORKERS)]
        self.numbers = [dict.fromkeys(SHAPES, 0) for _ in range(WORKERS)]
        self.serial = 0
        self.store = Store(WORKERS)
        self.restart()
        for rank in range(WORKERS):
            self.ask(rank, lambda token, rank=rank: self.agree(token, rank, "type", "sync" if sync else "async"))
            self.ask(rank, lambda token, rank=rank: self.agree(token, rank, "rule", rule))
        for key, shape in SHAPES.items():
            self.ask(0, lambda token, key=key, shape=shape: self.init(token, key, shape))

    def started(self) -> Store:
        store = Store(WORKERS)
        if self.keeper is not None:
            store.keep(self.keeper.open())
        return store

    def agree(self, token: Any, rank: int, what: str, value: Any) -> list[Any]:
        tickets = self.store.settings.agree(token, rank, what, value)
        if self.store.kept is not None:
            self.store.kept.set()
        return tickets

    def change(self, rank: int, number: int, wire: Any) -> None:
        self.store.settings.change(rank, number, wire)
        if self.store.kept is not None:
            self.store.kept.set()

    def init(self, token: Any, key: int, shape: tuple[int, ...]) -> list[Any]:
        start = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        ids = np.array([3, 20])
        content = Rows(ids, start[ids]) if key == SPARSE else start
        new = {key: New(Spec(key, shape, FLOAT32, key == SPARSE), False, content)}
        return self.store.init(token, 0, self.store.absent(new))

    def push(self, rank: int, key: int) -> None:
        self.numbers[rank][key] += 1
        number = self.numbers[rank][key]
        content = pushed(rank, number, key)
        self.ask(rank, lambda token: self.store.request(token, rank, [key], [(content, FLOAT32)], numbers=[number]))

    def push_small(self, rank: int) -> None:
        for key in SMALL:
            self.numbers[rank][key] += 1
        numbers = np.array([self.numbers[rank][key] for key in SMALL], np.uint64)
        flat = np.concatenate([pushed(rank, int(n), key) for key, n in zip(SMALL, numbers, strict=True)])
        keys = np.array(SMALL, np.uint64)
        self.ask(
            rank,
            lambda token: self.store.request_all(token, rank, keys, (flat, FLOAT32), False, numbers=numbers.copy()),
        )

    def ask(self, rank: int, request: Callable[[Any], list[Any]]) -> None:
        """Ask, and ask again whoever takes the place of one that died; an answer may be lost."""
        self.serial += 1
        token = rank, self.serial
        self.unanswered[rank].append(lambda: request(token))  # type: ignore[arg-type]
        self.unanswered[rank][-1].token = token  # type: ignore[attr-defined]
        try:
            self.note(request(token))
        except Killed:
            self.deaths += 1
            self.restart()

    def note(self, tickets: list[Any]) -> None:
        for ticket in tickets:
            assert ticket.error is None, ticket.error
            rank, _ = ticket.token
            self.unanswered[rank] = deque(r for r in self.unanswered[rank] if r.token != ticket.token)

    def restart(self) -> None:
        """Again and again, until it lives: each may die while it starts, or while it is asked again."""
        while not self.lives():
            self.deaths += 1

    def lives(self) -> bool:
        """Whether another process gets so far that it has answered everything."""
        try:
            self.store = self.started()
            for request in [request for waiting in self.unanswered for request in waiting]:
                self.note(request())
        except Killed:
            return False
        return True

    def values(self) -> dict[int, Any]:
        """Values, slots and counts."""
        failpoints.arm(None)
        found = {}
        for key in SHAPES:
            unit = self.store.unit(key, True)
            ids = None if unit.ids is None else unit.ids.tolist()
            arrays = {name: array.tobytes() for name, array in unit.arrays.items()}
            found[key] = arrays, ids, unit.version, unit.count
        return found


def killing_at(times: set[int]) -> dict[str, Callable[[], None]]:
    """Die at these points, counted over all that are reached."""
    reached = 0

    def reach() -> None:
        nonlocal reached
        reached += 1
        if reached in times:
            raise Killed

    return dict.fromkeys(failpoints.POINTS, reach)


STEPS = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([DENSE, SPARSE, "small", "one small"])), max_size=25)


def run(server: Server, steps: list[tuple[int, Any]]) -> dict[int, Any]:
    """In dist_sync every worker has pushed everything in the end."""
    for rank, what in steps:
        for who in (rank, 1 - rank):
            if what == "small":
                server.push_small(who)
            else:
                server.push(who, SMALL[1] if what == "one small" else what)
    return server.values()


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

"""A server's store that may die at any point, and workers that ask its successor again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from hypothesis import strategies as st

import kvstore
from kvstore.rows import Rows
from kvstore.rules import ASSIGN, OptimizerRule
from kvstore.server.store import New, Store
from kvstore.spec import Spec
from pslite import failpoints
from pslite.dtypes import CODES

FLOAT32 = CODES["float32"]
DENSE, SPARSE, SMALL = 7, 2**63 + 5, (11, 12, 13)
SHAPES = {DENSE: (4, 3), SPARSE: (50, 2), **dict.fromkeys(SMALL, (2,))}
WORKERS = 2


class Killed(BaseException):
    """The process dies here."""


class Heritage(Protocol):
    """What of a server outlives it."""

    def start(self, store: Store) -> None:
        """Let a new store go on with it, if there is any, and take over what becomes of that."""


@kvstore.updater("dying.mix")
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
    "updater": lambda: ["updater", "dying.mix"],
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

    def __init__(self, heritage: Heritage | None, sync: bool, rule: Any) -> None:
        self.heritage, self.deaths = heritage, 0
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
        if self.heritage is not None:
            self.heritage.start(store)
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


def forget_keys(server: Server) -> None:
    """Keys that a server has forgotten are not at its successor, and may be made again."""
    shape = SHAPES[DENSE]
    for key in (90, 91):
        server.ask(0, lambda token, key=key: server.init(token, key, shape))
    server.push_small(0)
    server.store.forget([90, DENSE, SMALL[0], 777])
    left = {91, SPARSE, *SMALL}  # what was pushed stays
    assert set(server.store.keys()) == left
    server.restart()
    assert set(server.store.keys()) == left
    server.push_small(1)
    server.init("again", DENSE, shape)
    server.restart()
    assert set(server.store.keys()) == {*left, DENSE}

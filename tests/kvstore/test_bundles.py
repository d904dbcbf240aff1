"""Requests for many small keys at once: the server does what it does with requests for each key, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import kvstore
from kvstore import rules
from kvstore.server.bundle import split
from kvstore.server.store import Store
from kvstore.server.ticket import Answer, Ticket
from kvstore.value import Value
from pslite.dtypes import CODES
from pslite.errors import PeerLost, ProtocolError, ShapeError, UnknownKeyError, WorkerFinished, WorkerLeft

from .driving import Driver

SHAPES: list[tuple[int, ...]] = [(3,), (2, 2), (), (1,), (0,), (2, 1, 2)]
NAMES = [f"k{i}" for i in range(len(SHAPES))]
LISTS = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1], [1, 2, 3], [4, 5], [2]]
RULES: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.75},
    "adam": {},
    "lars": {},  # needs whole arrays
    "dcasgd": {"momentum": 0.5},  # has slots for each worker
    "signum": {},
}


@kvstore.updater("bundled difference")
def difference(key: Any, received: Any, stored: Any) -> None:
    if np.any(received > 900):
        raise ValueError("too large")
    stored[...] = received - stored


def flat(arrays: list[Any]) -> Any:
    joined = np.concatenate(arrays, axis=None)
    joined.flags.writeable = False  # as it comes from the van
    return joined


def told(tickets: list[Ticket]) -> list[Any]:
    """What these answers say, in bytes: of a pull the values and versions."""
    said = []
    for t in tickets:
        error = None if t.error is None else (type(t.error), t.what, "" if isinstance(t.token, tuple) else str(t.error))
        found = [] if error or not t.pull else [a for a in t.answers if a is not None]
        values = b"".join(a.arrays[0].tobytes() for a in found)
        versions = [int(v) for a in found for v in np.atleast_1d(np.asarray(a.version))]
        said.append((t.token, error, values, versions))
    return said


def in_any_order(said: list[Any]) -> list[Any]:
    return sorted(said, key=lambda answer: str(answer[0]))


class Bundles(RuleBasedStateMachine):
    """The same requests on two servers; one has those for several keys as one array."""

    @initialize(workers=st.integers(1, 3), sync=st.booleans(), dtype=st.sampled_from(["float32", "float16", "int32"]))
    def start(self, workers: int, sync: bool, dtype: str) -> None:
        self.workers, self.sync, self.dtype = workers, sync, dtype
        self.bundled, self.single = Driver(workers, sync), Driver(workers, sync)
        self.serial, self.here = 0, set(range(workers))
        self.bursts: dict[int, list[int]] = {}  # by number: their keys
        self.rng = np.random.default_rng(workers)
        for name, shape in zip(NAMES, SHAPES, strict=True):
            value = self.array(shape)
            for driver in (self.bundled, self.single):
                driver.init(**{name: value})

    def array(self, shape: tuple[int, ...]) -> Any:
        return np.asarray(self.rng.integers(-1000, 1000, shape) / (1 if self.dtype == "int32" else 7)).astype(
            self.dtype
        )

    def somebody(self, who: int) -> int:
        return sorted(self.here)[who % len(self.here)]

    def both(self, bundled: list[Ticket], single: list[Ticket]) -> None:
        ended = [part for t in [*bundled, *self.bundled.store.told_apart()] for part in self.calls_of(t)]
        assert in_any_order(told(ended)) == in_any_order(told(single))

    def calls_of(self, ticket: Ticket) -> list[Ticket]:
        """What has ended: a request, or the calls of a burst."""
        if ticket.number is None:
            return [ticket]
        ks = self.bursts[ticket.number]
        tokens = [(ticket.token, k) for k in ks]
        if ticket.told:
            ask = self.bundled.store.outcome
            return [t for i, token in enumerate(tokens) for t in ask(token, ticket.rank, ticket.number, i)]
        assert ticket.error is None or len(ticket.answers) == 1
        answers: list[Any] = ticket.answers
        if ticket.pull and ticket.error is None and isinstance(answers[0].version, np.ndarray):
            arrays, versions = split(answers[0].arrays[0], [SHAPES[k] for k in ks]), answers[0].version.tolist()
            answers = [Answer([a], [], v) for a, v in zip(arrays, versions, strict=True)]
        return [
            Ticket(token, ticket.rank, ticket.pull, error=ticket.error, what=ticket.what, answers=[*answers[i : i + 1]])
            for i, token in enumerate(tokens)
        ]

    @rule(who=st.integers(0, 2), ks=st.sampled_from(LISTS), what=st.sampled_from(["push", "push", "pushpull", "pull"]))
    def request_all(self, who: int, ks: list[int], what: str) -> None:
        rank = self.somebody(who)
        self.serial += 1
        arrays = [] if what == "pull" else [self.array(SHAPES[k]) for k in ks]
        code = CODES[self.dtype]
        keys = np.array(ks, np.uint64)
        pushed = (flat(arrays), code) if arrays else None
        self.both(
            self.bundled.store.request_all(self.serial, rank, keys, pushed, what != "push"),
            self.single.store.request(self.serial, rank, ks, [(a, code) for a in arrays], pull=what != "push"),
        )

    @rule(who=st.integers(0, 2), ks=st.sampled_from(LISTS), push=st.booleans())
    def burst(self, who: int, ks: list[int], push: bool) -> None:
        """Calls that end one by one: what is not done together is told at once."""
        rank = self.somebody(who)
        self.serial += 1
        arrays = [self.array(SHAPES[k]) for k in ks] if push else []
        code, number = CODES[self.dtype], self.serial
        self.bursts[number] = ks
        pushed = (flat(arrays), code) if push else None
        keys = np.array(ks, np.uint64)
        bundled = self.bundled.store.request_all(number, rank, keys, pushed, not push, number)
        self.bundled.store.hurry(rank, number)
        single = []
        for place, k in enumerate(ks):
            content = [(arrays[place], code)] if push else []
            single += self.single.store.request((number, k), rank, [k], content, pull=not push)
        self.both(bundled, single)

    @rule(ks=st.sampled_from(LISTS[:3]), what=st.sampled_from(["push", "pushpull"]))
    def round(self, ks: list[int], what: str) -> None:
        """Everybody asks for the same, as trainings do."""
        for who in range(len(self.here)):
            self.request_all(who, ks, what)
            self.request_all(who, ks, "pull")

    @rule(who=st.integers(0, 2), k=st.integers(0, 5), what=st.sampled_from(["push", "pull"]))
    def request(self, who: int, k: int, what: str) -> None:
        rank = self.somebody(who)
        self.serial += 1
        array = [] if what == "pull" else [(self.array(SHAPES[k]), CODES[self.dtype])]
        self.both(
            *(d.store.request(self.serial, rank, [k], array, pull=not array) for d in (self.bundled, self.single))
        )

    @rule(name=st.sampled_from([*RULES, "updater"]), every=st.booleans())
    def set_rule(self, name: str, every: bool) -> None:
        """One that updates all keys alike, or not."""
        wire = ["updater", "bundled difference"]
        if name in RULES:
            optimizer = kvstore.optimizer.create(name, learning_rate=0.25, wd=0.125, **RULES[name])
            if not every:
                optimizer.set_wd_mult({"k1": 0.0})
            wire = rules.OptimizerRule(optimizer).to_wire()
        for driver in (self.bundled, self.single):
            driver.agree(0, "rule", wire)
            for rank in self.here - {0}:
                driver.agree(rank, "rule", wire)

    @rule(who=st.integers(0, 2), rate=st.sampled_from([0.5, 0.0625]))
    def change_rate(self, who: int, rate: float) -> None:
        now = self.single.store.settings.rule_of(self.somebody(who))
        if not isinstance(now, rules.OptimizerRule):
            return
        self.serial += 1
        name, wire = now.to_wire()[1]
        for driver in (self.bundled, self.single):
            driver.store.settings.change(self.somebody(who), self.serial, [name, {**wire, "learning_rate": rate}])

    @rule(k=st.integers(0, 5))
    def restore(self, k: int) -> None:
        """What a checkpoint has of a key comes back."""
        now = self.single.store.settings.rule_of(0)
        for driver in (self.bundled, self.single):
            if now is self.single.store.settings.rule_of(0):
                driver.store.restore(0, {k: driver.store.unit(k, True)})
        self.both([], [])

    @precondition(lambda self: len(self.here) > 1)
    @rule(who=st.integers(0, 2), kind=st.sampled_from([WorkerLeft, WorkerFinished, PeerLost]))
    def end(self, who: int, kind: Any) -> None:
        rank = self.somebody(who)
        self.here.discard(rank)
        error = kind(node=f"worker {rank}", reason="it ended")
        self.both(*(driver.store.on_peer_ended(rank, error) for driver in (self.bundled, self.single)))

    @rule()
    def look(self) -> None:
        """Whom everybody waits for, and how much is parked."""
        for token in set(range(self.serial)) - self.bursts.keys():
            assert self.bundled.missing(token) == self.single.missing(token)
        assert self.bundled.store.parked == self.single.store.parked

    def teardown(self) -> None:
        if not hasattr(self, "bundled"):
            return
        for k in range(len(SHAPES)):
            mine, theirs = (driver.store.unit(k, True) for driver in (self.bundled, self.single))
            assert (mine.version, mine.count) == (theirs.version, theirs.count)
            found, expected = ({n: a.tobytes() for n, a in unit.arrays.items()} for unit in (mine, theirs))
            assert found == expected


Bundles.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestBundles = Bundles.TestCase


class Counting:
    """Counts the values that are updated."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, value: Value, *rest: Any) -> None:
        self.calls += 1
        value.apply(*rest)


def server(count: int) -> tuple[Driver, Counting, Any]:
    """Two workers' server of float32 keys of two numbers, and the keys on the wire."""
    driver, counting = Driver(2), Counting()
    driver.store._apply_to = counting
    for i in range(count):
        driver.init(**{f"k{i}": np.zeros(2, np.float32)})
    return driver, counting, np.arange(count, dtype=np.uint64)


def test_a_round_of_many_keys_is_one_step() -> None:
    driver, counting, keys = server(100)
    pushed = flat([np.full(200, 3, np.float32)]), CODES["float32"]
    for rank in (0, 1):
        done = driver.store.request_all(rank, rank, keys, pushed, True)
    assert counting.calls == 1
    assert [t.token for t in done] == [0, 1]
    assert done[0].answers[0].arrays[0].tolist() == [6] * 200
    assert done[0].answers[0].version.tolist() == [1] * 100


@pytest.mark.parametrize("rates", [{}, {"k3": 0.5}])
def test_an_optimizer_is_one_step_if_all_keys_have_the_same_rates(rates: dict[str, float]) -> None:
    driver, counting, keys = server(10)
    optimizer = kvstore.optimizer.create("adam")
    optimizer.set_lr_mult(rates)
    driver.agree(0, "rule", rules.OptimizerRule(optimizer).to_wire())
    for rank in (0, 1):
        driver.store.request_all(rank, rank, keys, (flat([np.ones(20, np.float32)]), CODES["float32"]), False)
    assert counting.calls == (10 if rates else 1)


def test_what_a_request_for_all_waits_for() -> None:
    driver, _, keys = server(10)
    driver.store.request_all("mine", 1, keys, (flat([np.ones(20, np.float32)]), CODES["float32"]), False)
    assert driver.missing("mine") == ["worker 0 (round 1 of key 'k0')"]
    assert driver.store.parked == 10


@pytest.mark.parametrize(
    ("keys", "size", "error"),
    [
        ([0, 1, 2], 7, (ShapeError, ProtocolError)),
        ([1, 0], 4, ProtocolError),
        ([0, 0], 4, ProtocolError),
        ([9], 2, UnknownKeyError),
    ],
)
def test_a_malformed_request_changes_nothing(keys: list[int], size: int, error: Any) -> None:
    driver, _, _ = server(3)
    pushed = flat([np.ones(size, np.float32)]), CODES["float32"]
    [ticket] = driver.store.request_all("mine", 0, np.array(keys, np.uint64), pushed, False)
    assert isinstance(ticket.error, error)
    assert driver.store.parked == 0
    assert isinstance(driver.store, Store)

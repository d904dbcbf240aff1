"""Random sequences of requests by up to four ranks, on the server's brain and on a model of it in plain numpy."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import kvstore
from kvstore import rules
from pslite.errors import WorkerFinished, WorkerLeft

from .driving import Driver, answers

KEYS = ("a", "b", "c")
SIZES = {"a": 1, "b": 3, "c": 2}
RATE, MOMENTUM = np.float32(0.5), np.float32(0.75)


class Model:
    """What the server should do, said as directly as possible.

    ``log[key][rank]`` are the requests that wait, oldest first: (token, pushed or None, wants the value).
    """

    def __init__(self, workers: int, sync: bool, optimizer: bool) -> None:
        self.workers, self.sync, self.optimizer = workers, sync, optimizer
        self.values: dict[str, Any] = {}
        self.mom: dict[str, Any] = {}
        self.log: dict[str, dict[int, deque[Any]]] = {}
        self.members, self.gone = set(range(workers)), set[int]()
        self.results: dict[Any, Any] = {}

    def init(self, key: str, value: Any) -> None:
        self.values[key], self.mom[key] = value.copy(), np.zeros_like(value)
        self.log[key] = {rank: deque() for rank in range(self.workers)}

    def request(self, rank: int, token: Any, key: str, pushed: Any, wants: bool) -> None:
        self.log[key][rank].append((token, pushed, wants))
        self.settle(key)

    def settle(self, key: str) -> None:
        log = self.log[key]
        while True:
            for queue in log.values():
                while queue and queue[0][1] is None:
                    self.results[queue.popleft()[0]] = self.values[key].copy()
            ready = [rank for rank in range(self.workers) if log[rank]]
            missing = self.members - set(ready) if self.sync else set()
            if not ready or (missing and not missing & self.gone):
                return
            entries = [log[rank].popleft() for rank in (ready if self.sync else ready[:1])]
            if missing:
                self.results.update({token: WorkerFinished for token, _, _ in entries})
                continue
            total = entries[0][1]
            for _, pushed, _ in entries[1:]:
                total = total + pushed
            if self.optimizer:
                self.mom[key] = MOMENTUM * self.mom[key] - RATE * total
                total = self.values[key] + self.mom[key]
            self.values[key] = total
            self.results.update({token: total.copy() if wants else None for token, _, wants in entries})


class Rounds(RuleBasedStateMachine):
    @initialize(workers=st.integers(1, 4), sync=st.booleans(), optimizer=st.booleans())
    def start(self, workers: int, sync: bool, optimizer: bool) -> None:
        self.model, self.driver = Model(workers, sync, optimizer), Driver(workers, sync)
        if optimizer:
            sgd = kvstore.optimizer.create("sgd", learning_rate=float(RATE), momentum=float(MOMENTUM))
            self.driver.agree(0, "rule", rules.OptimizerRule(sgd).to_wire())
        self.serial = 0
        self.rng = np.random.default_rng(workers)
        for key in KEYS:
            value = self.array(key)
            self.model.init(key, value)
            self.driver.init(**{key: value})

    def array(self, key: str) -> Any:
        return (self.rng.standard_normal(SIZES[key]) * 10.0 ** self.rng.integers(-3, 4)).astype(np.float32)

    def somebody(self, who: int) -> int:
        here = sorted(set(range(self.model.workers)) - self.model.gone)
        return here[who % len(here)]

    @rule(who=st.integers(0, 3), key=st.sampled_from(KEYS), what=st.sampled_from(["push", "push", "pushpull", "pull"]))
    def request(self, who: int, key: str, what: str) -> None:
        rank = self.somebody(who)
        self.serial += 1
        pushed = None if what == "pull" else self.array(key)
        self.model.request(rank, self.serial, key, pushed, what != "push")
        if pushed is None:
            self.compare(self.driver.pull(rank, key, token=self.serial))
        else:
            self.compare(self.driver.push(rank, self.serial, pull=what == "pushpull", **{key: pushed}))

    @precondition(lambda self: len(self.model.gone) < self.model.workers - 1)
    @rule(who=st.integers(0, 3), left=st.booleans())
    def end(self, who: int, left: bool) -> None:
        rank = self.somebody(who)
        self.model.gone.add(rank)
        if left:
            self.model.members.discard(rank)
        for key in KEYS:
            self.model.settle(key)
        error = (WorkerLeft if left else WorkerFinished)(node=f"worker {rank}", reason="later rounds")
        self.compare(answers(self.driver.store.on_peer_ended(rank, error)))

    def compare(self, found: list[tuple[Any, Any]]) -> None:
        """What was answered in this step is what the model answered in it."""
        expected, self.model.results = self.model.results, {}
        assert [token for token, _ in found if token not in expected] == []
        assert sorted(expected) == sorted(token for token, _ in found)
        for token, result in found:
            wanted = expected[token]
            if wanted is None or wanted is WorkerFinished:
                assert type(result) is (WorkerFinished if wanted else type(None))
            else:
                assert result[0].tobytes() == wanted.tobytes()
        for key in KEYS:
            assert self.driver.value(key).tobytes() == self.model.values[key].tobytes()


Rounds.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestRounds = Rounds.TestCase

"""Rounds on the server: sets of ranks, applied in rank order whatever the order of arrival."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import rules
from kvstore.arrays import Array
from kvstore.compression import Codec, cached
from kvstore.optimizer.base import _REGISTRY
from kvstore.server.store import New
from kvstore.spec import Spec
from pslite.dtypes import CODES, NAMES
from pslite.errors import DTypeError, DuplicateKeyError, PeerLost, ShapeError, UnknownKeyError

from .driving import Driver, _content, answers


def test_a_round_takes_one_push_of_every_rank() -> None:
    d = Driver(3)
    d.init(w=[0.0])
    assert d.push(2, "c", w=[4.0]) == []
    assert d.push(0, "a", w=[1.0]) == []
    assert d.value("w") == 0
    assert d.push(1, "b", w=[2.0]) == [("a", None), ("b", None), ("c", None)]
    assert d.value("w") == 7


def test_two_pushes_of_one_rank_are_two_rounds_not_one() -> None:
    d = Driver(2)
    d.init(w=[0.0])
    assert d.push(1, "first", w=[1.0]) + d.push(1, "second", w=[10.0]) == []
    assert d.push(0, "a", w=[100.0]) == [("a", None), ("first", None)]
    assert d.value("w") == 101
    assert d.push(0, "b", w=[1000.0]) == [("b", None), ("second", None)]
    assert d.value("w") == 1010


def test_keys_of_one_request_finish_apart_and_answer_together() -> None:
    d = Driver(2)
    d.init(a=[0.0], b=[0.0])
    assert d.push(0, "both", a=[1.0], b=[2.0]) == []
    assert d.push(1, "b", b=[20.0]) == [("b", None)]
    assert d.push(1, "a", a=[10.0]) == [("both", None), ("a", None)]


def test_a_pull_waits_for_this_ranks_own_pushes_only() -> None:
    d = Driver(2)
    d.init(w=[5.0])
    d.push(0, "push", w=[1.0])
    assert d.pull(0, "w", token="own") == []
    assert d.pull(1, "w", token="other") == [("other", [np.array([5.0])])]
    tokens = [token for token, _ in d.push(1, "last", w=[2.0])]
    assert tokens == ["push", "last", "own"]


def test_a_pull_between_two_pushes_sees_the_first_round_exactly() -> None:
    d = Driver(2)
    d.init(w=[0.0])
    d.push(0, w=[1.0])
    d.pull(0, "w", token="between")
    d.push(0, w=[100.0])
    assert ("between", [3.0]) in d.push(1, w=[2.0])
    assert d.pull(0, "w", token="after") == []
    assert ("after", [300.0]) in d.push(1, w=[200.0])


def test_a_pull_of_two_keys_waits_for_both() -> None:
    d = Driver(2)
    d.init(a=[0.0], b=[7.0])
    d.push(0, a=[1.0])
    assert d.pull(0, "a", "b", token="pull") == []
    found = dict(d.push(1, a=[1.0]))["pull"]
    assert [v.tolist() for v in found] == [[2.0], [7.0]]


def test_push_and_pushpull_meet_in_one_round() -> None:
    d = Driver(3)
    d.init(w=[0.0])
    d.push(0, "push", w=[1.0])
    d.pushpull(1, "pushpull", w=[2.0])
    found = d.push(2, "last", w=[4.0])
    assert found == [("push", None), ("pushpull", [7.0]), ("last", None)]


def test_every_key_has_rounds_of_its_own() -> None:
    """Workers that push keys in different orders do not wait for each other."""
    d = Driver(2)
    d.init(a=[0.0], b=[0.0])
    d.push(0, a=[1.0])
    d.push(1, b=[1.0])
    assert d.value("a") == d.value("b") == 0
    d.push(1, a=[1.0])
    assert d.value("a") == 2
    d.push(0, b=[1.0])
    assert d.value("b") == 2


def test_versions_count_changes() -> None:
    d = Driver(2)
    d.init(w=[0.0])
    for k in range(1, 4):
        d.push(0, w=[1.0])
        [ticket, _] = d.store.request("t", 1, [0], [(np.ones(1), 1)], pull=True)
        assert ticket.error is None
        assert d.store._entries[0].value.version == k


# -- the same bits ----------------------------------------------------------------------------------------------------


def in_rank_order(arrays: Sequence[Array]) -> Array:
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


def arrivals(rounds: int, workers: int, seed: int) -> list[int]:
    """A random interleaving of the pushes of all ranks, each rank's own in order."""
    order = [rank for rank in range(workers) for _ in range(rounds)]
    random.Random(seed).shuffle(order)
    return order


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_all_orders_of_arrival_give_the_same_bits(order: tuple[int, ...]) -> None:
    # Magnitudes far apart: another order of addition gives other bits.
    rng = np.random.default_rng(0)
    pushed = [(rng.standard_normal(1000) * 10.0**k).astype(np.float32) for k in (0, 4, 2)]
    assert in_rank_order(pushed).tobytes() != in_rank_order(pushed[::-1]).tobytes()
    d = Driver(3)
    d.init(w=np.zeros(1000, np.float32))
    for rank in order:
        d.push(rank, w=pushed[rank])
    assert d.value("w").tobytes() == in_rank_order(pushed).tobytes()


OPTIMIZERS = {
    "assign": None,
    "sgd": kvstore.optimizer.create("sgd", learning_rate=0.1, momentum=0.9, wd=1e-3),
    "adam": kvstore.optimizer.create("adam", learning_rate=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_shuffled_orders_over_many_rounds_give_the_same_bits(name: str) -> None:
    """Up to six pushes of a rank are in flight before the others come."""
    rng = np.random.default_rng(1)
    workers, rounds = 4, 6
    grads = (rng.standard_normal((workers, rounds, 50)) * 10.0 ** rng.integers(-3, 4, (workers, 1, 50))).astype("f4")
    start = rng.standard_normal(50).astype(np.float32)
    results = set()
    for seed in range(10):
        d = Driver(workers)
        optimizer = OPTIMIZERS[name]
        d.agree(0, "rule", rules.ASSIGN if optimizer is None else rules.OptimizerRule(optimizer).to_wire())
        d.init(w=start)
        done = [0] * workers
        for rank in arrivals(rounds, workers, seed):
            d.push(rank, w=grads[rank, done[rank]])
            done[rank] += 1
        results.add(d.value("w").tobytes())
    [bits] = results
    if name == "assign":
        assert bits == in_rank_order(grads[:, -1]).tobytes()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bfloat16"])
def test_sums_of_every_dtype(name: str) -> None:
    d = Driver(3)
    values = np.array([[1, 0, 100], [1, 0, 100], [1, 0, 100]]).astype(name)
    d.init(w=np.zeros(3, name))
    for rank in range(3):
        d.push(rank, w=values[rank])
    expected = [True, False, True] if name == "bool" else np.array([3, 0, 300]).astype(name).tolist()
    assert d.value("w").tolist() == expected
    assert d.value("w").dtype == name


# -- in the order of arrival ------------------------------------------------------------------------------------------


def test_async_pushes_are_applied_on_arrival() -> None:
    d = Driver(3, sync=False)
    d.init(w=[0.0])
    assert d.push(2, "a", w=[5.0]) == [("a", None)]
    assert d.push(0, "b", w=[6.0]) == [("b", None)]
    assert d.pushpull(2, "c", w=[7.0]) == [("c", [7.0])]
    assert d.pull(1, "w", token="p") == [("p", [7.0])]


def test_async_updates_are_one_push_each() -> None:
    d = Driver(2, sync=False)
    d.agree(0, "rule", rules.OptimizerRule(kvstore.optimizer.create("test")).to_wire())
    d.init(w=[0.0])
    for rank in (0, 0, 1, 0):
        d.push(rank, w=[2.0 ** (rank + 1)])
    assert d.value("w") == 2 + 2 + 4 + 2


# -- values that were handed out --------------------------------------------------------------------------------------


def test_an_answer_that_is_still_on_its_way_does_not_change() -> None:
    d = Driver(1)
    d.agree(0, "rule", rules.OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=1.0, momentum=0.5)).to_wire())
    d.init(w=np.zeros(4, np.float32))
    seen: list[tuple[Array, bytes]] = []
    for step in range(6):
        [(_, [value])] = d.pushpull(0, w=np.full(4, step, np.float32))
        seen.append((value, value.tobytes()))
    assert all(value.tobytes() == bits for value, bits in seen)
    assert len({bits for _, bits in seen}) > 3


def test_pushed_arrays_are_not_written() -> None:
    """They are read-only here, so writing would raise; the next round must not write into a value that was assigned."""
    d = Driver(1)
    d.init(w=[0.0])
    d.push(0, w=[1.0])
    d.agree(0, "rule", rules.OptimizerRule(kvstore.optimizer.create("test")).to_wire())
    for _ in range(3):
        d.push(0, w=[1.0])
    assert d.value("w") == 4


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _registries() -> Iterator[None]:
    updaters, optimizers = dict(rules._UPDATERS), dict(_REGISTRY)
    yield
    for registry, before in ((rules._UPDATERS, updaters), (_REGISTRY, optimizers)):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]


def test_an_updater_that_raises_leaves_the_value_and_reaches_every_contributor() -> None:
    @kvstore.updater("half-way")
    def half_way(key: Any, received: Any, stored: Any) -> None:
        stored += received
        if stored[0] > 10:
            raise OverflowError("too much")

    d = Driver(2)
    d.agree(0, "rule", ["updater", "half-way"])
    d.init(w=[1.0])
    d.push(0, "a", w=[100.0])
    found = d.pushpull(1, "b", w=[200.0])
    assert [token for token, _ in found] == ["a", "b"]
    assert all(isinstance(error, OverflowError) for _, error in found)
    assert d.value("w") == 1
    d.push(0, "c", w=[1.0])
    assert d.push(1, "d", w=[2.0]) == [("c", None), ("d", None)]
    assert d.value("w") == 4


def test_the_error_says_which_code_raised() -> None:
    @kvstore.updater("bad")
    def bad(key: Any, received: Any, stored: Any) -> None:
        raise ValueError("no")

    d = Driver(1)
    d.agree(0, "rule", ["updater", "bad"])
    d.init(w=[1.0])
    [ticket] = d.store.request("t", 0, [0], [(np.ones(1), 1)])
    assert ticket.what == "the updater 'bad'"


def test_an_optimizer_that_raises_leaves_its_slots() -> None:
    @kvstore.optimizer.register
    class Counting(kvstore.optimizer.Optimizer):
        """w becomes the number of gradients that it has seen; a negative gradient is an error half way."""

        def create_state(self, key: Any, weight: Any) -> Any:
            return {"seen": np.zeros_like(weight)}

        def update(self, key: Any, weight: Any, grad: Any, state: Any, count: int) -> None:
            state["seen"] += 1
            weight[...] = state["seen"] + 100 * count
            if (grad < 0).any():
                raise ArithmeticError("negative")

    d = Driver(1)
    d.agree(0, "rule", rules.OptimizerRule(Counting()).to_wire())
    d.init(w=[0.0])
    d.push(0, w=[1.0])
    [(_, error)] = d.push(0, w=[-1.0])
    assert isinstance(error, ArithmeticError)
    assert d.value("w") == 101
    d.push(0, w=[1.0])
    assert d.value("w") == 202


def test_an_error_at_one_key_answers_the_request_and_the_other_keys_go_on() -> None:
    @kvstore.updater("not-b")
    def not_b(key: Any, received: Any, stored: Any) -> None:
        if key == "b":
            raise KeyError(key)
        stored += received

    d = Driver(1)
    d.agree(0, "rule", ["updater", "not-b"])
    d.init(a=[0.0], b=[0.0], c=[0.0])
    [(token, error)] = d.push(0, "all", a=[1.0], b=[1.0], c=[1.0])
    assert token == "all" and isinstance(error, KeyError)
    assert [d.value(k)[0] for k in "abc"] == [1, 0, 1]


class FailingCodec(Codec):
    """Cannot encode what is above 1."""

    pulls = True

    def encode(self, values: Array, salt: int) -> list[Array]:
        if values.max() > 1:
            raise ValueError("too large")
        return [values.copy()]

    def decode(self, code: Sequence[Array], size: int, salt: int) -> Array:
        return code[0].copy()


def test_a_codec_that_raises_at_a_pull_answers_all_who_wait() -> None:
    d = Driver(2)
    d.init(f=np.zeros(1, np.float32), v=[0.0])
    codec, ones = FailingCodec(), (np.array([1.0]), CODES["float64"])
    floats = (np.ones(1, np.float32), CODES["float32"])
    assert d.store.request("a", 0, [0], [floats], pull=True, codec=codec) == []
    assert d.push(0, "v0", v=[1.0]) == []
    done = d.store.request("b", 1, [0, 1], [floats, ones], pull=True, codec=codec)
    assert [(t.token, str(t.error), t.what) for t in done] == [
        ("a", "too large", "the codec"),
        ("b", "too large", "the codec"),
        ("v0", "None", ""),
    ]
    assert d.store.parked == 0
    assert (d.value("f"), d.value("v")) == (2, 2)  # the rounds were applied


def test_all_pulls_of_a_version_get_the_same_code_even_if_codecs_are_forgotten_between() -> None:
    d = Driver(1)
    d.init(w=np.array([0.1, 0.2, 0.3], np.float32))
    wire = ["int8", {"block": 256}]
    [first] = d.store.request("a", 0, [0], pull=True, codec=cached(wire))
    for number in range(100):
        cached(["2bit", {"threshold": number + 0.5}])
    [second] = d.store.request("b", 0, [0], pull=True, codec=cached(wire))
    codes = [[a.tobytes() for answer in t.answers if answer for a in answer.arrays] for t in (first, second)]
    assert codes[0] == codes[1]


def test_updaters_get_users_keys_and_may_write_to_what_they_receive() -> None:
    seen = []

    @kvstore.updater("greedy")
    def greedy(key: Any, received: Any, stored: Any) -> None:
        seen.append(key)
        stored += received
        received[...] = -1

    d = Driver(1)
    d.agree(0, "rule", ["updater", "greedy"])
    d.init(name=[0.0])
    assert d.pushpull(0, "t", name=[1.0]) == [("t", [1.0])]
    assert seen == ["name"] and type(seen[0]) is str


def test_requests_that_do_not_fit_are_refused_whole() -> None:
    d = Driver(1)
    d.init(w=[0.0, 0.0], v=[0.0])
    cases: list[tuple[list[int], list[Any], list[int], type[Exception]]] = [
        ([0, 9], [np.ones(2), np.ones(1)], [1, 1], UnknownKeyError),
        ([0, 1], [np.ones(2), np.ones(3)], [1, 1], ShapeError),
        ([0, 1], [np.ones(2), np.ones(1, "f4")], [1, 0], DTypeError),
    ]
    for keys, values, codes, error in cases:
        [ticket] = d.store.request("t", 0, keys, list(zip(values, codes, strict=True)))
        assert type(ticket.error) is error
        assert d.value("w").tolist() == [0, 0]
    [ticket] = d.store.request("t", 0, [9], pull=True)
    assert isinstance(ticket.error, UnknownKeyError)
    new = {wire: New(Spec(key, (1,), 1), False, np.ones(1)) for wire, key in ((5, "new"), (0, "w"))}
    [ticket] = d.store.init("t", 0, new)
    assert isinstance(ticket.error, DuplicateKeyError) and ticket.error.key == "w"
    [ticket] = d.store.request("t", 0, [5], pull=True)
    assert isinstance(ticket.error, UnknownKeyError)  # a refused init creates none of its keys


def test_a_request_for_nothing_is_answered() -> None:
    assert Driver(2).pull(0, token="t") == [("t", [])]
    assert Driver(2).push(0, "t") == [("t", None)]


def redo(d: Driver, rank: int, token: Any, number: int, value: float, key: int = 0) -> Any:
    """A worker's push, with its number, and a pull."""
    content = _content([value])
    return answers(d.store.request(token, rank, [key], [content], pull=True, numbers=[number]))


def test_what_a_dead_worker_pushed_ahead_does_not_hold_up_its_successor() -> None:
    """Worker 1 died with its push of round 2 of w here; its successor redoes round 1, and worker 0 needs that."""
    d = Driver(2)
    d.init(w=[0.0])
    redo(d, 0, "0 in round 1", 1, 1.0)
    assert [token for token, _ in redo(d, 1, "1 in round 1", 1, 10.0)] == ["0 in round 1", "1 in round 1"]
    assert redo(d, 1, "ahead", 2, 20.0) + d.pull(1, "w", token="asked before") + redo(d, 1, "further", 3, 30.0) == []
    d.store.on_peer_away(1, PeerLost(node="worker 1"))
    assert redo(d, 1, "redone", 1, 10.0) == [("redone", [np.array([11.0])])]
    assert d.pull(1, "w", token="asked") == [("asked", [np.array([11.0])])]
    assert redo(d, 1, "caught up", 2, 20.0) == []
    assert d.pull(1, "w", token="behind it") == []
    done = redo(d, 0, "0 in round 2", 2, 2.0)
    assert [token for token, _ in done] == ["0 in round 2", "ahead", "asked before", "caught up", "behind it"]
    assert d.value("w") == 22
    assert redo(d, 1, "caught up again", 3, 30.0) == []
    assert len(redo(d, 0, "0 in round 3", 3, 3.0)) == 3


def test_nor_in_a_bundle() -> None:
    d = Driver(2)
    d.init(a=[0.0], b=[0.0])
    keys, values = np.array([0, 1], np.uint64), (np.array([1.0, 1.0]), CODES["float64"])

    def both(token: str, rank: int, number: int) -> list[Any]:
        numbers = np.array([number, number], np.uint64)
        return [t.token for t in d.store.request_all(token, rank, keys, values, True, numbers=numbers)]

    assert both("0", 0, 1) + both("1", 1, 1) == ["0", "1"]
    assert both("ahead", 1, 2) == []
    d.store.on_peer_away(1, PeerLost(node="worker 1"))
    assert [t.token for t in d.store.request_all("asked", 1, keys, None, True)] == ["asked"]
    assert both("redone", 1, 1) == ["redone"]
    assert both("caught up", 1, 2) == []
    assert set(both("0 again", 0, 2)) == {"ahead", "caught up", "0 again"}

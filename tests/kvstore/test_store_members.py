"""Collective settings, ranks that end, and who is missing: the parts of the server's brain beside the rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import rules
from pslite.dtypes import CODES
from pslite.errors import ConfigError, ConflictError, PeerLost, WorkerDropped, WorkerFailed, WorkerFinished, WorkerLeft

from .driving import Driver, answers

TEST = rules.OptimizerRule(kvstore.optimizer.create("test")).to_wire()
SGD = rules.OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=1.0)).to_wire()
ASSIGN = rules.ASSIGN


# -- agree ------------------------------------------------------------------------------------------------------------


def test_rank_0_decides_and_is_answered_at_once() -> None:
    d = Driver(2)
    assert d.agree(0, "rule", TEST, "zero") == [("zero", None)]
    assert d.agree(1, "rule", TEST, "one") == [("one", None)]


def test_the_others_wait_for_rank_0() -> None:
    d = Driver(3)
    assert d.agree(2, "rule", TEST, "two") == []
    assert d.missing("two") == ["worker 0 (to set the rule as this worker did)"]
    assert d.agree(1, "rule", SGD, "one") == []
    found = dict(d.agree(0, "rule", TEST, "zero"))
    assert found["zero"] is None and found["two"] is None
    assert isinstance(found["one"], ConflictError)


def test_a_conflict_says_who_gave_what() -> None:
    d = Driver(2)
    d.agree(0, "rule", TEST)
    [(_, error)] = d.agree(1, "rule", SGD)
    assert isinstance(error, ConflictError)
    assert error.rank == 1 and "sgd" in error.got and "test" in error.expected
    assert "the rule must be the same on every rank: rank 1 gave" in str(error)


def test_after_a_conflict_the_right_answer_is_accepted() -> None:
    d = Driver(2)
    d.agree(0, "rule", TEST)
    d.agree(1, "rule", SGD)
    assert d.agree(1, "rule", TEST, "again") == [("again", None)]


def test_equal_again_changes_nothing() -> None:
    d = Driver(2)
    d.agree(0, "rule", rules.OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=1.0, momentum=0.5)).to_wire())
    d.init(w=[0.0])
    wire = rules.OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=1.0, momentum=0.5)).to_wire()
    for expected in (-1.0, -2.5, -4.25):  # momentum lives on
        assert d.agree(0, "rule", wire, "zero") == [("zero", None)]
        assert d.agree(1, "rule", wire, "one") == [("one", None)]
        d.push(0, w=[0.5])
        d.push(1, w=[0.5])
        assert d.value("w") == expected


@pytest.mark.parametrize("first", [0, 1])
def test_a_second_setting_may_come_in_any_order(first: int) -> None:
    d = Driver(2)
    for wire in (TEST, SGD, TEST, ASSIGN):
        found = d.agree(first, "rule", wire, first) + d.agree(1 - first, "rule", wire, 1 - first)
        assert sorted(found) == [(0, None), (1, None)]


def test_rank_0_may_be_ahead_by_several_settings() -> None:
    d = Driver(2)
    for wire in (TEST, SGD, ASSIGN):
        d.agree(0, "rule", wire)
    for wire in (TEST, SGD, ASSIGN):
        assert d.agree(1, "rule", wire, "one") == [("one", None)]


def test_a_rank_may_be_ahead_by_several_settings() -> None:
    d = Driver(2)
    d.agree(0, "rule", TEST)
    assert d.agree(1, "rule", TEST, "same") == [("same", None)]
    assert d.agree(1, "rule", SGD, "next") == []
    assert dict(d.agree(0, "rule", SGD)) == {None: None, "next": None}


def test_a_rank_may_leave_settings_out() -> None:
    """Rank 0 lowers the learning rate by itself; a later setting by all must not look like a conflict."""
    d = Driver(2)
    for wire in (TEST, SGD, ASSIGN):
        d.agree(0, "rule", wire)
    assert d.agree(1, "rule", ASSIGN, "one") == [("one", None)]


def test_rank_0_may_change_the_optimizer_all_its_life() -> None:
    d = Driver(2)
    for k in range(500):
        d.agree(0, "rule", rules.OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=float(k))).to_wire())
    assert sum(len(said) for said in d.store.settings._agreement._said.values()) < 200  # what is remembered is bounded
    wire = rules.OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=499.0)).to_wire()
    assert d.agree(1, "rule", wire, "one") == [("one", None)]


def test_what_rank_0_may_not_set_is_an_error_for_all() -> None:
    unknown = ["optimizer", ["nobody-registered-this", {}]]
    d = Driver(3)
    assert d.agree(1, "rule", unknown, "before") == []
    found = dict(d.agree(0, "rule", unknown, "zero")) | dict(d.agree(2, "rule", unknown, "after"))
    assert {token: type(error) for token, error in found.items()} == dict.fromkeys(
        ["zero", "before", "after"], ConfigError
    )
    assert d.agree(0, "rule", TEST, "zero") == [("zero", None)]
    assert d.agree(1, "rule", TEST, "one") == [("one", None)]


def test_what_failed_once_may_be_tried_again() -> None:
    @kvstore.updater("late")
    def late(key: Any, received: Any, stored: Any) -> None:
        stored += received

    del rules._UPDATERS["late"]
    d = Driver(2)
    for rank in (0, 1):
        assert [type(error) for _, error in d.agree(rank, "rule", ["updater", "late"])] == [ConfigError]
    rules._UPDATERS["late"] = late
    try:
        assert d.agree(1, "rule", ["updater", "late"], "one") == []
        assert dict(d.agree(0, "rule", ["updater", "late"], "zero")) == {"zero": None, "one": None}
    finally:
        del rules._UPDATERS["late"]


def test_a_rule_for_whole_arrays_is_refused_where_arrays_are_split() -> None:
    @kvstore.updater("add")
    def add(key: Any, received: Any, stored: Any) -> None:
        stored += received

    try:
        d = Driver(1)
        d.init(split=True, big=[0.0])
        [(_, error)] = d.agree(0, "rule", ["updater", "add"])
        assert isinstance(error, ConfigError) and "'big' is split" in str(error)
        d.push(0, big=[3.0])
        assert d.value("big") == 3  # still assigned
        assert d.agree(0, "rule", TEST, "sgd") == [("sgd", None)]  # works on pieces
    finally:
        del rules._UPDATERS["add"]


def test_settings_do_not_meddle_with_each_other() -> None:
    d = Driver(2)
    assert d.agree(1, "type", "async", "type") != []  # rank 0 said sync
    assert d.agree(1, "rule", TEST, "rule") == []
    assert dict(d.agree(0, "rule", TEST)) == {None: None, "rule": None}


def test_rank_order_decides_whose_rule_counts() -> None:
    """A round is updated with the rule in force when rank 0's contribution came, whenever the others' came."""
    d = Driver(2)
    d.init(w=[0.0])
    d.push(0, w=[1.0])  # assigned
    d.agree(0, "rule", TEST)
    d.push(0, w=[10.0])  # added
    d.push(1, w=[2.0])
    assert d.value("w") == 3
    d.push(1, w=[20.0])
    assert d.value("w") == 33


def test_a_change_of_rule_begins_with_new_slots() -> None:
    d = Driver(1)
    momentum = rules.OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=1.0, momentum=0.5)).to_wire()
    d.init(w=[0.0])
    for wire, expected in ((momentum, -1.0), (SGD, -2.0), (momentum, -3.0)):
        d.agree(0, "rule", wire)
        d.push(0, w=[1.0])
        assert d.value("w") == expected


# -- ranks that end ---------------------------------------------------------------------------------------------------

ENDS = [
    PeerLost(node="worker 1 (pid 7 on host)", reason="its connection broke"),
    WorkerFailed(node="worker 1", reason="ValueError: mine"),
    WorkerFinished(node="worker 1", reason="later rounds"),
]


def end(d: Driver, rank: int, error: Any) -> list[tuple[Any, Any]]:
    return answers(d.store.on_peer_ended(rank, error))


@pytest.mark.parametrize("error", ENDS, ids=lambda e: type(e).__name__)
def test_rounds_that_wait_for_an_ended_rank_fail_at_once(error: Any) -> None:
    d = Driver(3)
    d.init(w=[1.0], v=[1.0])
    d.push(0, "a", w=[2.0])
    d.push(2, "c", w=[2.0])
    d.push(2, "v", v=[2.0])
    found = dict(end(d, 1, error))
    assert set(found) == {"a", "c", "v"}
    assert {type(e) for e in found.values()} == {type(error)}
    assert all(e.node == error.node for e in found.values())
    assert d.value("w") == 1


@pytest.mark.parametrize("error", ENDS, ids=lambda e: type(e).__name__)
def test_later_pushes_fail_too_and_pulls_still_work(error: Any) -> None:
    d = Driver(2)
    d.init(w=[1.0])
    assert end(d, 1, error) == []
    [(token, got)] = d.push(0, "late", w=[2.0])
    assert token == "late" and type(got) is type(error)
    assert d.pull(0, "w", token="p") == [("p", [1.0])]


def test_pulls_behind_a_failed_push_are_answered() -> None:
    d = Driver(2)
    d.init(w=[1.0])
    d.push(0, "push", w=[2.0])
    d.pull(0, "w", token="pull")
    found = dict(end(d, 1, ENDS[0]))
    assert isinstance(found["push"], PeerLost) and found["pull"] == [1.0]


def test_what_an_ended_rank_had_sent_still_counts() -> None:
    d = Driver(2)
    d.init(w=[0.0])
    d.push(1, "1", w=[1.0])
    d.push(1, "2", w=[2.0])
    assert end(d, 1, ENDS[2]) == []
    assert d.push(0, "a", w=[10.0]) == [("a", None), ("1", None)]
    assert d.push(0, "b", w=[20.0]) == [("b", None), ("2", None)]
    assert d.value("w") == 22
    [(_, error)] = d.push(0, "c", w=[30.0])
    assert isinstance(error, WorkerFinished)


def test_worker_finished_names_the_round_and_the_key() -> None:
    d = Driver(2)
    d.init(w=[0.0])
    for rank in (0, 1):
        d.push(rank, w=[1.0])
    end(d, 1, ENDS[2])
    [(_, error)] = d.push(0, w=[1.0])
    assert "round 2 of key 'w'" in str(error) and "kv.close(join=True)" in str(error)


def test_rounds_go_on_without_a_rank_that_left() -> None:
    d = Driver(3)
    d.init(w=[0.0])
    d.push(0, "a", w=[1.0])
    d.push(2, "c", w=[4.0])
    left = WorkerLeft(node="worker 1", reason="later rounds")
    assert end(d, 1, left) == [("a", None), ("c", None)]
    assert d.value("w") == 5
    d.push(2, w=[40.0])
    d.push(0, w=[10.0])
    assert d.value("w") == 50


def test_rank_0_may_leave_and_the_lowest_rank_decides_the_rule() -> None:
    d = Driver(2)
    d.init(w=[0.0])
    d.agree(0, "rule", TEST)
    end(d, 0, WorkerLeft(node="worker 0", reason="later rounds"))
    d.push(1, w=[3.0])
    d.push(1, w=[3.0])
    assert d.value("w") == 6


def test_who_waits_for_rank_0_to_decide_hears_of_its_end() -> None:
    d = Driver(2)
    d.agree(1, "rule", TEST, "one")
    assert end(d, 0, ENDS[1]) == [("one", ENDS[1])]


DROPPED = WorkerDropped(node="worker 0", reason="killed")


def test_the_next_rank_decides_when_rank_0_is_lost_for_good() -> None:
    d = Driver(3)
    d.agree(2, "rule", TEST, "two")
    d.agree(1, "rule", SGD, "one")
    found = dict(end(d, 0, DROPPED))
    assert found["one"] is None and isinstance(found["two"], ConflictError)
    assert d.agree(2, "rule", SGD, "two") == [("two", None)]
    assert d.agree(2, "rule", ASSIGN, "early") == []
    assert d.missing("early") == ["worker 1 (to set the rule as this worker did)"]
    assert dict(d.agree(1, "rule", ASSIGN, "one")) == {"one": None, "early": None}


def test_what_rank_0_had_said_before_it_was_lost_may_be_said_by_the_next() -> None:
    """It may have told some servers only; what a round is updated with is what the lowest rank in it has said."""
    momentum = rules.OptimizerRule(kvstore.optimizer.create("sgd", learning_rate=1.0, momentum=0.5)).to_wire()
    told, other = Driver(2), Driver(2)
    for d in (told, other):
        d.init(w=[0.0])
        for rank in (0, 1):
            d.agree(rank, "rule", momentum)
            d.push(rank, w=[1.0])
    for wire in (SGD, TEST):
        told.agree(0, "rule", wire)
    for d in (told, other):
        end(d, 0, DROPPED)
        d.push(1, w=[1.0])
        assert d.value("w") == -2.0 - 2.0, "with the momentum of before"
        assert d.agree(1, "rule", momentum, "same") == [("same", None)]
        d.push(1, w=[0.0])
        assert d.value("w") == -4.0 - 1.0
        for wire, expected in ((SGD, -6.0), (TEST, -5.0), (ASSIGN, 1.0)):
            assert d.agree(1, "rule", wire, "one") == [("one", None)]
            d.push(1, w=[1.0])
            assert d.value("w") == expected


def test_a_change_of_hyper_parameters_concerns_the_optimizer_that_its_worker_has_set() -> None:
    told, other = Driver(2), Driver(2)
    for d in (told, other):
        d.init(w=[0.0])
        for rank in (0, 1):
            d.agree(rank, "rule", SGD)
    told.agree(0, "rule", TEST)
    for d in (told, other):
        d.store.settings.change(1, 1, kvstore.optimizer.create("sgd", learning_rate=2.0).to_wire())
        end(d, 0, DROPPED)
        d.push(1, w=[1.0])
        assert d.value("w") == -2.0


def test_who_asks_after_the_end_of_rank_0_hears_of_it_too() -> None:
    d = Driver(2)
    end(d, 0, ENDS[1])
    assert d.agree(1, "rule", TEST, "one") == [("one", ENDS[1])]


def test_async_pushes_need_nobody_else() -> None:
    d = Driver(2, sync=False)
    d.init(w=[0.0])
    end(d, 1, ENDS[0])
    assert d.push(0, "a", w=[1.0]) == [("a", None)]


# -- who is missing ---------------------------------------------------------------------------------------------------


def test_missing_names_ranks_round_and_key() -> None:
    d = Driver(3)
    d.init(w=[0.0])
    for rank in range(3):
        d.push(rank, w=[1.0])
    d.push(1, "waiting", w=[1.0])
    assert d.missing("waiting") == ["worker 0 (round 2 of key 'w')", "worker 2 (round 2 of key 'w')"]
    d.push(0, w=[1.0])
    assert d.missing("waiting") == ["worker 2 (round 2 of key 'w')"]
    d.push(2, w=[1.0])
    assert d.missing("waiting") == []


def test_missing_of_a_pull_names_who_its_push_waits_for() -> None:
    d = Driver(2)
    d.init(w=[0.0])
    d.push(0, w=[1.0])
    d.pull(0, "w", token="pull")
    assert d.missing("pull") == ["worker 1 (round 1 of key 'w')"]


def test_missing_of_nothing_is_nobody() -> None:
    assert Driver(2).missing("never sent") == []


def test_repr_shows_what_is_parked() -> None:
    d = Driver(2)
    d.init(w=np.zeros(4, np.float32))
    d.push(0, w=np.zeros(4, np.float32))
    assert repr(d.store) == "<Store keys=1 bytes=16 parked=1 sync assign>"


def test_a_worker_that_comes_again_hears_of_what_was_applied() -> None:
    """What waits in the queues would be lost with this server, if that died next."""
    d = Driver(2)
    d.init(a=np.zeros(2, np.float32))
    one = [(np.ones(2, np.float32), CODES["float32"])]
    for number in (1, 2, 3):
        d.store.request(number, 0, [0], one, numbers=[number])
    d.store.request("other", 1, [0], one, numbers=[1])
    assert d.store.taken(0) == ([0], [1])
    assert d.store.taken(1) == ([0], [1])
    assert d.store.request("again", 0, [0], one, numbers=[3]) == [], "it is there, and is answered in its turn"

"""The scheduler's barriers and directory, as state machines."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from pslite.errors import ConflictError, PeerLost
from pslite.postoffice.barrier import Answer, Barriers
from pslite.postoffice.directory import Directory
from pslite.wire import Kind, Message, Op


def request(sender: int, customer: int = 0) -> Message:
    return Message(Kind.REQUEST, op=Op.BARRIER, sender=sender, customer=customer)


def senders(answers: list[Answer]) -> list[int]:
    return [a.request.sender for a in answers]


def test_a_barrier_opens_when_all_are_there() -> None:
    barriers = Barriers()
    assert barriers.enter(request(9), 4, [9, 11, 13]) == []
    second = request(13)
    assert barriers.enter(second, 4, [9, 11, 13]) == []
    assert barriers.missing(second) == ["worker 1"]
    answers = barriers.enter(request(11), 4, [9, 11, 13])
    assert sorted(senders(answers)) == [9, 11, 13]
    assert all(a.error is None for a in answers)
    assert barriers.missing(second) == []


def test_it_can_be_used_again() -> None:
    barriers = Barriers()
    for _ in range(3):
        assert barriers.enter(request(9), 4, [9, 11]) == []
        assert len(barriers.enter(request(11), 4, [9, 11])) == 2


def test_groups_and_customers_have_barriers_of_their_own() -> None:
    barriers = Barriers()
    assert barriers.enter(request(9, 0), 4, [9, 11]) == []
    assert barriers.enter(request(11, 1), 4, [9, 11]) == []
    assert barriers.enter(request(11, 0), 6, [8, 9, 11]) == []
    assert len(barriers.enter(request(11, 0), 4, [9, 11])) == 2


def test_arriving_twice_counts_once() -> None:
    """The first arrival gave up waiting, for instance by a timeout."""
    barriers = Barriers()
    first = request(9)
    barriers.enter(first, 4, [9, 11])
    assert [a.request for a in barriers.enter(request(9), 4, [9, 11])] == [first]
    assert sorted(senders(barriers.enter(request(11), 4, [9, 11]))) == [9, 11]


def test_whoever_waits_for_a_node_that_is_gone_gets_the_error() -> None:
    barriers, error = Barriers(), PeerLost(node="worker 1", reason="gone")
    barriers.enter(request(9), 4, [9, 11, 13])
    barriers.enter(request(8), 2, [8, 10])
    answers = barriers.on_gone(11, error)
    assert senders(answers) == [9]
    assert answers[0].error is error
    assert barriers.on_gone(11, error) == []
    assert barriers.missing(request(8)) == []


def test_a_node_that_dies_in_the_barrier_ends_it_for_the_others_there() -> None:
    barriers = Barriers()
    barriers.enter(request(11), 4, [9, 11, 13])
    barriers.enter(request(9), 4, [9, 11, 13])
    answers = barriers.on_gone(11, PeerLost(node="worker 1", reason="gone"))
    assert {a.request.sender for a in answers} == {9, 11}
    assert all(isinstance(a.error, PeerLost) for a in answers)


@given(st.permutations([8, 9, 10, 11, 13]), st.integers(0, 3))
def test_any_order_of_arrival(order: list[int], rounds: int) -> None:
    barriers = Barriers()
    for _ in range(rounds + 1):
        counts = [len(barriers.enter(request(node), 6, order)) for node in order]
        assert counts == [0, 0, 0, 0, 5]


# The directory


def look(*names: str) -> Message:
    return Message(Kind.REQUEST, op=Op.LOOKUP, sender=11, body=list(names))


def test_a_look_up_waits_until_every_name_is_published() -> None:
    directory, waiter = Directory(), look("a", "b")
    assert directory.lookup(waiter, ["a", "b"]) == []
    assert len(directory.publish(request(9), {"a": 1}, 0)) == 1
    assert directory.missing(waiter) == ["the init of 'b' by worker 0"]
    answers = directory.publish(request(9), {"b": [2], "c": 3}, 0)
    assert [a.body for a in answers] == [None, {"a": 1, "b": [2]}]
    assert directory.missing(waiter) == []
    assert directory.lookup(look("c"), ["c"])[0].body == {"c": 3}


def test_the_same_record_again_changes_nothing() -> None:
    directory = Directory()
    directory.publish(request(9), {"a": [1, "float32"]}, 0)
    [answer] = directory.publish(request(11), {"a": [1, "float32"]}, 1)
    assert answer.error is None


def test_another_record_of_the_same_name_is_a_conflict_and_publishes_nothing() -> None:
    directory = Directory()
    directory.publish(request(9), {"a": [1]}, 0)
    [answer] = directory.publish(request(11), {"b": 1, "a": [2]}, 1)
    assert isinstance(answer.error, ConflictError)
    assert (answer.error.rank, answer.error.got, answer.error.expected) == (1, "[2]", "[1]")
    assert directory.lookup(look("b"), ["b"]) == []


def test_when_the_publisher_is_gone_look_ups_fail() -> None:
    directory, error = Directory(), PeerLost(node="worker 0", reason="gone")
    directory.publish(request(9), {"a": 1}, 0)
    directory.lookup(look("b"), ["b"])
    [answer] = directory.fail(error)
    assert answer.error is error
    assert directory.fail(error) == []
    assert directory.lookup(look("a"), ["a"])[0].body == {"a": 1}, "what was published stays"

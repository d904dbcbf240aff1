"""When a checkpoint of the whole job begins and is complete: whatever comes in whatever order."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvstore.checkpoint.job import Id, Stamp
from kvstore.server.coordinator import Coordinator
from kvstore.server.ticket import Ticket
from pslite.errors import CheckpointError, PSError

SERVERS = 3
STAMPS = [Stamp(100 + server, server) for server in range(SERVERS)]


def started(**options: Any) -> tuple[Coordinator, Id]:
    coordinator = Coordinator(SERVERS, Id(4, 7), **{"within": 10.0, **options})
    coordinator.ask()
    id = coordinator.begin(0.0)
    assert id is not None
    return coordinator, id


def test_numbers_go_on_and_the_epoch_is_a_new_one() -> None:
    coordinator, id = started()
    assert id == (5, 8)
    coordinator.fail(id, PSError("full"))
    coordinator.ask()
    assert coordinator.begin(1.0) == (5, 9), "a number is never used again"


def test_one_is_under_way_at_a_time_and_who_asks_meanwhile_gets_the_next() -> None:
    coordinator, id = started()
    late = Ticket("late", 0)
    coordinator.ask(late)
    assert coordinator.begin(1.0) is None
    for server in range(SERVERS):
        coordinator.on_part(server, id, STAMPS[server], 0)
    coordinator.complete(id, "first")
    assert coordinator.done == [], "its pushes may not be in the first"
    second = coordinator.begin(2.0)
    assert second is not None and second > id
    coordinator.complete(second, "second")
    assert coordinator.done == [late] and late.body == "second"


def test_servers_that_take_too_long_are_named_and_the_next_begins() -> None:
    coordinator, id = started()
    ticket = Ticket("t", 0)
    coordinator.on_part(1, id, STAMPS[1], 0)
    coordinator.ask(ticket)
    assert coordinator.begin(9.0) is None
    assert coordinator.missing(lambda token: token == "t") == [
        f"server {server} (to write its part of checkpoint {id})" for server in (0, 2)
    ]
    assert coordinator.begin(11.0) == (5, 9)
    assert coordinator.failed == 1 and "server 0" in str(coordinator.error) and "server 1" not in str(coordinator.error)


def test_a_job_that_has_not_all_keys_back_writes_none_with_less() -> None:
    coordinator, id = started(elements=10)
    for server in range(SERVERS):
        assert coordinator.on_part(server, id, STAMPS[server], 3) is None
    assert coordinator.failed == 1 and "not all keys" in str(coordinator.error)
    coordinator.ask()
    id = coordinator.begin(1.0) or id
    assert [coordinator.on_part(server, id, STAMPS[server], 4) for server in range(SERVERS)][-1] == STAMPS


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "begin", "part", "part", "part", "complete", "fail", "ended"]),
        st.integers(0, SERVERS - 1),
        st.integers(-1, 1),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens(steps: list[tuple[str, int, int]]) -> None:
    """A manifest has parts of its own number from every server; each ticket is answered once, by a later checkpoint."""
    coordinator = Coordinator(SERVERS, Id(0, 0), within=None)
    begun: list[Id] = []
    told: dict[Id, set[int]] = {}
    asked: dict[int, int] = {}  # by ticket: how many had begun
    answered: list[Ticket] = []
    ready: Id | None = None
    for step, server, shift in steps:
        current = begun[-1] if begun else Id(1, 1)
        id = Id(1, current.number + shift)
        if step == "ask":
            asked[len(asked)] = len(begun)
            coordinator.ask(Ticket(len(asked) - 1, 0))
        elif step == "begin":
            if (new := coordinator.begin(0.0)) is not None:
                assert not begun or new > begun[-1]
                begun.append(new)
                ready = None
        elif step == "part":
            told.setdefault(id, set())
            stamps = coordinator.on_part(server, id, Stamp(id.number, server), 0)
            if begun and id == begun[-1]:
                told[id].add(server)
            if stamps is not None:
                assert stamps == [Stamp(id.number, rank) for rank in range(SERVERS)] and id == begun[-1]
                assert told[id] == set(range(SERVERS)) and ready is None
                ready = id
        elif step == "complete" and ready is not None:
            coordinator.complete(ready, str(ready))
        elif step == "fail":
            coordinator.fail(id, CheckpointError(path="p", reason="full"))
        elif step == "ended":
            coordinator.on_server_ended(PSError("gone"))
        answered += coordinator.done
        coordinator.done = []
        assert coordinator.written + coordinator.failed <= len(begun)
    assert len({ticket.token for ticket in answered}) == len(answered)
    for ticket in answered:
        assert (ticket.body is None) != (ticket.error is None)
        if ticket.body is not None:
            assert ticket.body in [str(id) for id in begun[asked[ticket.token] :]], "it began before it was asked for"


def test_a_server_that_dies_when_all_parts_are_there_harms_nothing() -> None:
    """The manifest may be there already: without the parts it would be one of nothing."""
    coordinator, id = started()
    for server in range(SERVERS):
        stamps = coordinator.on_part(server, id, STAMPS[server], 0)
    assert stamps == STAMPS
    assert not coordinator.fail(id, PSError("server 1 died"))
    coordinator.on_server_ended(PSError("server 1 died"))  # type: ignore[arg-type]
    coordinator.ask()
    assert coordinator.begin(1000.0) is None, "it is still under way"
    coordinator.complete(id, "path")
    assert (coordinator.written, coordinator.failed) == (1, 0)


def test_a_manifest_that_cannot_be_written_fails_the_checkpoint() -> None:
    coordinator, id = started()
    for server in range(SERVERS):
        coordinator.on_part(server, id, STAMPS[server], 0)
    assert coordinator.fail(id, PSError("full"), of_files=True)
    assert (coordinator.written, coordinator.failed) == (0, 1)

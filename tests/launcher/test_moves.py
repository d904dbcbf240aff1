"""Which server rank is in which process: no process is started here."""

from __future__ import annotations

import random

import pytest

from launcher.moves import Action, Adopt, Done, Moved, Moves, Release, Retire, ScaleError, Start


def test_ranks_are_spread_over_the_processes() -> None:
    moves = Moves(range(5), 2)
    assert [moves.ranks_of(process) for process in range(3)] == [[0, 2, 4], [1, 3], []]


def test_more_servers_are_all_started_before_any_rank_moves() -> None:
    moves = Moves(range(3), 1)
    assert moves.scale(3, 0) == [Start(1), Start(2)]
    assert moves.ready(1, 1) == []
    assert moves.ready(2, 2) == [Release(0, 1)]
    assert moves.released(1) == [Adopt(1, 1)]
    assert moves.serving(1, 2.5) == [Release(0, 2)]
    assert moves.released(2) == [Adopt(2, 2)]
    assert moves.serving(2, 4) == [Done((Moved(1, 0, 1, 0.5), Moved(2, 0, 2, 1.5)))]
    assert moves.home == {0: 0, 1: 1, 2: 2}


def test_who_has_no_rank_left_ends_and_then_all_is_done() -> None:
    moves = Moves(range(3), 3)
    assert moves.scale(2, 0) == [Release(2, 2)]
    assert moves.released(2) == [Adopt(0, 2), Retire(2)]
    assert moves.serving(2, 1) == []
    assert moves.ended(2, 2, "exit code 0") == [Done((Moved(2, 2, 0, 1),))]


def test_nothing_to_do_is_done_at_once() -> None:
    assert Moves(range(3), 2).scale(2, 0) == [Done(())]


@pytest.mark.parametrize("processes", [0, 4, -1])
def test_there_are_as_many_servers_as_shards_at_most(processes: int) -> None:
    with pytest.raises(ScaleError, match=f"^{processes} servers: this job has 3 shards: give 1 to 3"):
        Moves(range(3), 1).scale(processes, 0)


def test_one_change_at_a_time() -> None:
    moves = Moves(range(3), 3)
    moves.scale(2, 0)
    with pytest.raises(ScaleError, match="is being changed"):
        moves.scale(1, 0)


def test_a_source_that_dies_has_released() -> None:
    moves = Moves(range(2), 1)
    moves.scale(2, 0)
    moves.ready(1, 0)
    assert moves.ended(0, 1, "signal 9") == [Adopt(1, 1)]
    assert moves.ranks_of(0) == [0]  # it is started again with this
    assert moves.released(1) == []  # it had said so before
    assert moves.serving(1, 2) == [Done((Moved(1, 0, 1, 2),))]


def test_a_source_that_dies_with_its_last_rank_is_not_missed() -> None:
    moves = Moves(range(2), 2)
    assert moves.scale(1, 0) == [Release(1, 1)]
    assert moves.ended(1, 1, "signal 9") == [Adopt(0, 1), Retire(1)]
    assert moves.ranks_of(1) == []
    assert moves.serving(1, 2) == [Done((Moved(1, 1, 0, 2),))]


def test_a_target_that_dies_before_it_has_the_rank_is_started_with_it() -> None:
    moves = Moves(range(2), 1)
    moves.scale(2, 0)
    moves.ready(1, 0)
    assert moves.ended(1, 1, "signal 9") == []
    assert moves.released(1) == [Start(1)]
    assert moves.serving(1, 2) == [Done((Moved(1, 0, 1, 2),))]


def test_a_target_that_dies_with_the_rank_is_started_again_with_it() -> None:
    moves = Moves(range(2), 1)
    moves.scale(2, 0)
    moves.ready(1, 0)
    moves.released(1)
    assert moves.ended(1, 1, "signal 9") == []
    assert moves.ranks_of(1) == [1]
    assert moves.ready(1, 2) == []
    assert moves.serving(1, 2) == [Done((Moved(1, 0, 1, 2),))]


def test_a_process_that_never_serves_ends_the_change_and_nothing_moves() -> None:
    moves = Moves(range(3), 1)
    moves.scale(3, 0)
    moves.ready(1, 0)
    assert moves.ended(2, 1, "exit code 1") == [Retire(1)]
    [done] = moves.ended(1, 1, "exit code 0")
    assert done == Done((), "server 2 ended before it could serve: exit code 1")
    assert moves.ranks_of(0) == [0, 1, 2]
    assert moves.scale(3, 0) == [Start(1), Start(2)]


def test_the_end_of_the_job_ends_a_change() -> None:
    moves = Moves(range(2), 1)
    moves.scale(2, 0)
    assert moves.job_over() == [Retire(1)]
    assert moves.ended(1, 1, "exit code 0") == [Done((), "the job is over")]
    with pytest.raises(ScaleError, match="the job is over"):
        moves.scale(2, 0)


@pytest.mark.parametrize("seed", range(200))
def test_whatever_dies_every_rank_is_served_by_one_process_in_the_end(seed: int) -> None:
    """A model of processes that take orders late, or die and are started again with their ranks."""
    rng = random.Random(seed)
    ranks = rng.randint(1, 6)
    count = rng.randint(1, ranks)
    moves = Moves(range(ranks), count)
    serving = {rank: rank % count for rank in range(ranks)}
    inboxes: dict[int, list[tuple[str, int]]] = {process: [] for process in range(count)}  # of those that run

    def act(actions: list[Action]) -> bool:
        for action in actions:
            match action:
                case Start(process):
                    start(process)
                case Release(process, rank):
                    inboxes[process].append(("release", rank))
                case Adopt(process, rank):
                    inboxes[process].append(("adopt", rank))
                case Retire(process):
                    if process in inboxes:
                        inboxes[process].append(("retire", 0))
        return any(isinstance(action, Done) for action in actions)

    def start(process: int) -> None:
        assert process not in inboxes
        inboxes[process] = [("ready", 0), *(("adopt", rank) for rank in moves.ranks_of(process))]

    def die(process: int) -> bool:
        del inboxes[process]
        for rank in [rank for rank, at in serving.items() if at == process]:
            del serving[rank]
        done = act(moves.ended(process, 0, "signal 9"))
        if moves.ranks_of(process) and process not in inboxes:
            start(process)
        return done

    def step(process: int) -> bool:
        order, rank = inboxes[process].pop(0)
        match order:
            case "ready":
                return act(moves.ready(process, 0))
            case "adopt":
                assert rank not in serving, "two processes write to the same memory"
                serving[rank] = process
                return act(moves.serving(rank, 0))
            case "release":
                assert serving.pop(rank) == process
                return act(moves.released(rank))
        return die(process)

    for _ in range(4):
        done, deaths = act(moves.scale(rng.randint(1, ranks), 0)), 2
        while not done or any(inboxes.values()):
            process = rng.choice([process for process, inbox in inboxes.items() if inbox])
            if deaths and rng.random() < 0.1:
                deaths, done = deaths - 1, die(process) or done
            else:
                done = step(process) or done
        assert serving == moves.home
        assert set(inboxes) == set(moves.home.values())

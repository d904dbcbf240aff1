"""What a restarted worker redoes while its predecessor's pushes wait: each answer has its place, nobody is locked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pslite.dtypes import CODES
from pslite.errors import PeerLost

from .driving import Answers, Driver, answers

KEYS = np.array([0, 1], np.uint64)
DEAD = PeerLost(node="worker", reason="it died")


class Server(Driver):
    """One with keys 0 and 1, whose requests name both: key by key, or as a bundle."""

    def __init__(self, bundled: bool) -> None:
        super().__init__(2)
        self.bundled = bundled
        self.init(a=np.zeros(2, np.float32), b=np.zeros(2, np.float32))

    def ask(self, token: Any, rank: int, number: int = 0, pull: bool = True) -> Answers:
        """Push the number to both keys, or with number 0 pull them."""
        code, one = CODES["float32"], np.full(2, number, np.float32)
        if not self.bundled:
            numbers = [number] * 2 if number else []
            contents = [(one, code)] * 2 if number else []
            return answers(self.store.request(token, rank, [0, 1], contents, pull=pull, numbers=numbers))
        numbers_of_all = np.full(2, number, np.uint64) if number else None
        pushed = (np.full(4, number, np.float32), code) if number else None
        return answers(self.store.request_all(token, rank, KEYS, pushed, pull, numbers=numbers_of_all))

    def rounds(self, upto: int) -> None:
        """Both workers push all rounds up to this one."""
        for number in range(1, upto + 1):
            for rank in (0, 1):
                self.ask(None, rank, number)


def tokens(found: Answers) -> list[Any]:
    assert not any(isinstance(result, Exception) for _, result in found)
    return [token for token, _ in found]


@pytest.fixture(params=[False, True], ids=["key by key", "bundle"])
def bundled(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_two_restarted_workers_whose_last_pushes_came_to_one_server_each(bundled: bool) -> None:
    """Each has to hear of the step before to push what the other one's push waits for."""
    servers = [Server(bundled), Server(bundled)]
    for rank, server in enumerate(servers):
        server.rounds(6)
        assert server.ask("lost", rank, 7) == []
        server.store.on_peer_away(rank, DEAD)
    for rank in (0, 1):
        for server in servers:
            assert tokens(server.ask("6 again", rank, 6)) == ["6 again"]
    for rank, server in enumerate(servers):
        assert server.ask("7 again", rank, 7) == []
        assert sorted(tokens(server.ask("7", 1 - rank, 7))) == ["7", "7 again", "lost"]
        assert server.value("a")[0] == 14.0, "the sum of round 7"


def test_what_is_redone_is_answered_after_its_own_round_and_pulls_with_it(bundled: bool) -> None:
    server = Server(bundled)
    server.rounds(6)
    for number in (7, 8):
        assert server.ask(f"lost {number}", 0, number) == []
    server.store.on_peer_away(0, DEAD)
    assert tokens(server.ask("first pull", 0)) == ["first pull"]
    assert tokens(server.ask("6 again", 0, 6)) == ["6 again"]
    assert tokens(server.ask("pull of 6", 0)) == ["pull of 6"]
    assert server.ask("7 again", 0, 7) == server.ask("pull of 7", 0) == server.ask("8 again", 0, 8) == []
    assert server.ask("9", 0, 9) == server.ask("pull of 9", 0) == []
    answered = {7: {"lost 7", "7 again", "pull of 7"}, 8: {"lost 8", "8 again"}, 9: {"9", "pull of 9"}}
    for number, expected in answered.items():
        found = server.ask("other's", 1, number)
        assert set(tokens(found)) == {"other's"} | expected
        assert {float(array.flat[0]) for _, arrays in found for array in arrays} == {2.0 * number}
    assert server.store.parked == 0


def test_a_worker_that_dies_again_while_it_redoes(bundled: bool) -> None:
    server = Server(bundled)
    server.rounds(6)
    assert server.ask("lost", 0, 7) == []
    for _ in range(2):
        server.store.on_peer_away(0, DEAD)
        assert tokens(server.ask("6 again", 0, 6)) == ["6 again"]
        assert server.ask("7 again", 0, 7) == []
    assert tokens(server.ask("other's", 1, 7)).count("7 again") == 2
    assert server.store.parked == 0

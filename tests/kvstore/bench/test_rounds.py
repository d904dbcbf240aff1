"""The loop that times rounds, on a worker that only notes what is asked of it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from kvstore.bench import jobs
from kvstore.bench.limit import measure as measure_limit
from kvstore.bench.peers.run import AFTER, WARM_UP, Job, cpu_seconds, measure, pss


class Noting:
    rank = 0
    processes = ""

    def __init__(self) -> None:
        self.said: list[str] = []

    def setup(self) -> None:
        self.said.append("setup")

    def begin(self, number: int) -> None:
        self.said.append(f"begin {number}")

    def barrier(self) -> None:
        self.said.append("barrier")

    def call(self) -> None:
        self.said.append("call")

    def check(self, number: int) -> None:
        self.said.append(f"check {number}")

    def finish(self) -> None:
        self.said.append("finish")


def job(directory: Path, rounds: int = 3, calls: int = 1, busy: bool = False) -> Job:
    return Job(
        shapes=[[1]],
        rows=0,
        calls=calls,
        pushpull=False,
        server="none",
        type="dist_sync",
        arrays="plain",
        each=False,
        rounds=rounds,
        workers=1,
        busy=busy,
        directory=str(directory),
    )


def test_every_round_begins_at_a_barrier_and_is_checked(tmp_path: Path) -> None:
    worker = Noting()
    measure(worker, job(tmp_path, calls=2))
    total = WARM_UP + 3 + AFTER
    rounds = [f"begin {n}|barrier|call|call|check {n}" for n in range(total)]
    expected = ["setup", *rounds[:WARM_UP], "barrier", *rounds[WARM_UP:-AFTER], "barrier", *rounds[-AFTER:]]
    assert "|".join(worker.said) == "|".join([*expected, "barrier", "finish"])


def test_the_rounds_that_count_are_reported(tmp_path: Path) -> None:
    measure(Noting(), job(tmp_path, rounds=5, busy=True))
    found = jobs.read(tmp_path, 1)
    assert len(found.rounds) == 5
    assert min(found.rounds) > 0
    assert found.cpu.keys() == found.memory.keys() == {"worker"}


def test_a_round_takes_as_long_as_its_slowest_worker(tmp_path: Path) -> None:
    def process(role: str, cpu: float, memory: int) -> dict[str, object]:
        return {"role": role, "rank": 0, "pid": 1, "cpu": cpu, "pss": memory}

    first = {"rounds": [1.0, 5.0], "processes": [process("worker", 1, 10), process("server", 3, 7)]}
    second = {"rounds": [2.0, 4.0], "processes": [process("worker", 2, 20)]}
    for rank, worker in enumerate((first, second)):
        (tmp_path / f"worker-{rank}.json").write_text(json.dumps(worker))
    found = jobs.read(tmp_path, 2)
    assert found.rounds == [2.0, 5.0]
    assert (found.cpu, found.memory) == ({"worker": 3, "server": 3}, {"worker": 20, "server": 7})


def test_cpu_seconds_of_a_process_are_those_of_its_own_clock() -> None:
    before = time.process_time()
    found = cpu_seconds(os.getpid())
    assert before <= found <= time.process_time()


def test_memory_of_this_process() -> None:
    assert pss("self") > 1 << 20


def test_the_limit_is_measured_as_often_as_asked() -> None:
    assert len(measure_limit(floats=100_003, workers=3, rounds=4)) == 4

"""10 million pairs of a uint64 key and a float32 through pslite.KVWorker, as in ps-lite's test_kv_app_benchmark.

``python -m kvstore.bench.pairs JOB.json`` is one process of the job, under the launcher: one worker and one server.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pslite
from pslite import KVMeta, KVPairs, KVServer, KVServerDefaultHandle, KVWorker, Postoffice

from . import jobs
from .expected import WrongValue
from .processes import execute

PAIRS = 10_000_000
ANSWER, STORE, FORGET = range(3)  # commands: answer without storing, use the default handle, start with a new one

Times = dict[str, dict[str, list[float]]]


class _Handle:
    """Leading thread only."""

    def __init__(self) -> None:
        self._default = KVServerDefaultHandle()
        self._zeros = np.zeros(0, np.float32)

    def __call__(self, meta: KVMeta, pairs: KVPairs, server: KVServer) -> None:
        if meta.cmd == STORE:
            self._default(meta, pairs, server)
        elif meta.cmd == FORGET:
            self._default = KVServerDefaultHandle()
            server.response(meta)
        else:
            if self._zeros.size != len(pairs.keys):
                self._zeros = np.zeros(len(pairs.keys), np.float32)
            server.response(meta, KVPairs(pairs.keys, self._zeros) if meta.pull else None)


def measure(rounds: int, transport: str | None, pairs: int = PAIRS) -> Times:
    """Seconds of pushes and pulls, by what the server does. Raises JobFailed."""
    with tempfile.TemporaryDirectory(prefix="pslite-bench-") as directory:
        job = Path(directory, "job.json")
        job.write_text(json.dumps({"rounds": rounds, "pairs": pairs, "result": str(Path(directory, "result.json"))}))
        command = jobs.launched(1, 1, transport, "kvstore.bench.pairs", str(job))
        execute([("launcher", command)], Path(directory))
        found: Times = json.loads(Path(directory, "result.json").read_text())
        return found


def work(office: Postoffice, rounds: int, pairs: int) -> Times:
    """The worker's part."""
    kv = KVWorker(0, 0, office)
    keys = np.arange(pairs, dtype=np.uint64) * np.uint64(2**64 // pairs)
    values, out = np.ones(pairs, np.float32), np.zeros(pairs, np.float32)
    one = keys[:1]

    def push(cmd: int) -> float:
        return _seconds(lambda: kv.wait(kv.push(keys, values, cmd=cmd)))

    def pull(cmd: int, expected: float) -> float:
        took = _seconds(lambda: kv.wait(kv.pull(keys, out, cmd=cmd)))
        if not (out == expected).all():
            raise WrongValue(f"a pull brought {out.min()} to {out.max()}, expected {expected}")
        return took

    answered, new, known = _times(), _times(), _times()
    for number in range(1 + rounds):
        kv.wait(kv.push(one, values[:1], cmd=FORGET))
        measured = [
            (answered, push(ANSWER), pull(ANSWER, 0)),
            (new, push(STORE), pull(STORE, 1)),
            (known, push(STORE), pull(STORE, 2)),
        ]
        for times, pushed, pulled in measured if number else ():  # the first round is to warm up
            times["push"].append(pushed)
            times["pull"].append(pulled)
    return {"answers only": answered, "default handle, new keys": new, "default handle, known keys": known}


def _times() -> dict[str, list[float]]:
    return {"push": [], "pull": []}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(words: Sequence[str]) -> None:
    """Run this process's part of the job."""
    job = json.loads(Path(words[0]).read_text())
    office = pslite.start()
    if office.role == "server":
        KVServer(0, office).set_handle(_Handle())
    elif office.role == "worker":
        Path(job["result"]).write_text(json.dumps(work(office, job["rounds"], job["pairs"])))
    office.finalize()


if __name__ == "__main__":
    main(sys.argv[1:])

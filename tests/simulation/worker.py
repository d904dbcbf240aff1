"""A worker: it pushes its lanes step by step, reads them back, and goes on where its predecessor was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from kvstore.commands import BUNDLE, CONTROL_APP, DATA, DATA_APP
from pslite import WORKER_GROUP, ids
from pslite.errors import PSError
from pslite.kv_pairs import KVPairs, pack, unpack
from pslite.postoffice.core import error_of
from pslite.wire import Flag, Kind, Message, Op

from .process import Process
from .world import Violation

_SHIFT = 32  # a push's number is its step, and which one of the key it is within the step
_LAST = 10**6  # the number of the barrier at the end


class Worker(Process):
    """The script is a generator: it yields what it waits for."""

    _script: Iterator[Callable[[], bool]] | None = None
    _until: Callable[[], bool] = staticmethod(lambda: True)
    error: PSError | None = None  # what it was answered
    finished = False  # it has left the job

    def on_join(self) -> None:
        self._plan = self.job.plan
        self._unanswered = 0
        self._sent = dict.fromkeys(self.job.keys, 0)  # pushes so far, by key
        self._seen = {key: [0] * self._plan.workers for key in self.job.keys}
        self._columns: dict[tuple[int, ...], Any] = {}  # lists of keys, as they travel
        self.run(self.core.connections())
        self._script = self._work()

    def progress(self) -> None:
        while self._script is not None and self.error is None and self._until():
            self._until = next(self._script, None) or self._over
        if self.error is not None and not self.leaving:
            self._fail(self.error)

    def _over(self) -> bool:
        self._script = None
        return False

    def _fail(self, error: PSError) -> None:
        if self._plan.lost < 0:
            self.job.launcher.give_up(self, error)
            return
        self.leaving = True
        self._request(ids.SCHEDULER, Message(Kind.REQUEST, op=Op.LEAVE, body=["failed", "", False]), self._left)

    def _left(self, reply: Message | PSError) -> None:
        self.finished = True
        self.world.after(0.0, lambda: self.job.launcher.end(self, 0 if self.error is None else 1))

    # -- the script ---------------------------------------------------------------------------------------------------

    def _work(self) -> Iterator[Callable[[], bool]]:
        plan, first = self._plan, 1
        if self.core.again:
            taken: dict[int, int] = {}
            for server in range(plan.servers):
                message = Message(Kind.REQUEST, op=Op.SIMPLE, app=CONTROL_APP, body=["resume", None])
                self._ask(ids.server_id(server), message, lambda reply: taken.update(zip(*reply.body, strict=True)))
            yield lambda: not self._unanswered
            first = max(1, min(taken.values()) >> _SHIFT)
            self._sent = dict.fromkeys(self._sent, (first - 1) * plan.pushes)
        for step in range(first, plan.steps + 1):
            for number in range(1, plan.pushes + 1):
                self._push(step, number)
            ahead = (plan.ahead - 1) * self._answers_of_a_step()
            yield lambda ahead=ahead: self._unanswered <= ahead  # type: ignore[misc]
            if plan.think:
                due = self.world.now + self.world.rng.random() * plan.think
                self.world.at(due, self.poke)
                yield lambda due=due: self.world.now >= due  # type: ignore[misc]
            if step % plan.meet == 0:
                yield lambda: not self._unanswered
                self._meet(step)
                yield lambda: not self._unanswered
        yield lambda: not self._unanswered
        self._meet(_LAST)
        yield lambda: not self._unanswered
        self._pull()
        yield lambda: not self._unanswered
        self.leaving = True
        self._request(ids.SCHEDULER, Message(Kind.REQUEST, op=Op.LEAVE, body=["finished", "", True]), self._left)

    def _answers_of_a_step(self) -> int:
        messages = self._plan.servers * (self._plan.keys if self._plan.style == "single" else 1)
        return self._plan.pushes * (messages if self._plan.both else messages + self._plan.servers)

    def _meet(self, number: int) -> None:
        self._ask(ids.SCHEDULER, Message(Kind.REQUEST, op=Op.BARRIER, body=[WORKER_GROUP, number]), lambda _: None)

    def _push(self, step: int, number: int) -> None:
        """Push every key; pull it in the same request, or in another one behind it."""
        pull = Flag.PULL if self._plan.both else 0
        turn = -1 if self.rank in self._plan.backwards else 1
        for server in range(self._plan.servers)[::turn]:
            keys = self.job.keys_of(server)
            parts = [[key] for key in keys[::turn]] if self._plan.style == "single" else [keys]
            for part in parts:
                self._data(server, part, Flag.PUSH | pull, step << _SHIFT | number)
        if not pull and step % self._plan.pull_every == 0:
            self._pull()

    def _pull(self) -> None:
        for server in range(self._plan.servers):
            self._data(server, self.job.keys_of(server), Flag.PULL)

    def _data(self, server: int, keys: list[int], flags: int, number: int = 0) -> None:
        bundle = self._plan.style == "bundle"
        column = self._columns.get(tuple(keys))
        if column is None:
            column = self._columns[tuple(keys)] = np.array(keys, np.uint64)
        pairs = KVPairs(column, [])
        if flags & Flag.PUSH:
            values = [self._contribution(key) for key in keys]
            pairs.vals = np.array([n for value in values for n in value], np.float32) if bundle else [
                np.array(value, np.float32) for value in values
            ]
            pairs.rounds = np.full(len(keys), number, np.uint64)
        message = Message(Kind.REQUEST, op=Op.DATA, app=DATA_APP, cmd=BUNDLE if bundle else DATA, flags=flags)
        message.priority = self.world.rng.randrange(3) if self._plan.window else 0
        least = {key: self._least(key) for key in keys} if flags & Flag.PULL else {}
        sent = {key: self._sent[key] for key in keys} if flags & Flag.PUSH else {}
        self._ask(ids.server_id(server), pack(pairs, message, None), partial(self._on_answer, sent, least))

    def _contribution(self, key: int) -> list[float]:
        number = self._sent[key] = self._sent[key] + 1
        attempted = self.job.oracle.attempted[key]
        attempted[self.rank] = max(attempted[self.rank], number)
        value = [0.0] * (2 * self._plan.workers)
        value[self.rank], value[self._plan.workers + self.rank] = 1, number
        return value

    def _least(self, key: int) -> list[int]:
        known = self.job.oracle.least(key, self.rank, self._sent[key])
        return list(map(max, known, self._seen[key]))

    # -- answers ------------------------------------------------------------------------------------------------------

    def _on_answer(self, sent: dict[int, int], least: dict[int, list[int]], reply: Message) -> None:
        for key, number in sent.items():
            acked = self.job.oracle.acked[key]
            acked[self.rank] = max(acked[self.rank], number)
        if not least:
            return
        pairs = unpack(reply)
        assert pairs.versions is not None
        arrays = pairs.vals if isinstance(pairs.vals, list) else [pairs.vals]
        flat = [n for array in arrays for n in array.tolist()]
        size = 2 * self._plan.workers
        for i, (key, version) in enumerate(zip(pairs.keys.tolist(), pairs.versions.tolist(), strict=True)):
            lanes = self.job.oracle.on_read(self.name, key, version, flat[i * size : (i + 1) * size], least[key])
            self._seen[key] = list(map(max, lanes, self._seen[key]))

    def _ask(self, node: int, message: Message, on_reply: Callable[[Message], None]) -> None:
        """A request whose answer the script waits for."""
        self._unanswered += 1

        def answered(reply: Message | PSError) -> None:
            self.error = self.error or error_of(reply)
            if isinstance(reply, Message):
                self.job.oracle.on_accepted(self, reply)
            if self.error is None:
                assert isinstance(reply, Message)
                on_reply(reply)
            self._unanswered -= 1
            if self._unanswered < 0:
                raise Violation(f"{self.name} was answered twice")

        self._request(node, message, answered)

    def _request(self, node: int, message: Message, on_reply: Callable[[Message | PSError], None]) -> None:
        _, actions = self.core.request(self.world.now, node, message, on_reply)
        self.run(actions)

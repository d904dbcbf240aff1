"""Random sequences of calls by up to four workers, on stores and on a model of them in plain numpy: the same bits.

The distributed store runs in one thread (``direct.py``), and hypothesis chooses when which message arrives.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import kvstore
from kvstore.ledger import MAX_AHEAD
from kvstore.sparse import row_sparse_array, zeros
from pslite.errors import PSError, RemoteError

from .direct import Cluster
from .model import POISON, Model, Rule

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # about 20 s each

SEQUENCES, STEPS = 2000, 15
SPECS = [  # shape, dtype, row-sparse
    ((3, 2), "float32", False),
    ((5, 2), "float32", True),
    ((4,), "float16", False),
    ((4, 3), "float16", True),
    ((2, 2), "int32", False),
    ((3,), "int32", True),
    ((), "float32", False),
    ((4, 2), "float32", False),
]
KEYS = range(4)  # places in the list of a sequence's keys
SOME = [[0], [1], [2], [3], [0, 1], [2, 1], [3, 0], [1, 2, 0]]
NAMES = {False: [3, -1, 7, 0], True: ["w", "a", "", "é"]}
BURSTS = [[0], [1], [2], [3], [0, 1], [1, 0], [1, 1, 0], [0, 0, 1, 1], [2, 0, 1], [0, 1, 2, 3], [3, 2, 1, 0]]
RULES = [("sgd", 0.5, 0.9, True), ("sgd", 0.3, 0.9, False), ("sgd", 0.5, 0.0, True), ("test",), ("mix",)]
FORMS = ["whole", "whole", "rows", "no rows", "poison"]
MISTAKES = ["unknown", "type of key", "shape", "dtype", "storage", "both", "init", "bad init", "row", "row of dense"]


@pytest.fixture(autouse=True)
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists travel as one however short they are."""
    monkeypatch.setattr("kvstore.lists.FEWEST", 2)


@kvstore.updater("difference")
def difference(key: Any, received: Any, stored: Any) -> None:
    dense = isinstance(stored, np.ndarray)
    if np.any((received if dense else received.data) > POISON):
        raise ValueError("poison")
    stored[... if dense else slice(None)] = received - stored


@dataclass(eq=False)
class Call:
    """One that may not be done yet."""

    handle: Any
    rounds: dict[Any, int]  # whose values it is to see
    pushes: bool
    outs: list[Any]  # (key, array to be filled or None, row ids or None)


class Failed:
    """The handle of a call that raised at once, as a local store's do."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def done(self) -> bool:
        return True

    def exception(self) -> Exception:
        return self.error


class Machine(RuleBasedStateMachine):
    """The steps that both kinds of stores have."""

    servers = 0  # none: a local store
    stores: Any = ()

    def begin(self, model: Model, stores: Any, seed: int, specs: int, strings: bool) -> None:
        self.model, self.stores = model, stores
        self.rng = np.random.default_rng(seed)
        self.specs = [SPECS[specs // len(SPECS) ** k % len(SPECS)] for k in KEYS]
        self.names = NAMES[strings]
        self.calls: list[list[Call]] = [[] for _ in stores]
        self.optimizers: list[Any] = [None for _ in stores]
        for rank in range(len(stores)):
            names, arrays = self.names[:3], [self.array(k) for k in KEYS[:3]]
            for name, array in zip(names, arrays, strict=True):
                model.init(rank, name, array)
            stores[rank].init(names, arrays)

    # -- arrays -------------------------------------------------------------------------------------------------------

    def array(self, k: int, form: str = "whole", like: int | None = None) -> Any:
        """Something to push to a key; rows if the key is row-sparse or the form says so."""
        shape, dtype, sparse = self.specs[k if like is None else like]
        if dtype == "int32":
            data = self.rng.integers(-1000, 1000, shape)
        else:
            data = self.rng.standard_normal(shape) * 10.0 ** self.rng.integers(-3, 3 if dtype == "float32" else 1)
        data = np.asarray(data).astype(dtype)
        if form == "poison" and dtype != "float16":
            data[...] = 2 * POISON
        if not (sparse or form in ("rows", "no rows")) or not shape:
            return data
        there = np.flatnonzero(self.rng.integers(0, 2, shape[0])) if form != "no rows" else np.empty(0, np.int64)
        return row_sparse_array((data[there], there), shape)

    def value(self, k: int, rounds: dict[Any, int]) -> Any:
        name = self.names[k]
        return self.model.keys[name].values[rounds[name]]

    # -- the same call on the model and on a store --------------------------------------------------------------------

    def ask(self, rank: int, on_model: Any, on_store: Any, pushes: bool = False, outs: Any = ()) -> Call | None:
        """The call, or None if it is a mistake: then both must raise the same error."""
        rounds: dict[Any, int] = {}
        mistake = None
        try:
            rounds = on_model(self.model)
        except PSError as error:
            mistake = type(error)
        while True:
            self.observe(rank)
            try:
                handle = on_store(self.stores[rank])
                break
            except Exception as error:
                if any(c.handle.done() and c.handle.exception() is error for c in self.calls[rank]):
                    continue  # what made an earlier push fail comes first
                if mistake is not None:
                    assert type(error) is mistake, error
                    return None
                if self.servers or not pushes:
                    raise
                handle = Failed(error)
                break
        assert mistake is None, f"{mistake} was not raised"
        if handle is None:
            return None  # of a method that gives none
        call = Call(handle, rounds, pushes, list(outs))
        self.calls[rank].append(call)
        return call

    def observe(self, rank: int) -> None:
        """Look at all calls that are done."""
        for call in [call for call in self.calls[rank] if call.handle.done()]:
            self.calls[rank].remove(call)
            self.check(call)

    def check(self, call: Call) -> None:
        errors = self.model.errors(call.rounds) if call.pushes else set()
        if errors:
            raised = type(call.handle.exception())
            assert ("the updater's" if raised is (RemoteError if self.servers else ValueError) else raised) in errors
            return
        assert self.model.done(call.rounds), "done before its round"
        result = call.handle.wait()
        for index, (k, out, ids) in enumerate(call.outs):
            if out is None:
                out = result[index] if isinstance(result, list) else result
            if ids is None:
                same(out, self.value(k, call.rounds))
                continue
            assert out.indices.tolist() == sorted(set(ids))
            if ids:
                same(out.data, self.value(k, call.rounds)[out.indices])

    def init(self, rank: int, k: int, like: int | None = None) -> None:
        name, array = self.names[k], self.array(k, like=like)
        if rank == 0 or name in self.model.keys:  # else it would wait for rank 0
            self.ask(rank, lambda m: m.init(rank, name, array), lambda s: s.init(name, array))

    def push_to(self, rank: int, ks: list[int], values: list[Any], outs: Any = None) -> Call | None:
        """Push, or push and pull into ``outs``, a list of arrays for each key or the pushed arrays themselves."""
        names = [self.names[k] for k in ks]
        if any(self.unfinished(rank, name) >= MAX_AHEAD for name in names):
            return None  # it would wait for other workers
        key, value = (names[0], values[0]) if len(ks) == 1 else (names, values)
        if all(len(own) == 1 for own in [*values, *(outs or [])]):  # as scripts have them
            value = [own[0] for own in values] if len(ks) > 1 else values[0][0]
            if outs is not None:
                outs = values if outs is values else [own[0] for own in outs]
        if outs is None:
            return self.ask(rank, lambda m: m.push(rank, names, values), lambda s: s.push(key, value), pushes=True)
        filled = [(k, out, None) for k, own in zip(ks, outs, strict=True) for out in flattened(own)]
        out = None if outs is values else outs[0] if len(ks) == 1 else outs
        return self.ask(
            rank,
            lambda m: m.push(rank, names, values),
            lambda s: s.pushpull(key, value, out=out, wait=False),
            pushes=True,
            outs=filled,
        )

    def unfinished(self, rank: int, name: Any) -> int:
        """How many pushes of a key need others to go on."""
        return sum(c.pushes and name in c.rounds and not self.model.done(c.rounds) for c in self.calls[rank])

    def somebody(self, who: int) -> int:
        members = sorted(self.model.members)
        return members[who % len(members)]

    def catch_up(self) -> None:
        """All workers know all keys, and push until all rounds are complete."""
        for rank in sorted(self.model.members):
            for k in KEYS:
                if self.names[k] in self.model.keys and (rank, self.names[k]) not in self.model.known:
                    self.init(rank, k)
        while True:
            behind = [(k, rank) for k in KEYS for rank in self.model.members if self.is_behind(rank, self.names[k])]
            if not behind:
                return
            pushed = [self.push_to(rank, [k], [[self.array(k)]]) for k, rank in behind]
            if all(call is None for call in pushed):
                assert self.model.threshold, "everybody waits for somebody"
                self.compress(None)  # which has refused these keys

    def is_behind(self, rank: int, name: Any) -> bool:
        pushed = self.model.keys[name].pushed if name in self.model.keys else {rank: 0}
        return pushed[rank] < max(pushed.values())

    # -- steps --------------------------------------------------------------------------------------------------------

    @rule(
        burst=st.sampled_from(BURSTS),
        ks=st.sampled_from(SOME),
        how=st.sampled_from(list(itertools.product(FORMS, (1, 2, 3), range(6)))),
    )
    def push(self, burst: list[int], ks: list[int], how: tuple[str, int, int]) -> None:
        form, devices, outs = how
        for rank in map(self.somebody, burst):
            values = [[self.array(k, form) for _ in range(devices)] for k in ks]
            filled = None
            if outs == 1 and all(isinstance(array, np.ndarray) for own in values for array in own):
                filled = values
            elif outs > 3:
                filled = [[np.empty(self.specs[k][0], self.specs[k][1]) for _ in range(outs - 3)] for k in ks]
            self.push_to(rank, ks, values, filled)

    @rule(first=st.integers(0, 3), ks=st.sampled_from(SOME), form=st.sampled_from(FORMS))
    def train(self, first: int, ks: list[int], form: str) -> None:
        """A round as scripts have it."""
        for rank in [self.somebody(first + i) for i in range(len(self.model.members))]:
            self.push_to(rank, ks, [[self.array(k, form)] for k in ks])
            self.pull(rank, ks, 0)

    @rule(who=st.integers(0, 3), ks=st.sampled_from(SOME), outs=st.integers(0, 3))
    def pull(self, who: int, ks: list[int], outs: int) -> None:
        rank, keys = self.somebody(who), [self.names[k] for k in ks]
        names: Any = keys
        arrays = [[np.empty(self.specs[k][0], "float64") for _ in range(outs)] for k in ks]
        if outs == 3:  # as they are
            arrays = [[np.empty(self.specs[k][0], self.specs[k][1])] for k in ks]
        filled = [(k, out, None) for k, own in zip(ks, arrays, strict=True) for out in own or [None]]
        out = None if not outs else [own[0] for own in arrays] if outs == 3 else arrays
        if outs == 3 and len(ks) == 1:
            names, out = names[0], arrays[0][0]
        self.ask(rank, lambda m: m.pull(rank, keys), lambda s: s.pull(names, out=out, wait=False), outs=filled)

    @rule(who=st.integers(0, 3), k=st.sampled_from(KEYS), given=st.booleans())
    def pull_rows(self, who: int, k: int, given: bool) -> None:
        shape, dtype, _ = self.specs[k]
        if shape:
            ids = self.rng.integers(0, shape[0], self.rng.integers(0, 4)).tolist()
            self.ask_for_rows(self.somebody(who), k, ids, zeros(shape, dtype) if given else None)

    def ask_for_rows(self, rank: int, k: int, ids: list[int], out: Any) -> None:
        name = self.names[k]
        self.ask(
            rank,
            lambda m: m.row_sparse_pull(rank, name, ids),
            lambda s: s.row_sparse_pull(name, out=out, row_ids=np.array(ids, np.int64), wait=False),
            outs=[(k, out, ids)],
        )

    @rule(who=st.integers(0, 3), k=st.sampled_from(KEYS), what=st.sampled_from(MISTAKES))
    def mistake(self, who: int, k: int, what: str) -> None:
        rank, name, (shape, dtype, sparse) = self.somebody(who), self.names[k], self.specs[k]
        data = np.ones(shape, dtype)
        form = (lambda array: row_sparse_array((array[:1], [0]), array.shape)) if sparse else np.array
        wrong = {
            "unknown": (-5 if isinstance(name, int) else "nobody", [data]),
            "type of key": (str(name) if isinstance(name, int) else 5, [data]),
            "shape": (name, [form(np.ones((7, 7), dtype))]),
            "dtype": (name, [form(np.ones(shape, "float64"))]),
            "storage": (name, [data]),  # of a row-sparse key
            "both": (name, [data, self.array(k, "rows")]),
        }
        if what in wrong:
            key, arrays = wrong[what]
            if key != name:
                self.ask(rank, lambda m: m.push(rank, [key], [arrays]), lambda s: s.push(key, arrays), pushes=True)
            elif what != "storage" or sparse:
                self.push_to(rank, [k], [arrays])
        elif what == "init" or (what == "bad init" and name in self.model.keys):
            self.init(rank, k, like=None if what == "init" else (k + 1) % 4)
        elif "row" in what and shape:
            self.ask_for_rows(rank, k, [0, 99 if what == "row" else 0], None)

    @precondition(lambda self: 0 in self.model.members)
    @rule(new=st.sampled_from(RULES))
    def set_rule(self, new: tuple[Any, ...]) -> None:
        kind, *args = new
        self.settle()
        for rank in sorted(self.model.members):
            self.optimizers[rank] = None if kind == "mix" else optimizer(kind, *args)

            def on_store(store: Any, new: Any = self.optimizers[rank]) -> None:
                store.set_updater(difference) if new is None else store.set_optimizer(new)

            self.ask(rank, lambda m, r=rank: r or m.set_rule(kind, *args), on_store)
            if kind == "mix" and self.model.rules[0] != Rule(kind, series=self.model.series):
                break  # a mistake: rank 0 has not said it, the others would wait

    @rule(who=st.integers(0, 3), lr=st.sampled_from([0.1, 0.7]))
    def change_rate(self, who: int, lr: float) -> None:
        rank = self.somebody(who)
        if self.optimizers[rank] is not None and self.model.said[0] == "sgd":
            self.optimizers[rank].lr = lr
            self.model.rules[rank] = self.model.rules[rank]._replace(lr=lr)

    def settle(self) -> None:
        """Whatever is on its way arrives."""

    def teardown(self) -> None:
        """In the end all is complete, nothing is open, and every worker reads the same."""
        if not self.stores:
            return
        self.catch_up()
        self.settle()
        for rank in sorted(self.model.members):
            self.observe(rank)
            assert not self.calls[rank]
            names = [name for name in self.names if (rank, name) in self.model.known]
            for name, found in zip(names, self.stores[rank].pull(names), strict=True):
                entry = self.model.keys[name]
                same(found, entry.values[-1])
                assert self.stores[rank].version(name) == entry.versions[-1]


class LocalMachine(Machine):
    @initialize(
        seed=st.integers(0, 2**32),
        specs=st.integers(0, len(SPECS) ** len(KEYS) - 1),
        strings=st.booleans(),
        device=st.booleans(),
    )
    def start(self, seed: int, specs: int, strings: bool, device: bool) -> None:
        store = kvstore.create("device" if device else "local")
        self.begin(Model(1, local=True), [store], seed, specs, strings)

    @precondition(lambda self: self.stores[0].type == "device")
    @rule(threshold=st.sampled_from([None, 0.5, 3.0]), ks=st.sampled_from(SOME))
    def compress_and_train(self, threshold: float | None, ks: list[int]) -> None:
        self.stores[0].set_gradient_compression(compression(threshold))
        self.model.threshold = threshold
        self.train(0, ks, "whole")


class DistMachine(Machine):
    @initialize(
        workers=st.integers(1, 4),
        servers=st.integers(1, 3),
        bound=st.sampled_from([2, 6, 1000]),
        seed=st.integers(0, 2**32),
        specs=st.integers(0, len(SPECS) ** len(KEYS) - 1),
        strings=st.booleans(),
    )
    def start(self, workers: int, servers: int, bound: int, seed: int, specs: int, strings: bool) -> None:
        self.servers = servers
        self.cluster = Cluster(workers, servers, bound, Random(seed))
        self.begin(Model(workers, servers, bound), self.cluster.stores, seed, specs, strings)

    @rule(choices=st.integers(0, 12**5))
    def carry(self, choices: int) -> None:
        if not choices:
            self.settle()
        while choices:
            choices, choice = divmod(choices, 12)
            self.cluster.step(choice)

    def settle(self) -> None:
        while self.cluster.step():
            pass
        for calls in self.calls:
            for call in calls:
                if self.model.done(call.rounds):
                    assert call.handle.done()
                elif not (call.pushes and self.model.errors(call.rounds)):
                    assert not call.handle.done()

    @precondition(lambda self: 0 in self.model.members)
    @rule(threshold=st.sampled_from([None, 0.5, 3.0]), ks=st.sampled_from(SOME))
    def compress_and_train(self, threshold: float | None, ks: list[int]) -> None:
        self.compress(threshold)
        self.train(0, ks, "whole")

    def compress(self, threshold: float | None) -> None:
        for rank in sorted(self.model.members):
            self.ask(rank, lambda m: None, lambda s: s.set_gradient_compression(compression(threshold)))
        self.model.threshold = threshold

    @precondition(lambda self: len(self.model.members) > 1)
    @rule(who=st.integers(0, 3))
    def leave(self, who: int) -> None:
        rank = self.somebody(who)
        self.catch_up()
        if rank == 0 and self.model.threshold:
            self.compress(None)  # nobody else could
        self.settle()  # close() raises what made a push fail, and that nobody has seen
        self.ask(rank, lambda m: m.leave(rank), lambda s: s.close(join=True))


def flattened(own: Any) -> list[Any]:
    return own if isinstance(own, list) else [own]


def same(found: Any, value: Any) -> None:
    """The same bits, of another dtype after the cast."""
    assert found.shape == value.shape and found.tobytes() == value.astype(found.dtype).tobytes(), (found, value)


def optimizer(kind: str, lr: float = 0.0, momentum: float = 0.0, lazy: bool = False) -> Any:
    if kind == "test":
        return kvstore.optimizer.create("test")
    return kvstore.optimizer.create("sgd", learning_rate=lr, momentum=momentum, lazy_update=lazy)


def compression(threshold: float | None) -> dict[str, Any]:
    return {"type": "none"} if threshold is None else {"type": "2bit", "threshold": threshold}


PROFILE = settings(
    max_examples=SEQUENCES, stateful_step_count=STEPS, database=None, suppress_health_check=list(HealthCheck)
)
LocalMachine.TestCase.settings = DistMachine.TestCase.settings = PROFILE
TestLocal = LocalMachine.TestCase
TestDistSync = DistMachine.TestCase


def test_an_init_with_another_shape_and_dtype_is_refused_as_a_push_is() -> None:
    machine = DistMachine()
    machine.start(workers=2, servers=1, bound=2, seed=0, specs=2, strings=False)
    machine.mistake(k=3, what="init", who=0)
    machine.mistake(k=3, what="bad init", who=1)
    machine.teardown()

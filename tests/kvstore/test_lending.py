"""Arrays from ``kv.empty`` and ``kv.zeros``: what their push copies, and when they can be written to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import updater
from pslite.errors import ConfigError, DTypeError, PSError, ShapeError
from pslite.van.shared import Arena
from pslite.wire import Kind, Message, Op

from .on_stores import ONE_OF_EACH, Store, on
from .shared_jobs import LARGE, SPLIT, Job, full, on_shared_memory, same

pytestmark = on_shared_memory


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Two workers and a server; keys a and b are of sevens."""
    with Job(tmp_path) as made:
        made.run(lambda kv: kv.init(["a", "b"], [full(7), full(7)]))
        yield made


class Sent:
    """The pushes of a worker, as they leave."""

    def __init__(self, office: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrays: list[Any] = []  # all large ones
        self.frames: list[int] = []  # bytes of those that travelled
        send = office.van.send

        def noting(link: Any, message: Message) -> bool:
            if message.kind == Kind.REQUEST and message.op == Op.DATA:
                self.arrays += [array for array in message.arrays if array.nbytes > 10_000]
            sent: bool = send(link, message)
            return sent

        monkeypatch.setattr(office.van, "send", noting)

    def which(self, *arrays: Any) -> list[bool]:
        """Whether each array that was sent is the memory of one of these."""
        return [any(np.shares_memory(sent, array) for array in arrays) for sent in self.arrays]


@pytest.fixture
def sent(job: Job, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    made = Sent(job.workers[0], monkeypatch)
    yield made
    made.arrays.clear()


def of(kv: Any, number: float, dtype: str = "float32") -> Any:
    array = kv.empty(LARGE, dtype)
    array[...] = number
    return array


def held(job: Job) -> Callable[[], None]:
    """Keep the server from working until the result is called: nothing is pushed before."""
    entered, go = threading.Event(), threading.Event()
    server = job.servers[0]

    def block() -> None:
        entered.set()
        go.wait(5)

    with server._shell.lock:
        server._shell.deliver(block)
    server.van.wake()
    assert entered.wait(5)
    return go.set


# -- nothing is copied ------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_the_array_itself(job: Job, sent: Sent) -> None:
    kv = job.stores[0]
    array = of(kv, 3)
    kv.push("a", array).wait()
    assert sent.which(array) == [True]
    assert same(job.stores[1].pull("a")) == 3


def test_the_server_reads_it_where_it_is(job: Job) -> None:
    """A view that was made before can be written to: the server finds what is written before it looks."""
    kv = job.stores[0]
    array = of(kv, 3)
    view = array[:]
    go = held(job)
    handle = kv.push("a", array)
    view[...] = 4
    go()
    handle.wait()
    assert same(kv.pull("a")) == 4


def test_split_keys_are_read_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Job(tmp_path, servers=2, bigarray_bound=SPLIT) as job:
        job.run(lambda kv: kv.init("a", full(7)))
        sent = Sent(job.workers[0], monkeypatch)
        array = of(job.stores[0], 3)
        job.stores[0].push("a", array).wait()
        assert sent.which(array) == [True, True]
        assert same(job.stores[1].pull("a")) == 3
        sent.arrays.clear()


@pytest.mark.parametrize("what", ["an ordinary array", "a view", "a list", "a list of one", "another dtype", "a copy"])
def test_what_is_copied(job: Job, sent: Sent, what: str) -> None:
    kv = job.stores[0]
    array = of(kv, 3)
    value: Any = {
        "an ordinary array": full(3), "a view": array[:], "a list": [array, of(kv, 0)], "a list of one": [array],
        "another dtype": array.view(np.int32).view(np.float32), "a copy": array.copy(),
    }[what]  # fmt: skip
    go = held(job)
    handle = kv.push("a", value)
    if what != "a list of one":
        assert array.flags.writeable
        array[...] = 9
        if isinstance(value, np.ndarray):
            value[...] = 9
    go()
    handle.wait()
    assert same(kv.pull("a")) == 3
    assert array.flags.writeable


def test_what_is_pulled_is_copied_once_into_it(job: Job) -> None:
    kv = job.stores[0]
    array = kv.zeros(LARGE)
    kv.pull("a", out=array)
    assert same(array) == 7
    assert array.flags.writeable


# -- lent, and given back ---------------------------------------------------------------------------------------------


def test_it_is_read_only_until_the_push_is_done(job: Job) -> None:
    kv = job.stores[0]
    array = of(kv, 3)
    go = held(job)
    handle = kv.push("a", array)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    go()
    handle.wait()
    array[...] = 4
    assert same(kv.pull("a")) == 3


GIVES_BACK: dict[str, Callable[[Any, Any], Any]] = {
    "pull": lambda kv, a: kv.pull("a"),
    "pull of a list": lambda kv, a: kv.pull(["b", "a"]),
    "pull into another": lambda kv, a: kv.pull("a", out=full(0)),
    "pull into itself": lambda kv, a: kv.pull("a", out=a),
    "pull later into itself": lambda kv, a: kv.pull("a", out=a, wait=False).wait(),
    "pushpull": lambda kv, a: kv.pushpull("a", full(3)),
    "pushpull in place": lambda kv, a: kv.pushpull("a", a),
    "pushpull into itself": lambda kv, a: kv.pushpull("a", a, out=a),
    "pushpull of another into it": lambda kv, a: kv.pushpull("a", full(3), out=a),
    "pushpull of it into another": lambda kv, a: kv.pushpull("a", a, out=full(0)),
}


@pytest.mark.parametrize("call", GIVES_BACK)
def test_it_is_given_back_when_its_key_is_pulled(job: Job, call: str) -> None:
    kv = job.stores[0]
    array = of(kv, 3)
    kv.push("a", array)
    GIVES_BACK[call](kv, array)
    assert array.flags.writeable
    assert same(array) == 3
    assert same(kv.pull("a")) == 3


def test_a_key_that_is_pulled_while_others_of_its_push_are_not_done(tmp_path: Path) -> None:
    """The round of b is open, that of a is not."""
    with Job(tmp_path, "dist_sync") as job:
        job.run(lambda kv: kv.init(["a", "b"], [full(0), full(0)]))
        one, other = job.stores
        mine, more = of(one, 1), of(one, 2)
        handle = one.push(["a", "b"], [mine, more])
        other.push("a", full(10)).wait()
        assert same(one.pull("a")) == 11
        assert [mine.flags.writeable, more.flags.writeable, handle.done()] == [True, False, False]
        mine[...] = 5
        again = one.push("a", mine)
        assert not mine.flags.writeable
        other.push("b", full(20)).wait()
        handle.wait()
        assert [mine.flags.writeable, more.flags.writeable] == [False, True], "the first push has ended, not the second"
        other.push("a", full(10)).wait()
        again.wait()
        assert mine.flags.writeable
        assert [same(array) for array in one.pull(["a", "b"])] == [15, 22]


def test_one_array_for_two_keys(job: Job, sent: Sent) -> None:
    kv = job.stores[0]
    array = of(kv, 3)
    go = held(job)
    handle = kv.push(["a", "b"], [array, array])
    assert not array.flags.writeable
    with pytest.raises(ConfigError, match="read-only"):
        kv.pull("a", out=array)  # b's push reads it yet
    go()
    handle.wait()
    assert array.flags.writeable
    assert sent.which(array) == [True, True]
    assert [same(one) for one in kv.pull(["a", "b"])] == [3, 3]


def test_one_array_pushed_again_and_again(job: Job) -> None:
    kv = job.stores[0]
    array = of(kv, 3)
    go = held(job)
    handles = [kv.push("a", array), kv.push("b", array), kv.push("a", array)]
    assert not array.flags.writeable
    go()
    for handle in handles:
        handle.wait()
    assert array.flags.writeable


def test_swapped(job: Job) -> None:
    """Each gets the other's value: neither can be read where it is."""
    kv = job.stores[0]
    x, y = of(kv, 1), of(kv, 2)
    kv.pushpull(["a", "b"], [x, y], out=[y, x])
    assert (same(x), same(y)) == (2, 1)
    assert x.flags.writeable
    assert y.flags.writeable


ALIASES: dict[str, Callable[[Any, Any], Any]] = {
    "a view": lambda array, torch: array[:],
    "rows": lambda array, torch: array.reshape(-1).reshape(LARGE),
    "backwards": lambda array, torch: array[::-1],
    "another dtype": lambda array, torch: array.view(np.int32),
    "torch": lambda array, torch: torch.from_numpy(array),
    "a memoryview": lambda array, torch: memoryview(array),
}


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("servers", [1, 2])
def test_swapped_under_other_names(tmp_path: Path, torch: Any, alias: str, servers: int) -> None:
    """The same through whatever shares the memory of the arrays."""
    with Job(tmp_path, servers=servers, bigarray_bound=SPLIT) as job:
        job.run(lambda kv: kv.init(["a", "b"], [full(7), full(7)]))
        kv = job.stores[0]
        x, y = of(kv, 1), of(kv, 2)
        outs = [ALIASES[alias](y, torch), ALIASES[alias](x, torch)]
        kv.pushpull(["a", "b"], [x, y], out=outs)
        assert [same(array) for array in kv.pull(["a", "b"])] == [1, 2]
        if alias != "another dtype":
            assert (same(x), same(y)) == (2, 1)


def test_pushpull_over_itself_the_other_way_round(tmp_path: Path) -> None:
    """One server's answer comes where the other still reads."""
    with Job(tmp_path, servers=2, bigarray_bound=SPLIT) as job:
        job.run(lambda kv: kv.init("a", full(7)))
        kv = job.stores[0]
        x = kv.empty(LARGE)
        x[: LARGE[0] // 2], x[LARGE[0] // 2 :] = 1, 2
        expected = x.copy()
        kv.pushpull("a", x, out=x[::-1])
        np.testing.assert_array_equal(kv.pull("a"), expected)
        np.testing.assert_array_equal(x[::-1], expected)


def test_a_pull_that_is_refused_leaves_it_lent(job: Job) -> None:
    kv = job.stores[0]
    array = of(kv, 3)
    go = held(job)
    handle = kv.push("a", array)
    with pytest.raises(ShapeError):
        kv.pull(["a", "b"], out=[array, np.zeros(3)])
    assert not array.flags.writeable
    go()
    handle.wait()
    assert array.flags.writeable


def test_what_the_user_made_read_only_stays_so(job: Job) -> None:
    kv = job.stores[0]
    array = of(kv, 3)
    array.flags.writeable = False
    kv.push("a", array).wait()
    kv.pull("a")
    assert not array.flags.writeable
    with pytest.raises(ConfigError, match="read-only"):
        kv.pull("a", out=array)


@updater("fails")
def _fails(key: Any, received: Any, stored: Any) -> None:
    raise ValueError("no update today")


def test_a_push_that_fails_gives_it_back(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kvstore.rules._UPDATERS, "fails", _fails)
    job.run(lambda kv: kv.set_updater("fails"))
    kv = job.stores[0]
    array = of(kv, 3)
    handle = kv.push("a", array)
    with pytest.raises(PSError, match="no update today"):
        handle.wait()
    assert array.flags.writeable
    with pytest.raises(PSError, match="no update today"):
        kv.pushpull("a", array)
    assert array.flags.writeable


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [("a", (3,), ShapeError), ("no such key", LARGE, PSError), ("a", "float64", DTypeError)],
)
def test_a_push_that_is_refused_does_not_take_it(job: Job, key: str, value: Any, error: type[PSError]) -> None:
    kv = job.stores[0]
    good = of(kv, 3)
    bad = kv.empty(LARGE, value) if isinstance(value, str) else kv.zeros(value)
    with pytest.raises(error):
        kv.push(["b", key], [good, bad])
    assert good.flags.writeable
    assert bad.flags.writeable


def test_a_push_that_cannot_be_sent_gives_it_back(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = job.stores[0]
    array = of(kv, 3)

    def broken(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job.workers[0], "request", broken)
        with pytest.raises(KeyboardInterrupt):
            kv.push("a", array)
    assert array.flags.writeable


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "int64", "bool", "float64"])
def test_dtypes(job: Job, sent: Sent, dtype: str) -> None:
    start = kvstore.bfloat16(np.zeros(LARGE, np.uint16)) if dtype == "bfloat16" else np.zeros(LARGE, dtype)
    job.run(lambda kv: kv.init(dtype, start))
    kv = job.stores[0]
    sent.arrays.clear()
    array = kv.zeros(LARGE, dtype)
    bits = array.bits if dtype == "bfloat16" else array
    bits[...] = 1
    go = held(job)
    handle = kv.push(dtype, array)
    assert not bits.flags.writeable
    assert sent.which(bits) == [True]
    go()
    kv.pull(dtype, out=array)
    handle.wait()
    assert bits.flags.writeable
    kv.pushpull(dtype, array)
    kv.push(dtype, array)
    kv.pushpull(dtype, array)
    assert bits.flags.writeable
    assert same(bits) == 1


# -- compression ------------------------------------------------------------------------------------------------------


def test_compression_on_and_off(tmp_path: Path) -> None:
    """What was held back is added to a copy, never to the user's array."""
    with Job(tmp_path, workers=1) as job:
        [kv] = job.stores
        kv.init("a", full(0))
        kv.set_gradient_compression({"type": "2bit", "threshold": 0.5})
        array = of(kv, 0.75)
        kv.push("a", array).wait()
        assert same(kv.pull("a")) == 0.5
        assert same(array) == 0.75
        kv.set_gradient_compression({"type": "none"})
        array[...] = 2
        kv.push("a", array).wait()
        assert same(array) == 2
        assert array.flags.writeable
        assert same(kv.pull("a")) == 2.25
        kv.push("a", array).wait()
        assert same(kv.pull("a")) == 2


# -- every store ------------------------------------------------------------------------------------------------------


@on(ONE_OF_EACH)
def test_every_store_has_them(store: Store) -> None:
    def work(kv: Any) -> Any:
        kv.init("w", np.zeros((4, 3), np.float32))
        grad = kv.zeros((4, 3))
        assert (grad == 0).all()
        grad += 2
        kv.push("w", grad).wait()
        assert grad.flags.writeable
        kv.barrier()
        kv.pull("w", out=grad)
        return grad[0, 0]

    assert len(set(store.run(work))) == 1


SHAPES: list[tuple[Any, tuple[int, ...]]] = [
    (3, (3,)), ((), ()), ((0, 5), (0, 5)), ([2, 3], (2, 3)), (np.int64(4), (4,)), (np.array([2, 2]), (2, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "expected"), SHAPES, ids=str)
def test_shapes(job: Job, shape: Any, expected: tuple[int, ...]) -> None:
    for kv in (job.stores[0], kvstore.create("local")):
        array = kv.zeros(shape, "int32")
        assert (array.shape, array.dtype) == (expected, np.int32)
        assert kv.empty(shape).dtype == np.float32


@pytest.mark.parametrize("shape", [-1, (2, -3), 1.5, "3", None, (2, None), [[2]], {"a": 1}], ids=repr)
def test_what_is_no_shape(job: Job, shape: Any) -> None:
    for kv in (job.stores[0], kvstore.create("local")):
        for make in (kv.empty, kv.zeros):
            with pytest.raises(ConfigError, match="shape"):
                make(shape)


@pytest.mark.parametrize("dtype", ["complex64", "O", "U5", "datetime64[s]", "nonsense", 5, object], ids=repr)
def test_what_is_no_dtype(job: Job, dtype: Any) -> None:
    for kv in (job.stores[0], kvstore.create("local")):
        with pytest.raises(DTypeError):
            kv.empty((2, 2), dtype)


def test_more_than_there_is(job: Job) -> None:
    for kv in (job.stores[0], kvstore.create("local")):
        with pytest.raises(ConfigError, match="shape"):
            kv.empty((2**62, 2**10))


# -- memory -----------------------------------------------------------------------------------------------------------


def arena(office: Any) -> Arena:
    memory = office.memory
    assert isinstance(memory, Arena)
    return memory


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Values have two arrays each, whatever is pushed and pulled, and pushes leave nothing."""
    keys = [f"k{i}" for i in range(20)]
    shapes = [(100 + 500 * i,) for i in range(20)]
    total = sum(4 * n for (n,) in shapes)
    with Job(tmp_path, servers=2) as job:
        job.run(lambda kv: kv.init(keys, [np.zeros(shape, np.float32) for shape in shapes]))

        def train(kv: Any) -> None:
            rng = np.random.default_rng(kv.rank)
            mine = [kv.empty(shape) for shape in shapes]
            for turn in range(100):
                chosen = rng.permutation(20)[: 1 + turn % 20].tolist()
                for i in chosen:
                    mine[i][...] = turn
                kv.push(
                    [keys[i] for i in chosen], [mine[i] if turn % 2 else np.ones(shapes[i], np.float32) for i in chosen]
                )
                kv.pull([keys[i] for i in chosen], out=[mine[i] for i in chosen])

        job.run(train)
        before = [arena(office).nbytes for office in job.servers + job.workers]
        job.run(train)
        assert [arena(office).nbytes for office in job.servers + job.workers] == before
        assert sum(arena(office).used for office in job.servers) <= 2 * (total + 40 * 128)
        assert [arena(office).used for office in job.workers] == [0, 0], "arrays that are gone, and messages"


def test_arrays_that_are_gone_give_their_memory_back(job: Job) -> None:
    kv, memory = job.stores[0], arena(job.workers[0])
    before = memory.used
    arrays = [kv.empty(LARGE) for _ in range(5)]
    assert memory.used > before + 5 * arrays[0].nbytes
    kv.push("a", arrays[0])
    del arrays
    kv.pull("a")
    assert memory.used == before

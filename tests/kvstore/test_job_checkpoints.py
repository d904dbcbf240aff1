"""What the servers write by themselves: jobs in this process that write checkpoints, end, and are resumed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import optimizer, sparse
from kvstore.checkpoint.directory import Directory
from kvstore.checkpoint.unit import VALUE
from kvstore.server import saving
from pslite.errors import CheckpointError, ConfigError, DTypeError, PSError, ShapeError
from tests.harness import wait_until

STEPS, AT = 6, 3
SHAPES = {"a": (3, 2), "b": (5,), "scalar": (), "big": (100, 4), **{f"s{i}": (4,) for i in range(6)}}


def run(directory: Path | None, work: Callable[[Any], Any], type: str = "dist_sync", servers: int = 2,
        workers: int = 2, **settings: Any) -> list[Any]:  # fmt: skip
    """A job; an array of 200 elements or more is split over its servers."""
    cluster = kvstore.LocalCluster(workers, servers, type, bigarray_bound=200)
    cluster._shape |= settings | ({} if directory is None else {"checkpoint_dir": str(directory)})
    return cluster.run(work)


def grads(kv: Any, step: int) -> list[Any]:
    rng = np.random.default_rng([step, kv.rank])
    return [rng.standard_normal(shape).astype("f4") for shape in SHAPES.values()]


def setup(kv: Any, make: Callable[[], Any], late: bool = False) -> None:
    """``late``: the optimizer comes after the keys."""
    if not late:
        kv.set_optimizer(make())
    kv.init(list(SHAPES), [np.full(shape, i, "f4") for i, shape in enumerate(SHAPES.values())])
    kv.init("table", sparse.zeros((20, 3), "float32"))
    if late:
        kv.set_optimizer(make())


def train(kv: Any, steps: range) -> list[bytes]:
    names = list(SHAPES)
    for step in steps:
        kv.push(names, grads(kv, step))
        kv.push("table", sparse.row_sparse_array((np.full((2, 3), step, "f4"), [kv.rank, step + 5]), shape=(20, 3)))
        kv.pull(names)
    table = kv.row_sparse_pull("table", row_ids=np.arange(20))
    return [value.tobytes() for value in kv.pull(names)] + [table.data.tobytes()]


def checkpoint(kv: Any) -> Any:
    """While nobody pushes, it is of one step."""
    kv.barrier()
    path = kv.checkpoint() if kv.rank == kv.num_workers - 1 else None
    kv.barrier()
    return path


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optimizer.SGD(learning_rate=0.1, momentum=0.9),
    "adam": lambda: optimizer.Adam(learning_rate=0.02),
    "dcasgd": lambda: optimizer.DCASGD(learning_rate=0.02, momentum=0.9),
}


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 1), (1, 2)])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_job_goes_on_with_the_same_bits(name: str, before: int, after: int, tmp_path: Path) -> None:
    make = OPTIMIZERS[name]

    def whole(kv: Any) -> Any:
        setup(kv, make)
        return train(kv, range(STEPS))

    def first(kv: Any) -> Any:
        setup(kv, make)
        train(kv, range(AT))
        return checkpoint(kv)

    def second(kv: Any) -> Any:
        setup(kv, make, late=after > before)
        kv.pull("a")
        assert kv.version("a") == AT
        return train(kv, range(AT, STEPS))

    paths = run(tmp_path / "c", first, servers=before)
    assert paths[0] is None and Path(paths[1]).is_file()
    assert run(tmp_path / "c", second, servers=after, resume=True) == run(None, whole)


def test_p3_slices_are_put_together_and_cut_again(tmp_path: Path) -> None:
    big = np.arange(400, dtype="f4").reshape(100, 4)

    def first(kv: Any) -> None:
        kv.init("big", np.zeros_like(big))
        kv.push("big", big)
        kv.pull("big")
        kv.checkpoint()

    def second(kv: Any) -> Any:
        kv.init("big", np.zeros_like(big))
        return kv.pull("big").tobytes()

    for p3_before, p3_after in [(True, False), (False, True), (True, True)]:
        place = tmp_path / f"{p3_before}{p3_after}"
        run(place, first, workers=1, p3=p3_before, slice_threshold=70)
        assert run(place, second, workers=1, servers=3, p3=p3_after, slice_threshold=90, resume=True) == [big.tobytes()]


@pytest.mark.parametrize("type", ["dist_sync", "dist_async"])
def test_each_key_is_of_one_moment_while_training_goes_on(
    type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are all alike in every round: a mixture of two rounds would not be."""
    monkeypatch.setattr(saving, "SLICE", 1)  # one key at a time
    names = [f"k{i}" for i in range(20)]

    def work(kv: Any) -> None:
        kv.set_optimizer(optimizer.SGD(learning_rate=1.0, momentum=0.5))
        kv.init(names, [np.zeros(3000, "f4") for _ in names])
        for _ in range(40):
            kv.push(names, [np.ones(3000, "f4") for _ in names])
            kv.pull(names)
        if kv.rank == 0:
            written = kv.stats()["checkpoints"]["written"]
            wait_until(lambda: kv.stats()["checkpoints"]["written"] >= written + 2, 20.0)

    run(tmp_path / "c", work, type, checkpoint_every=0.01, checkpoint_keep=1000)
    directory = Directory(tmp_path / "c")
    for id in directory.ids():
        found = directory.open(id)
        for part, described in found.pieces():
            for array in part.unit(described).arrays.values():
                assert np.all(array == array[0])
        # Each is split over two servers; the first checkpoints may be older than some keys.
        assert len(list(found.pieces())) == 2 * len(names) or id != directory.ids()[0]
        found.close()
    assert len(directory.ids()) >= 2
    directory.close()


def simple(kv: Any) -> Any:
    kv.init("w", np.zeros(4, "f4"))
    kv.push("w", np.ones(4, "f4"))
    return kv.pull("w").tolist()


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EIO])
def test_training_goes_on_when_nothing_can_be_written(
    call: str, cause: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = getattr(os, call)

    def broken(*args: Any, **kwargs: Any) -> Any:
        if call == "open" and "tmp-" not in str(args[0]):
            return real(*args, **kwargs)
        raise OSError(cause, os.strerror(cause))

    def work(kv: Any) -> Any:
        simple(kv)
        good = kv.checkpoint()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, broken)
            for _ in range(2):
                with pytest.raises(CheckpointError, match=os.strerror(cause)):
                    kv.checkpoint()
        kv.push("w", np.full(4, 2, "f4"))
        assert kv.pull("w").tolist() == [2] * 4
        stats = kv.stats()["checkpoints"]
        assert (stats["written"], stats["failed"], stats["last"]) == (1, 2, good)
        assert os.strerror(cause) in stats["error"]
        wait_until(lambda: len(os.listdir(tmp_path / "c")) == 3, what="that nothing else is left")
        directory = Directory(tmp_path / "c")
        found: Any = directory.newest()
        assert [part.unit(key).arrays[VALUE].tolist() for part, key in found.pieces()] == [[1] * 4]
        found.close()
        directory.close()
        kv.checkpoint()
        assert kv.stats()["checkpoints"]["error"] is None

    run(tmp_path / "c", work, workers=1)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and os.strerror(cause) in said[0]


def test_a_damaged_checkpoint_is_passed_over_and_none_good_is_an_error(tmp_path: Path) -> None:
    def work(kv: Any) -> Any:
        value = simple(kv)
        kv.checkpoint()
        kv.push("w", np.full(4, 2, "f4"))
        return value, kv.checkpoint()

    [(_, last)] = run(tmp_path / "c", work, workers=1)
    Path(last).write_bytes(b"nothing")

    def resumed(kv: Any) -> Any:
        kv.init("w", np.zeros(4, "f4"))
        return kv.pull("w").tolist(), kv.stats()["checkpoints"]["resumed_from"]

    assert run(tmp_path / "c", resumed, workers=1, resume=True) == [([1] * 4, "000001-0000000001")]
    for file in (tmp_path / "c").glob("*.part"):
        file.write_bytes(b"nothing")
    with pytest.raises(PSError):
        run(tmp_path / "c", resumed, workers=1, resume=True)


def test_checkpoints_are_not_overwritten_by_a_job_that_does_not_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path / "c", lambda kv: [simple(kv), kv.checkpoint()], workers=1)
    with pytest.raises(PSError):
        run(tmp_path / "c", simple, workers=1)
    assert "give --resume to go on from the newest, or another directory" in caplog.text
    assert run(tmp_path / "empty", simple, workers=1, resume=True) == [[1] * 4], "there was none: from the beginning"


def test_a_resumed_key_must_be_what_it_was(tmp_path: Path) -> None:
    def first(kv: Any) -> None:
        kv.set_optimizer(optimizer.SGD(learning_rate=0.1, momentum=0.9))
        simple(kv)
        kv.checkpoint()

    def second(kv: Any) -> None:
        with pytest.raises(ConfigError, match="the checkpoint was made with the optimizer SGD"):
            kv.set_optimizer(optimizer.Adam())
        with pytest.raises(ShapeError, match=r"expected \(4,\)"):
            kv.init("w", np.zeros(5, "f4"))
        with pytest.raises(DTypeError, match="expected float32, as in 000001-"):
            kv.init("w", np.zeros(4, "f8"))
        with pytest.raises(CheckpointError, match="not all keys"):  # it would have less than the one before
            kv.checkpoint()
        kv.init("new", np.zeros(2, "f4"))
        kv.init("w", np.zeros(4, "f4"))
        kv.checkpoint()

    run(tmp_path / "c", first, workers=1)
    run(tmp_path / "c", second, workers=1, resume=True)


def test_who_asks_without_a_directory_is_told(tmp_path: Path) -> None:
    def work(kv: Any) -> None:
        with pytest.raises(ConfigError, match="--checkpoint-dir"):
            kv.checkpoint()
        assert "checkpoints" not in kv.stats()

    run(None, work, workers=1)
    with pytest.raises(ConfigError, match="no servers"):
        kvstore.create("local").checkpoint()

"""Lists of large keys: as if each key were a call of its own, in many messages, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore import dist

from .shared_jobs import SPLIT, WHOLE, Job, on_shared_memory

pytestmark = on_shared_memory

KEYS = [f"k{i}" for i in range(12)]
SHAPES = [(64 + 8 * i, 128) for i in range(12)]  # from 32 KiB on
DTYPES = ["float32", "float32", "float16", "int32"] * 3


@pytest.fixture(params=[(1, WHOLE), (2, WHOLE), (2, SPLIT)], ids=str)
def job(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Two workers; values travel in several messages."""
    monkeypatch.setattr(dist, "AT_ONCE", 200_000)
    servers, bound = request.param
    with Job(tmp_path, "dist_sync", servers=servers, bigarray_bound=bound) as made:
        made.run(lambda kv: kv.init(KEYS, arrays(kv, 7)))
        yield made


def arrays(kv: Any, number: float, lent: bool = False) -> list[Any]:
    made = [kv.empty(s, t) if lent else np.empty(s, t) for s, t in zip(SHAPES, DTYPES, strict=True)]
    for i, array in enumerate(made):
        array[...] = number + i
    return made


def check(found: list[Any], number: float, times: int) -> None:
    """They are the sums of ``arrays`` of this number, of so many workers."""
    for i, array in enumerate(found):
        assert (array.shape, array.dtype) == (SHAPES[i], DTYPES[i])
        np.testing.assert_array_equal(array, np.full_like(array, number + times * i))


@pytest.mark.parametrize("lent", [False, True])
def test_push_and_pull(job: Job, lent: bool) -> None:
    def work(kv: Any) -> None:
        grads, outs = arrays(kv, 0, lent), arrays(kv, 0)
        for step in range(4):
            for i, grad in enumerate(grads):
                grad[...] = step + kv.rank + i
            handle = kv.push(KEYS, grads)
            if not lent:
                for grad in grads:
                    grad[...] = 99
            kv.pull(KEYS, out=outs)
            handle.wait()
            assert all(grad.flags.writeable for grad in grads)
            check(outs, 2 * step + 1, 2)
            check(kv.pull(KEYS), 2 * step + 1, 2)
            assert {kv.version(key) for key in KEYS} == {step + 1}
            kv.barrier()

    job.run(work)


@pytest.mark.parametrize("lent", [False, True])
def test_in_place(job: Job, lent: bool) -> None:
    def work(kv: Any) -> None:
        grads = arrays(kv, kv.rank, lent)
        kv.pushpull(KEYS, grads)
        check(grads, 1, 2)
        handle = kv.push(KEYS, arrays(kv, 5))
        kv.pull(KEYS, out=grads)
        handle.wait()
        check(grads, 10, 2)

    job.run(work)


def test_what_is_lent_is_copied_if_another_key_comes_over_it(job: Job) -> None:
    def work(kv: Any) -> None:
        keys = [*KEYS[:8], "x", "y"]
        kv.init(["x", "y"], [np.zeros((99, 99), np.float32)] * 2)
        first, second = kv.zeros((99, 99)), kv.zeros((99, 99))
        first[...], second[...] = 1, 2
        kv.pushpull(keys, [*arrays(kv, 0)[:8], first, second], out=[*arrays(kv, 0)[:8], second, first])
        assert (second == 2).all() and (first == 4).all()

    job.run(work)


def test_it_is_read_only_until_the_push_is_done(job: Job) -> None:
    first, second = job.stores
    grads = arrays(first, 3, lent=True)
    handle = first.push(KEYS, grads)
    assert not any(grad.flags.writeable for grad in grads)
    second.push(KEYS, arrays(second, 4))
    handle.wait()
    assert all(grad.flags.writeable for grad in grads)
    check(first.pull(KEYS), 7, 2)
    second.pull(KEYS)


def test_lists_and_single_calls_take_turns(job: Job) -> None:
    def work(kv: Any) -> None:
        before = kv.stats()["keys"][KEYS[3]]
        outs = arrays(kv, 0)
        kv.push(KEYS, arrays(kv, 1))
        kv.push(KEYS[3], arrays(kv, 2)[3])
        kv.push(KEYS[::-1], arrays(kv, 3)[::-1])
        kv.pull(KEYS[3], out=outs[3])
        assert (outs[3] == 2 * (3 + 3)).all()
        kv.pull(KEYS[::-1], out=outs[::-1])
        check(outs, 6, 2)
        strided = [np.zeros((*shape, 2), dtype)[..., 0] for shape, dtype in zip(SHAPES, DTYPES, strict=True)]
        kv.pushpull(KEYS, strided)
        assert not any(array.any() for array in strided)
        after, nbytes = kv.stats()["keys"][KEYS[3]], outs[3].nbytes
        assert after["push_bytes"] == before["push_bytes"] + 4 * nbytes
        assert after["pull_bytes"] == before["pull_bytes"] + 3 * nbytes

    job.run(work)

from __future__ import annotations

import errno
import gc
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pslite.van.shared import Arena, available
from pslite.van.shared.arena import KEEP_EMPTY, SEGMENT
from tests.harness import FakeClock

MB = 1024 * 1024
pytestmark = pytest.mark.skipif(not available(), reason="needs sealed memory: Linux since 5.1")


@pytest.fixture
def arena(fake_clock: FakeClock) -> Iterator[Arena]:
    arena = Arena(fake_clock)
    yield arena
    arena.close()


def in_segment(arena: Arena, array: npt.NDArray[Any]) -> bytes:
    """The array's bytes as another process finds them."""
    where = arena.locate(array)
    assert where is not None
    return os.pread(arena.fd(where.segment), array.nbytes, where.offset)


def generation(arena: Arena, segment: int, header: int) -> int:
    return int.from_bytes(os.pread(arena.fd(segment), 8, header), sys.byteorder)


# -- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", ">f8", "?", "u1", "c16", "S3", [("a", "i4"), ("b", "f8")], ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 4), (70_000,)])
def test_an_array_is_like_one_of_numpy(arena: Arena, shape: tuple[int, ...], dtype: Any) -> None:
    array, like = arena.empty(shape, dtype), np.ones(shape, dtype)
    assert (array.shape, array.dtype, array.strides) == (like.shape, like.dtype, like.strides)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    if array.nbytes == 0:
        assert arena.locate(array) is None
        return
    array[...] = like
    assert in_segment(arena, array) == like.tobytes()
    where = arena.locate(array)
    assert where is not None
    assert where.offset % 64 == where.header % 64 == 0
    assert arena.holds(array) == (array.dtype.kind != "V")


def test_what_others_must_not_see_or_cannot_have_is_ordinary(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    assert arena.locate(arena.empty((3,), object)) is None

    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    array = arena.empty((3,), np.float32)
    assert array.flags.owndata
    assert (arena.locate(array), arena.used, arena.nbytes) == (None, 0, 0)


def test_a_negative_shape_takes_nothing(arena: Arena) -> None:
    for shape in ((-1,), (-2, -3)):
        with pytest.raises(ValueError, match="negative dimensions"):
            arena.empty(shape, np.int8)
    assert arena.used == 0


def test_arrays_do_not_overlap(arena: Arena) -> None:
    sizes = [1, 63, 64, 65, 1000, 4096, 3 * MB, SEGMENT - 64, SEGMENT, SEGMENT + 1]
    arrays = [arena.empty((n,), np.uint8) for n in sizes * 2]
    for i, array in enumerate(arrays):
        array[[0, -1]] = i
    assert [(a[0], a[-1]) for a in arrays] == [(i, i) for i in range(len(arrays))]
    assert arena.used >= 2 * sum(sizes)


def test_numpy_integers_as_shape_give_plain_numbers(arena: Arena) -> None:
    array = arena.empty((np.int64(3), np.int32(5)), np.float32)  # type: ignore[arg-type]
    where = arena.locate(array[1:])
    assert where is not None
    assert [type(n) for n in where] == [int] * 4


# -- locate -----------------------------------------------------------------------------------------------------------


def test_views_are_located_in_their_array(arena: Arena) -> None:
    arena.empty((1,), np.int8)
    array = arena.empty((10, 4), np.float32)
    where = arena.locate(array)
    assert where is not None
    views = {0: array.T.T, 28: array.reshape(-1)[7:9], 32: array[2:].view(np.int16), 48: array[3]}
    for offset, view in views.items():
        assert arena.locate(view) == where._replace(offset=where.offset + offset)
        assert not arena.holds(view)
    for other in (array[:, 1], array.T, array[::2]):
        assert arena.locate(other) is None, "not contiguous"


def test_arrays_of_others_have_no_location(arena: Arena, fake_clock: FakeClock) -> None:
    other = Arena(fake_clock)
    foreign = other.empty((3,), np.int32)
    for array in (foreign, foreign[1:], foreign.copy(), np.empty(3), np.frombuffer(b"abc", np.uint8)):
        assert arena.locate(array) is None
        assert not arena.holds(array)
        arena.renew(array)
    other.close()


# -- freeing ----------------------------------------------------------------------------------------------------------


def test_a_view_keeps_its_block(arena: Arena) -> None:
    array = arena.empty((1000,), np.int32)
    array[...] = 7
    view = memoryview(array[10:20].reshape(2, 5))
    del array
    others = [arena.empty((n,), np.int32) for n in (1000, 990, 10)]
    for other in others:
        other[...] = 1
    assert np.asarray(view).tolist() == [[7] * 5] * 2
    del view, others, other
    assert arena.used == 0


def test_blocks_are_freed_in_other_threads(arena: Arena) -> None:
    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        held: list[npt.NDArray[np.int64]] = []
        for i in range(300):
            array = arena.empty((int(rng.integers(1, 5000)),), np.int64)
            array[...] = seed * 1000 + i
            held.append(array)
            if len(held) > 8:
                old = held.pop(int(rng.integers(8)))
                assert (old == old[0]).all()
                shared.append(old)
            if len(shared) > 20:
                shared.pop(0)

    shared: list[npt.NDArray[np.int64]] = []
    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(work, seed) for seed in range(4)]:
            result.result()
    shared.clear()
    assert arena.used == 0
    assert arena.nbytes == SEGMENT


@pytest.mark.timeout(10)
def test_the_garbage_collector_may_free_blocks_inside_the_arena() -> None:
    """The arena asks for the time while its lock is held; here that is when a cycle with an array is found."""
    collected: list[int] = []

    def clock() -> float:
        collected.append(gc.collect())
        return 0.0

    arena = Arena(clock)
    cycle: list[Any] = [arena.empty((100,), np.int32)]
    cycle.append(cycle)
    del cycle
    assert arena.used > 0
    arena.tidy()
    assert collected[0] > 0
    assert arena.used == 0
    arena.close()


def test_rounds_of_a_training_loop_take_no_more_memory(arena: Arena) -> None:
    sizes = np.random.default_rng(2).integers(1, 2_000_000, 200).tolist()  # 200 MB
    arrays = [arena.empty((n,), np.uint8) for n in sizes]
    first = arena.nbytes
    for _ in range(50):
        for i, n in enumerate(sizes):
            arrays[i] = arena.empty((n,), np.uint8)
    assert arena.nbytes <= first + 2 * SEGMENT


# -- generations ------------------------------------------------------------------------------------------------------


def test_every_block_and_every_renewal_has_its_own_generation(arena: Arena) -> None:
    seen = set()
    for n in (100, 100, 5000, 100):
        array = arena.empty((n,), np.uint8)
        for _ in range(3):
            where = arena.locate(array)
            assert where is not None
            assert generation(arena, where.segment, where.header) == where.generation
            assert where.generation not in seen
            seen.add(where.generation)
            arena.renew(array[n // 2 :])
    assert len(seen) == 12


def test_a_freed_block_loses_its_generation_before_others_write_there(arena: Arena) -> None:
    """The next block may begin elsewhere, and leave the old header as it is."""
    spacer, old = arena.empty((192,), np.uint8), arena.empty((4096,), np.uint8)
    where = arena.locate(old)
    assert where is not None
    del spacer, old
    new = arena.empty((2048,), np.uint8)
    found = arena.locate(new)
    assert found is not None
    assert found.header < where.header < found.offset + new.nbytes, "the old header is amidst the new data"
    assert generation(arena, where.segment, where.header) != where.generation


# -- segments ---------------------------------------------------------------------------------------------------------


def test_segments_without_arrays_are_given_back_after_a_while(arena: Arena, fake_clock: FakeClock) -> None:
    small, large = arena.empty((10,), np.uint8), arena.empty((SEGMENT,), np.uint8)
    assert arena.nbytes == 2 * SEGMENT + 2 * MB
    assert arena.size(1) == SEGMENT + 2 * MB
    fake_clock.advance(100)
    del large
    assert arena.used < SEGMENT, "it is free from now on"
    fake_clock.advance(KEEP_EMPTY - 1)
    assert arena.tidy() == []
    fake_clock.advance(1)
    fd = arena.fd(1)
    assert arena.tidy() == [1]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert arena.nbytes == SEGMENT
    again = arena.locate(arena.empty((SEGMENT,), np.uint8))
    assert again is not None
    assert again.segment == 2, "numbers are not used again"
    small[...] = 1


def test_a_segment_in_use_is_not_given_back(arena: Arena, fake_clock: FakeClock) -> None:
    for _ in range(5):
        array = arena.empty((10,), np.uint8)
        fake_clock.advance(KEEP_EMPTY)
        assert arena.tidy() == []
        del array
        assert arena.tidy() == []
        fake_clock.advance(KEEP_EMPTY / 2)


def test_nobody_else_can_write_or_truncate(arena: Arena) -> None:
    array = arena.empty((10,), np.uint8)
    array[...] = 5
    reopened = os.open(f"/proc/self/fd/{arena.fd(0)}", os.O_RDWR)
    tries: list[Callable[[int], object]] = [
        lambda fd: mmap.mmap(fd, SEGMENT),
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.ftruncate(fd, 0),
        lambda fd: os.ftruncate(fd, 2 * SEGMENT),
    ]
    for fd in (arena.fd(0), reopened):
        for attempt in tries:
            with pytest.raises(PermissionError):
                attempt(fd)
    os.close(reopened)
    assert array.tolist() == [5] * 10


def test_after_close_arrays_stay_and_new_ones_are_ordinary(fake_clock: FakeClock) -> None:
    arena = Arena(fake_clock)
    array = arena.empty((10,), np.int32)
    array[...] = 3
    arena.close()
    arena.close()
    assert array.tolist() == [3] * 10
    assert arena.locate(array) is None
    assert arena.empty((10,), np.int32).flags.owndata
    arena.renew(array)
    del array
    assert (arena.tidy(), arena.nbytes, arena.used) == ([], 0, 0)


# -- fork -------------------------------------------------------------------------------------------------------------

FORK = """
import os, sys, threading, time
import numpy as np
from pslite.van.shared import Arena

arena = Arena(time.monotonic)
kept, given = (arena.empty((10,), np.int32) for _ in range(2))
kept[...] = given[...] = 1
before = arena.locate(kept), arena.locate(given), arena.used
locked, release = threading.Event(), threading.Event()
def hold():
    with arena._lock:  # a thread inside the arena at the very moment
        locked.set()
        release.wait()
thread = threading.Thread(target=hold)
thread.start()
locked.wait()
pid = os.fork()
if pid == 0:
    new = arena.empty((10,), np.int32)
    new[...] = 2
    arena.renew(kept)
    del given
    ok = new.flags.owndata and arena.locate(kept) is None and arena.tidy() == [] and kept.tolist() == [1] * 10
    arena.close()
    os._exit(0 if ok else 1)
assert os.waitpid(pid, 0)[1] == 0
release.set()
thread.join()
assert (arena.locate(kept), arena.locate(given), arena.used) == before
assert kept.tolist() == given.tolist() == [1] * 10
arena.close()
"""


@pytest.mark.processes
def test_a_forked_child_leaves_the_memory_alone() -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")

"""Writing to pipes that are full, broken, or read in time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from launcher.console import Console


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with suppress(OSError):
            os.close(end)


def test_lines_of_both_streams_keep_their_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    console = Console(writer, writer)
    console.write("stdout", "one")
    console.write("stderr", "two")
    console.write("stdout", "thr\udcffe")
    assert console.flush() is None
    assert os.read(reader, 100) == b"one\ntwo\nthr\xffe\n"
    assert console.pending == 0


def test_a_reader_that_pauses_does_not_block_the_launcher(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    console = Console(writer, writer)
    console.write("stdout", "x" * 200_000)
    assert console.flush() == writer
    assert 0 < console.pending < 200_001
    read = 0
    while console.flush() is not None:
        read += len(os.read(reader, 1 << 16))
    assert read + len(os.read(reader, 1 << 20)) == 200_001


def test_a_reader_that_went_away_is_noticed_and_the_other_stream_still_works(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    gone_reader, gone_writer = os.pipe()
    os.close(gone_reader)
    console = Console(gone_writer, writer)
    console.write("stdout", "lost")
    console.write("stderr", "seen")
    assert console.flush() is None
    assert console.broken
    assert os.read(reader, 100) == b"seen\n"
    os.close(gone_writer)


def test_draining_gives_up_when_interrupted(pipe: tuple[int, int]) -> None:
    interrupt_reader, interrupt_writer = os.pipe()
    os.write(interrupt_writer, b"\x02")
    console = Console(pipe[1], pipe[1])
    console.write("stdout", "x" * 200_000)
    console.drain(interrupt_reader)
    assert console.pending > 0
    os.close(interrupt_reader)
    os.close(interrupt_writer)

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.logs import LineSplitter, LogFiles, Prefixer, Tails, wants_color
from launcher.spec import ProcessSpec

SPECS = [
    ProcessSpec(role, rank, "localhost", ("x",), {}) for role, rank in (("scheduler", 0), ("worker", 0), ("worker", 12))
]


def split(*chunks: bytes) -> list[str]:
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)]
    return lines + splitter.feed(b"", final=True)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\n\na", ["", "", "a"]),
        (b"\r 1%\r 2%\r100%\n", [" 1%", " 2%", "100%"]),
        (b"\r\n\r", [""]),
        ("größe\n".encode(), ["größe"]),
        (b"a\x0b\x0c\xc2\x85b\n", ["a\x0b\x0c\x85b"]),
        (b"", []),
    ],
)
def test_lines_end_at_newlines_and_carriage_returns_only(data: bytes, lines: list[str]) -> None:
    assert split(data) == lines


@given(st.lists(st.sampled_from([b"\r", b"\n", b"a", "é".encode(), "漢".encode(), b"\xff"])), st.data())
def test_it_does_not_matter_where_the_reads_cut(parts: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(whole)))))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert split(*chunks) == split(whole)


@given(st.binary())
def test_no_byte_of_a_line_is_changed(data: bytes) -> None:
    text = data.replace(b"\r", b"").replace(b"\n", b"")
    assert "".join(split(text)).encode("utf-8", "surrogateescape") == text


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    splitter = LineSplitter()
    lengths = [len(line) for _ in range(100) for line in splitter.feed(b"x" * 4096)]
    assert sum(lengths) > 300_000
    assert max(lengths) < 100_000


def test_prefixes_are_aligned() -> None:
    prefixer = Prefixer(SPECS, prefix=True, timestamps=False)
    shown = [prefixer.line(index, "text", False, 0.0) for index in range(3)]
    assert shown == ["[scheduler] text", "[worker 0]  text", "[worker 12] text"]


def test_colour_is_around_the_prefix_only() -> None:
    assert (
        Prefixer(SPECS, prefix=True, timestamps=False).line(1, "text", True, 0.0) == "\x1b[36m[worker 0]  \x1b[0mtext"
    )
    assert Prefixer(SPECS, prefix=False, timestamps=False).line(1, "text", True, 0.0) == "text"


def test_timestamps_are_the_time_of_day() -> None:
    head, text = Prefixer(SPECS, prefix=False, timestamps=True).line(0, "text", False, 1.5).split(" ")
    assert head.endswith(":01.500")
    assert text == "text"


@pytest.mark.parametrize(
    ("choice", "environ", "is_terminal", "wanted"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ("auto", {"FORCE_COLOR": "1"}, False, True),
        ("auto", {"TERM": "dumb"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
    ],
)
def test_when_to_colour(choice: str, environ: dict[str, str], is_terminal: bool, wanted: bool) -> None:
    assert wants_color(choice, environ, is_terminal) is wanted


def test_the_tail_is_the_last_twenty_lines() -> None:
    tails = Tails(2)
    tails.add(1, [str(n) for n in range(30)])
    assert tails.of(0) == []
    assert tails.of(1) == [str(n) for n in range(10, 30)]


def test_log_files_hold_what_was_written(tmp_path: Path) -> None:
    for job in ("first", "second"):
        files = LogFiles(str(tmp_path / "runs"), job, SPECS)
        files.write(2, "stderr", ["one", os.fsdecode(b"\xff two")])
        files.close()
    assert (tmp_path / "runs" / "first" / "worker-12" / "stderr.log").read_bytes() == b"one\n\xff two\n"
    assert (tmp_path / "runs" / "latest").resolve().name == "second"
    assert files.path(2, "stderr") == str(tmp_path / "runs" / "second" / "worker-12" / "stderr.log")

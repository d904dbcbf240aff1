"""The list of processes that the scheduler has given up, as the agent reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.lost import LostList


def replace(directory: Path, text: str) -> None:
    (directory / "lost.tmp").write_text(text)
    (directory / "lost.tmp").replace(directory / "lost.json")


def test_it_is_read_whenever_it_was_replaced(tmp_path: Path) -> None:
    lost = LostList(tmp_path)
    assert lost.news() == []
    replace(tmp_path, json.dumps([["worker", 2, 4711]]))
    assert lost.news() == [("worker", 2, 4711)]
    assert lost.news() == []
    replace(tmp_path, json.dumps([["worker", 2, 4711], ["server", 0, 5]]))
    assert lost.news() == [("worker", 2, 4711), ("server", 0, 5)]


@pytest.mark.parametrize("text", ["", "{}", "7", "[7]", '[["worker", "2", 3]]', '[["worker", 2]]', "[" * 10_000])
def test_what_is_malformed_is_left_out(tmp_path: Path, text: str) -> None:
    replace(tmp_path, text)
    assert LostList(tmp_path).news() == []


def test_one_bad_entry_does_not_hide_the_others(tmp_path: Path) -> None:
    replace(tmp_path, '[["worker"], ["worker", 1, 7]]')
    assert LostList(tmp_path).news() == [("worker", 1, 7)]

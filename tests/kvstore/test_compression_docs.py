"""docs/compression.md tells the truth: its code runs, and its tables are those of the codecs and of the tool."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from kvstore.compression import base, create, registered
from tests.test_docs import table

ROOT = Path(__file__).parents[2]
PAGE = "docs/compression.md"
HEAD = ("codec", "ratio", "accuracy", "encode, ns", "decode, ns")


def test_the_code_of_the_page_prints_what_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    [code, printed] = re.findall(r"^```(?:python)?\n(.*?)^```", (ROOT / PAGE).read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(code, PAGE, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == printed


def test_the_table_of_codecs_lists_what_there_is() -> None:
    rows = table(PAGE, "type", "arguments", "an element arrives as", "bits each", "pulls")
    listed = {name: row for row in rows for name in row[0].split(", ")}
    assert set(listed) == set(registered())
    for name, row in listed.items():
        codec, _ = create({"type": name})
        assert codec is not None
        assert row[1] == ", ".join(f"{key}={value}" for key, value in codec.to_wire()[1].items())
        assert row[4] == ("yes" if codec.pulls else "")


def test_the_measured_table_is_that_of_the_tool(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratios do not depend on how long one trains, on seeds or on the machine."""
    spec = importlib.util.spec_from_file_location("measure_compression", ROOT / "tools/measure_compression.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "measure_compression", tool)
    spec.loader.exec_module(tool)
    for name, small in {"EPOCHS": 1, "SEEDS": 2, "ELEMENTS": 1000, "REPEATS": 1}.items():
        monkeypatch.setattr(tool, name, small)
    tool.main()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert tuple(rows[0]) == HEAD
    assert [row[:2] for row in rows[2:]] == [row[:2] for row in table(PAGE, *HEAD)]

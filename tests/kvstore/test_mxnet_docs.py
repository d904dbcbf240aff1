"""docs/mxnet.md tells the truth: its script runs, and what its table names exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import kvstore
from tests.test_docs import ROOT, run, table

PAGE = "docs/mxnet.md"
[SCRIPT] = re.findall(r"^```python\n(.*?)^```", (ROOT / PAGE).read_text(), re.DOTALL | re.MULTILINE)
[PRINTED] = re.findall(r"^```text\n(.*?)^```", (ROOT / PAGE).read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.processes
def test_the_script_runs_under_the_launcher(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    out = run(sys.executable, "-m", "launcher", "-n", "4", "-s", "2", sys.executable, "train.py", cwd=tmp_path)
    assert out == "[worker 0]  " + PRINTED


def test_the_script_runs_in_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(SCRIPT.replace("dist_sync", "local"), PAGE, "exec"), {"__name__": "page"})
    assert capsys.readouterr().out == PRINTED


def test_every_name_of_the_table_exists() -> None:
    rows = table(PAGE, "in MXNet", "here")
    assert len(rows) > 15
    named = set(re.findall(r"\bkvstore(?:\.\w+)+", " ".join(here for _, here in rows)))
    methods = set(re.findall(r"(?<!mx\.)\bkv\.(\w+)", " ".join(f"{left} {here}" for left, here in rows)))
    assert len(named) > 8 and len(methods) > 12
    for name in named:
        found = kvstore
        for part in name.split(".")[1:]:
            found = getattr(found, part)
    for method in methods:
        assert hasattr(kvstore.KVStore, method)

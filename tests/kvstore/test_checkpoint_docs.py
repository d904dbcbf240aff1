"""docs/checkpoints.md tells the truth: its script and its example print what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import run

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
(_, SCRIPT), (_, CONSOLE), (_, EXAMPLE), (_, PRINTED), (_, COMMAND), (_, BY_SERVERS) = BLOCKS


@pytest.mark.processes
def test_the_script_goes_on_where_it_ended(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    runs = re.findall(r"^\$ pslite-launch (.*) python (.*)\n(.*)\n", CONSOLE, re.MULTILINE)
    assert len(runs) == 2
    for options, script, expected in runs:
        out = run(sys.executable, "-m", "launcher", *shlex.split(options), sys.executable, script, cwd=tmp_path)
        assert out == expected + "\n"


@pytest.mark.processes
def test_the_same_command_starts_a_job_and_starts_it_again(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(BY_SERVERS)
    [(options, script)] = re.findall(r"^\$ pslite-launch (.*) python (.*)$", COMMAND, re.MULTILINE)
    for n in (1, 2):
        command = [sys.executable, "-m", "launcher", *shlex.split(options), sys.executable, script]
        env = os.environ | {"PYTHONPATH": str(PAGE.parents[1])}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=40, check=True)
        assert re.fullmatch(rf"\[worker 0\]  00000{n}-000000000{n}\.manifest: {n}0 rounds, \[.*\]\n", done.stdout)


def test_the_example_prints_what_the_page_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "checkpoints.md", "exec"), {})
    assert capsys.readouterr().out == PRINTED

"""The demo: its goals, and what it shows when a run fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REACHED = {"local": 0.97, "dist_sync": 0.96, "dist_async": 0.95}


@pytest.mark.parametrize(
    ("change", "apart", "message"),
    [
        ({}, 1e-9, None),
        ({"dist_sync": 0.9599}, 0.0, "dist_sync: accuracy 0.9599 is below 0.9600"),
        ({"dist_async": 0.9499}, 0.0, "dist_async: accuracy 0.9499 is below 0.9500"),
        ({"local": 0.9499}, 0.0, "local: accuracy 0.9499 is below 0.9500"),
        ({}, 1.1e-9, "weights differ by 1.1e-09, more than 1e-09"),
        ({}, float("nan"), "weights differ by nan, more than 1e-09"),
    ],
)
def test_a_missed_goal_is_named(demo: Any, change: dict[str, float], apart: float, message: str | None) -> None:
    assert demo.missed("digits", REACHED | change, apart) == ([message] if message else [])


def test_the_difference_is_relative_to_the_largest_weight(demo: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", np.array([1.0, -4.0]), np.zeros(2))
    np.savez(tmp_path / "other.npz", np.array([1.0, -4.0]), np.array([0.0, 0.5]))
    assert demo.difference(tmp_path / "one.npz", tmp_path / "other.npz") == 0.125


@pytest.fixture
def fake_runs(demo: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replace the training runs by files with the numbers above; the commands are returned as they come."""
    commands: list[list[str]] = []

    def run(command: list[str], verbose: bool) -> None:
        commands.append(command)
        words = command[command.index(demo.SCRIPT) + 1 :]
        options = dict(zip(words[::2], words[1::2], strict=True))
        kind = options["--kv-store"]
        workers, servers = (1, 0) if kind == "local" else (4, 2)
        if "--json" in options:
            numbers = {"type": kind, "workers": workers, "servers": servers, "seconds": 1.5, "accuracy": REACHED[kind]}
            Path(options["--json"]).write_text(json.dumps(numbers))
        else:
            np.savez(options["--save-weights"], np.ones(3))

    monkeypatch.setattr(demo, "run", run)
    return commands


def test_it_prints_a_line_for_each_type_and_the_difference(
    demo: Any, fake_runs: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "local workers=1 servers=0 seconds=1.50 accuracy=0.9700",
        "dist_sync workers=4 servers=2 seconds=1.50 accuracy=0.9600",
        "dist_async workers=4 servers=2 seconds=1.50 accuracy=0.9500",
        "largest difference between the weights of dist_sync and of one process: 0.0e+00 (float64, 50 steps)",
    ]
    assert fake_runs[0][:2] == [sys.executable, demo.SCRIPT]
    assert fake_runs[1][:8] == [sys.executable, "-m", "launcher", "-n", "4", "-s", "2", sys.executable]


def test_a_missed_goal_ends_it_with_status_1(
    demo: Any, fake_runs: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REACHED, "dist_async", 0.5)
    assert demo.main([]) == 1
    assert "FAILED dist_async: accuracy 0.5000 is below 0.9500" in capsys.readouterr().err


@pytest.mark.processes
def test_the_output_of_a_run_is_shown_only_if_it_fails(demo: Any, capfd: pytest.CaptureFixture[str]) -> None:
    demo.run([sys.executable, "-c", "print('all is well')"], verbose=False)
    assert capfd.readouterr().out == ""
    with pytest.raises(demo.ChildFailed, match=r"no such rank\n(?s:.*)ended with status 1"):
        demo.run([sys.executable, "-c", "raise SystemExit('no such rank')"], verbose=False)


@pytest.mark.processes
def test_verbose_shows_the_command_and_its_output(demo: Any, capfd: pytest.CaptureFixture[str]) -> None:
    demo.run([sys.executable, "-c", "print(6 * 7)"], verbose=True)
    assert capfd.readouterr().out.splitlines()[1:] == ["42"]


@pytest.mark.processes
def test_a_failed_run_ends_the_demo_with_its_output(
    demo: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('the store is gone')")
    monkeypatch.setattr(demo, "SCRIPT", str(script))
    assert demo.main([]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and "FAILED the store is gone" in shown.err


@pytest.mark.processes
def test_help_names_the_command(demo: Any) -> None:
    shown = subprocess.run([sys.executable, demo.__file__, "--help"], capture_output=True, text=True, check=True).stdout
    assert "python examples/demo.py" in shown

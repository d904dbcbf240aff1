"""The documents tell the truth: their code runs, and their tables list what there is."""

from __future__ import annotations

import ast
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.spec import JOB_VARIABLES
from pslite import Config, errors

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TRAINING_LOOP, NOTEBOOK = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
VARIABLE = re.compile(r"(?:DMLC|PS|PSLITE|MXNET)_[A-Z_]+")


def run(*command: str, cwd: Path = ROOT, **variables: str) -> str:
    """What a command prints on stdout; it must succeed, and write no more than notices to stderr."""
    inherited = {name: value for name, value in os.environ.items() if not VARIABLE.fullmatch(name)}
    env = inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def table(page: str, *columns: str) -> list[list[str]]:
    """The rows of the tables with this head, without their backticks."""
    rows: list[list[str]] = []
    inside = False
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        cells = [cell.replace("`", "") for cell in cells]
        inside = bool(cells) and (inside or cells == list(columns))
        if inside and cells != list(columns) and not set(cells[0]) <= {"-", " "}:
            rows.append(cells)
    return rows


# README


@pytest.mark.processes
def test_the_training_loop_finds_the_weights(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING_LOOP)
    out = run(sys.executable, "-m", "launcher", "-n", "2", "-s", "2", sys.executable, "train.py", cwd=tmp_path)
    assert weights(out) == pytest.approx([1, -2, 3], abs=1e-2)


@pytest.mark.processes
def test_the_training_loop_trains_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAINING_LOOP.replace("dist_sync", "local"))
    assert weights(run(sys.executable, "train.py", cwd=tmp_path)) == pytest.approx([1, -2, 3], abs=1e-2)


def weights(text: str) -> list[float]:
    [inside] = re.findall(r"\[ ?([-\d. ]+)\]", text)
    return [float(number) for number in inside.split()]


def test_the_notebook_example_prints_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(NOTEBOOK, "README.md", "exec"), {})
    assert capsys.readouterr().out == "[array([6., 6.]), array([6., 6.]), array([6., 6.])]\n"


@pytest.mark.processes
def test_the_three_names_of_the_launcher_are_one_command() -> None:
    bodies = set()
    for command in ([sys.executable, "-m", "launcher"], [sys.executable, "tools/launch.py"]):
        usage, body = run(*command, "--help").split("\n", 1)
        assert usage.startswith("usage: ")
        bodies.add(re.sub(r"(?m)^  \S.*(?= -n )", "", body))
    assert len(bodies) == 1


@pytest.mark.processes
def test_hello_runs_under_the_launcher() -> None:
    out = run("pslite-launch", "-n", "2", "-s", "1", sys.executable, "examples/hello.py", "dist_sync", PATH=path())
    assert sorted(out.splitlines()) == [f"[worker {r}]  worker {r} of 2 pulls [3. 3. 3.]" for r in (0, 1)]


def path() -> str:
    """Where this interpreter's commands are, first."""
    return f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def test_the_table_of_examples_lists_what_there_is() -> None:
    listed = {row[0] for row in table("README.md", "script", "shows")}
    assert listed == {file.name for file in (ROOT / "examples").glob("*.py")}


def test_the_table_of_stores_lists_all_types() -> None:
    from kvstore.factory import DIST_TYPES, LOCAL_TYPES

    rows = table("README.md", "type", "the model is", "a push is applied")
    assert {name for row in rows for name in row[0].split(", ")} == {*LOCAL_TYPES, *DIST_TYPES}


# Errors


def test_the_page_of_errors_lists_the_tree() -> None:
    rows = table("docs/errors.md", "class", "bases", "fields", "raised when", "what to do")
    classes = {name: getattr(errors, name) for name in errors.__all__}
    expected = {n: (", ".join(b.__name__ for b in c.__bases__), ", ".join(c.fields)) for n, c in classes.items()}
    assert {row[0]: (row[1], row[2]) for row in rows} == expected
    assert all(row[3] and row[4] for row in rows)


def test_the_drawing_of_errors_shows_the_tree() -> None:
    drawing = re.findall(
        r"^    ((?:[│ ] +)*(?:[├└]── )?)([A-Z]\w+)", (ROOT / "docs/errors.md").read_text(), re.MULTILINE
    )
    above: list[str] = []
    drawn = {}
    for indent, name in drawing:
        del above[len(indent) // 4 :]
        drawn[name] = above[-1] if above else "Exception"
        above.append(name)
    assert drawn == {name: getattr(errors, name).__bases__[0].__name__ for name in errors.__all__}


# Configuration


CONFIG_ROWS = table("docs/configuration.md", "variable", "field of Config", "default", "meaning")


def literals(path: Path) -> set[str]:
    """The strings of a module."""
    constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def test_the_page_of_variables_lists_what_is_read() -> None:
    read = {text for text in literals(ROOT / "pslite" / "config.py") if VARIABLE.fullmatch(text)}
    assert {row[0] for row in CONFIG_ROWS} == read


def test_the_page_of_variables_lists_what_the_launcher_sets_and_reads() -> None:
    rows = CONFIG_ROWS + table("docs/configuration.md", "variable", "value")
    rows += table("docs/configuration.md", "variable", "meaning")
    listed = {name for row in rows for name in row[0].split(", ")}
    assert listed >= JOB_VARIABLES
    known = {text for file in (ROOT / "launcher").glob("*.py") for text in literals(file)}
    assert listed - {row[0] for row in CONFIG_ROWS} <= known


@pytest.mark.parametrize("package", ["pslite", "kvstore"])
def test_only_config_reads_the_environment(package: str) -> None:
    readers = [
        file for file in (ROOT / package).rglob("*.py") if re.search(r"\bos\.(environ|getenv)", file.read_text())
    ]
    assert readers == ([ROOT / "pslite" / "config.py"] if package == "pslite" else [])


@pytest.mark.parametrize("row", CONFIG_ROWS, ids=lambda row: row[0])
def test_the_defaults_of_the_page_are_those_of_config(row: list[str]) -> None:
    name, field, default, _ = row
    assert hasattr(Config(), field)
    if default:
        assert Config.from_env({name: default}) == Config.from_env({})


@pytest.mark.processes
def test_a_job_started_by_hand_needs_only_dmlc_variables() -> None:
    [script] = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/configuration.md").read_text(), re.DOTALL | re.MULTILINE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = run("sh", "-c", script.replace("9091", str(port)), PATH=path())
    results = re.findall(r"worker \d of 2 pulls \[.*?\]", out)  # the workers' lines may run into each other
    assert sorted(results) == [f"worker {rank} of 2 pulls [3. 3. 3.]" for rank in (0, 1)]

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import batch
from launcher.options import parse

LINES = {"slurm": ["--launcher", "slurm", "--sbatch", "-n", "4", "-s", "2"], "sge": ["--launcher", "sge", "-n", "4"]}


def script(*arguments: str) -> str:
    text = batch.script(parse(arguments, "x"), {}, arguments)
    assert text is not None
    return text


def directives(text: str, prefix: str) -> list[str]:
    """As the batch system finds them: qsub looks at all lines."""
    return [line.removeprefix(prefix).strip() for line in text.splitlines() if line.startswith(prefix)]


def words(text: str) -> list[str]:
    """The words of the last command, as bash takes them."""
    body, _, line = text.rpartition("\nexec ")
    assert body.startswith("#!/bin/bash\n")
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return printed.decode().split("\0")[:-1]


def test_a_script_for_slurm() -> None:
    text = script(*LINES["slurm"], "python", "dir/train.py", "--lr", "0.1")
    assert directives(text, "#SBATCH") == [
        "--job-name=pslite-train",
        "--nodes=1-4",
        "--ntasks=4",
        "--output=pslite-train-%j.log",
    ]
    line = ["--launcher", "slurm", "-n", "4", "-s", "2", "python", "dir/train.py", "--lr", "0.1"]
    assert words(text)[0] == sys.executable and words(text)[-len(line) :] == line


def test_a_script_for_grid_engine() -> None:
    text = script(*LINES["sge"], "--", "./3 a$b", "x")
    assert directives(text, "#$") == [
        "-S /bin/bash",
        "-N pslite-3_a_b",
        "-pe mpi 4",
        "-cwd",
        "-V",
        "-j y",
        "-o pslite-3_a_b.log",
    ]
    assert words(text)[-6:] == ["sge", "-n", "4", "--", "./3 a$b", "x"]


@pytest.mark.parametrize("system", LINES)
@given(arguments=st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), max_size=4))
def test_every_command_arrives_and_says_nothing_to_the_batch_system(system: str, arguments: list[str]) -> None:
    text = script(*LINES[system], "--", "run", *arguments, "--sbatch", "\n#SBATCH -N9\n#$ -q x")
    assert words(text)[-len(arguments) - 3 :] == ["run", *arguments, "--sbatch", "\n#SBATCH -N9\n#$ -q x"]
    assert "-q x" not in directives(text, "#$") and "-N9" not in directives(text, "#SBATCH")


def test_inside_an_allocation_there_is_a_job_to_start() -> None:
    arguments = [*LINES["sge"], "python"]
    assert batch.script(parse(arguments, "x"), {"PE_HOSTFILE": "f"}, arguments) is None
    arguments = ["--launcher", "slurm", "-n", "1", "python"]
    assert batch.script(parse(arguments, "x"), {}, arguments) is None

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.options import parse

OPTIONS = {
    *("-n", "--num-workers", "-s", "--num-servers", "--server-command", "--start-timeout", "--grace", "--dry-run"),
    *("--max-restarts", "--max-servers", "--replicas"),
    *("--on-worker-lost", "--elastic"),
    *("--format", "-h", "--help", "--launcher", "-H", "--hostfile", "--sync-dst-dir", "--servers-on", "--interface"),
    *("--chdir", "--python", "--ssh-option", "--sbatch", "--check"),
    *("--image", "--name", "--namespace", "--volume"),
    *("--env", "--env-server", "--env-worker", "--log-dir", "--color", "--no-prefix", "--timestamps", "--p3"),
    *("--checkpoint-dir", "--checkpoint-every", "--checkpoint-keep", "--resume"),
}


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        parse(arguments, "launch.py")
    assert exit_.value.code == 2
    return capsys.readouterr().err


def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        parse(["-h"], "python -m launcher")
    assert exit_.value.code == 0
    return capsys.readouterr().out


def test_help_fits_80_columns_and_ends_with_three_examples(capsys: pytest.CaptureFixture[str]) -> None:
    lines = help_text(capsys).rstrip().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-4] == "examples:"
    assert all(line.startswith("  python -m launcher -n ") for line in lines[-3:])


def test_the_set_of_options_changes_on_purpose_only(capsys: pytest.CaptureFixture[str]) -> None:
    found = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_text(capsys).split("examples:")[0]))
    assert found - {"-m"} == OPTIONS


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_what_follows_the_command_belongs_to_it(arguments: list[str]) -> None:
    assert parse(["-n", "1", "python", *arguments], "x").command == ("python", *arguments)
    assert parse(["-n", "1", "--", "-odd", *arguments], "x").command == ("-odd", *arguments)


def test_the_launchers_options_after_the_command_are_the_commands() -> None:
    options = parse(["-n", "2", "python", "t.py", "-n", "9", "--", "--launcher", "ssh"], "x")
    assert options.num_workers == 2
    assert options.command == ("python", "t.py", "-n", "9", "--", "--launcher", "ssh")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["-n", "1", "--frobnicate", "python"], "unrecognized arguments: --frobnicate"),
        (["-n", "1", "--num-server", "1", "python"], "unrecognized arguments: --num-server"),
        (["python"], "required: -n/--num-workers"),
        (["-n", "0", "python"], "'0' is not a number that is at least 1"),
        (["-n", "1", "-s", "-1", "python"], "'-1' is not a number that is at least 1"),
        (["-n", "1"], "the command to run is missing"),
        (["-n", "1", "--"], "the command to run is missing"),
        (["-n", "1", "--launcher", "yarn", "python"], "--launcher yarn: there are local, ssh"),
        (["-n", "1", "--launcher", "local", "-H", "a", "python"], "--launcher local runs on this host only"),
        (["-n", "1", "--ssh-option", "Port=22", "python"], "--ssh-option needs --launcher ssh"),
        (["-n", "1", "--sync-dst-dir", "/x", "python"], "--sync-dst-dir needs --launcher ssh"),
        (["-n", "1", "--sbatch", "python"], "--sbatch needs --launcher slurm"),
        (["-n", "2", "-s", "1", "--replicas", "1", "python"], "give -s 2 or more"),
        (["-n", "1", "--replicas", "1", "python"], "give -s 2 or more"),
        (["-n", "1", "--replicas", "2", "python"], "invalid choice"),
        (["-n", "1", "--max-restarts", "-1", "python"], "'-1' is not a number that is at least 0"),
        (["-n", "1", "--grace", "soon", "python"], "'soon' is not a number of seconds"),
        (["-n", "1", "--grace", "inf", "python"], "'inf' is not a number of seconds"),
        (["-n", "1", "--server-command", "a 'b", "python"], "No closing quotation"),
        (["-n", "1", "--server-command", " ", "python"], "the command is empty"),
        (["-n", "1", "--format", "json", "python"], "--format needs --dry-run"),
        (["--elastic", "3", "python"], "'3' is not MIN:MAX, two numbers that are at least 1"),
        (["--elastic", "3:2", "python"], "'3:2' is not MIN:MAX"),
        (["--elastic", "0:2", "python"], "'0:2' is not MIN:MAX"),
        (["--elastic", "2:3", "-n", "4", "python"], "-n 4 is not in the range of --elastic 2:3"),
    ],
)
def test_mistakes_are_named(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert text in error_of(capsys, *arguments)


def test_shards_are_at_least_as_many_as_servers_and_can_be_moved(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["-n", "1", "-s", "2", "python"], "launch.py").max_servers == 2
    assert parse(["-n", "1", "--max-servers", "3", "--max-restarts", "1", "python"], "launch.py").max_servers == 3
    starts = "--max-servers 2: the job starts with 3 servers"
    assert starts in error_of(capsys, "-n", "3", "--max-servers", "2", "--max-restarts", "1", "python")
    assert "--max-servers needs --max-restarts" in error_of(capsys, "-n", "3", "--max-servers", "3", "python")
    assert "from 1 to 128" in error_of(capsys, "-n", "3", "--max-servers", "129", "--max-restarts", "1", "python")

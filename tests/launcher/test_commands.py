from __future__ import annotations

import subprocess
import sys

import pytest

from launcher import commands
from tests.launcher.launching import ROOT, environment


def test_env_names_the_versions_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["env"]) == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["pslite", "python", "numpy", "pyzmq", "libzmq", "msgpack", "platform"]


def test_launch_is_the_launcher(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        commands.main(["launch", "--help"])
    assert capsys.readouterr().out.startswith("usage: pslite launch -n N")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--help"]) == 0
    assert "launch" in capsys.readouterr().out


def test_an_unknown_command_is_told_which_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["lunch"]) == 2
    assert "unknown command 'lunch'; known are launch, run, scale, bench, chaos, keys, env" in capsys.readouterr().err


@pytest.mark.processes
def test_the_launcher_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, launcher.agent, launcher.commands\n"
        "print(sorted({'numpy', 'zmq', 'msgpack', 'pslite', 'kvstore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.processes
def test_the_module_is_the_launcher_too() -> None:
    arguments = ["-n", "1", "-s", "1", "--no-prefix", "echo", "a b"]
    done = subprocess.run(
        [sys.executable, "-m", "launcher", *arguments], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a b\n" * 3, "")

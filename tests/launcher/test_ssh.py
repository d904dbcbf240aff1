"""What ssh and rsync are told. A job over a real sshd is in tests/clusters."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import boot
from launcher.carriers import ssh
from launcher.errors import UsageError
from launcher.hosts import Host
from launcher.options import Options, parse
from tests.launcher.launching import launch

HOSTILE = ("a b", "", "it's", '"', "$(touch oops)", "`touch oops`", "a\nb", "-x", "*", "\\", "é\udcff", ";touch oops")

#: In place of ssh: a shell runs the last argument, as sshd has the user's shell do.
SHIM = """\
#!/bin/sh
while [ "$1" != -- ]; do shift; done
SSH_CONNECTION="127.0.0.1 1 127.0.0.1 22"; export SSH_CONNECTION
exec sh -c "$3"
"""


def options(*arguments: str) -> Options:
    return parse(["-n", "1", "-H", "node1", *arguments, "python"], "x")


def test_it_is_the_users_ssh_with_the_users_configuration() -> None:
    words = ssh.argv(Host("node1", user="alice", port=2222), options("--ssh-option", "ConnectTimeout=3"))
    assert words[: words.index("--")] == [
        *("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", "-o", "ConnectTimeout=10", "-p", "2222")
    ]
    destination, command = words[words.index("--") + 1 :]
    assert destination == "alice@node1"
    assert shlex.split(command)[:4] == ["exec", sys.executable, "-I", "-c"]
    assert "StrictHostKeyChecking" not in " ".join(words)


def test_what_starts_the_agent_is_the_same_for_every_job() -> None:
    commands = {
        ssh.argv(Host("node1"), parse([*job, "--", "python"], "x"))[-1]
        for job in (["-n", "1", "-H", "a"], ["-n", "9", "-H", "a", "--env", "TOKEN=secret", "--chdir", "/x y"])
    }
    assert len(commands) == 1


@pytest.mark.parametrize("python", ["/opt/my python/bin/python", "$(reboot)", "py'thon"])
def test_the_path_of_an_interpreter_is_quoted(python: str) -> None:
    command = ssh.argv(Host("node1"), options("--python", python))[-1]
    assert shlex.split(command)[1] == python


def test_this_host_needs_no_ssh() -> None:
    assert ssh.argv(Host("localhost"), options()) == boot.agent_here()


@pytest.mark.parametrize(
    ("host", "target"),
    [
        (Host("node1"), "node1:/a b/$(x)/"),
        (Host("node1", user="bob"), "bob@node1:/a b/$(x)/"),
        (Host("fd00::1", user="bob"), "bob@[fd00::1]:/a b/$(x)/"),
    ],
)
def test_where_rsync_copies_to(host: Host, target: str) -> None:
    words = ssh.rsync(host, "/a b/$(x)", options())
    assert words[-3:] == ["--", "./", target]
    assert "-s" in words, "no shell takes the name apart"
    assert shlex.split(words[words.index("-e") + 1])[:4] == ["ssh", "-T", "-o", "BatchMode=yes"]


def test_hosts_must_be_named() -> None:
    with pytest.raises(UsageError, match="--launcher ssh needs the hosts: -H HOSTFILE"):
        ssh.hosts(parse(["-n", "1", "--launcher", "ssh", "python"], "x"), {})


@pytest.mark.processes
def test_hostile_words_and_directories_arrive_unchanged(tmp_path: Path) -> None:
    shim = tmp_path / "bin" / "ssh"
    shim.parent.mkdir()
    shim.write_text(SHIM)
    shim.chmod(0o755)
    place = tmp_path / "a b'$(touch oops)\n-x"
    place.mkdir()
    script = tmp_path / "show.py"
    script.write_text("import os, sys; print(ascii((sys.argv[1:], os.environ['ODD'], os.getcwd())))")
    done = launch(
        *("-H", "node1,node2", "-n", "1", "-s", "1", "--chdir", str(place), "--env", "ODD=x y\n'$(touch oops)"),
        *("--no-prefix", "--", sys.executable, str(script), *HOSTILE),
        PATH=f"{shim.parent}:/usr/bin:/bin",
        PSLITE_SECURITY="none",
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {ascii((list(HOSTILE), "x y\n'$(touch oops)", str(place)))}
    assert not list(tmp_path.rglob("oops"))


@pytest.mark.processes
def test_a_directory_that_is_copied(tmp_path: Path) -> None:
    """A failure of rsync names the host, and starts nothing."""
    for name in ("ssh", "rsync"):
        shim = tmp_path / name
        shim.write_text('#!/bin/sh\ncase "$*" in *node2*) echo "rsync: no room there" >&2; exit 11;; esac\n')
        shim.chmod(0o755)
    done = launch("-H", "node1,node2", "-n", "1", "--sync-dst-dir", "/job", "python", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 2
    assert "--sync-dst-dir: node2: rsync failed: rsync: no room there" in done.stderr


def test_which_sshs_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="needs the program ssh"):
        ssh.hosts(options(), {})
    assert subprocess.run(boot.agent_here(), stdin=subprocess.DEVNULL, capture_output=True).returncode == 0

"""Whatever characters there are in arguments, values and names, they arrive as they were given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from .cluster import Cluster, Launcher

pytestmark = pytest.mark.processes

HOSTILE = (
    "a b", "", "'", '"', "\\", "$(touch /tmp/owned)", "`touch /tmp/owned`", "; touch /tmp/owned", "a\nb\n", "\r", "-n",
    "--", "*", "~", "$HOME", "!!", "#", "%s", "{}", "ü€", "\udcff", "\x1b[31m", "&& exit 3", "\t",
)  # fmt: skip
NAME = " -a b 'c' \"d\" $(touch owned)\n`e`;*"
SHOW = (
    "import json, os, sys; "
    "print(json.dumps([sys.argv[1:], os.environ.get('VALUE'), os.getcwd(), sys.executable]), flush=True)"
)


def shown(done: Launcher) -> list[Any]:
    """What each process printed; all must have ended well, and nothing be a command."""
    assert done.status == 0, done
    return [json.loads(line.split("]", 1)[1]) for line in done.stdout.splitlines()]


def test_arguments_and_values(cluster: Cluster) -> None:
    done = cluster.launch("-n", 2, "-s", 1, "-H", "node1,node2", "--env", "VALUE=" + "".join(HOSTILE[:-3]),
                          sys.executable, "-c", SHOW, *HOSTILE)  # fmt: skip
    found = shown(done)
    assert [line[:2] for line in found] == [[[*HOSTILE], "".join(HOSTILE[:-3])]] * 4
    assert cluster.traces() == []


def test_names_of_directories_and_hostfiles(cluster: Cluster) -> None:
    where = cluster.shared / NAME
    where.mkdir()
    (where / NAME).write_text("node1\nnode2\n")
    done = cluster.launch("-n", 2, "-s", 1, f"-H{NAME}", sys.executable, "-c", SHOW, cwd=where)
    assert [line[2] for line in shown(done)] == [str(where)] * 4
    done = cluster.launch("-n", 2, "-s", 1, "-H", "node1,node2", "--chdir", where, sys.executable, "-c", SHOW)
    assert [line[2] for line in shown(done)] == [str(where)] * 4
    assert not list(Path("/tmp").glob("owned")) and sorted(path.name for path in where.iterdir()) == [NAME]


def test_the_path_of_the_interpreter(cluster: Cluster) -> None:
    python = cluster.shared / NAME / "my python"
    python.parent.mkdir(exist_ok=True)
    python.symlink_to(sys.executable)
    done = cluster.launch("-n", 1, "-s", 1, "-H", "node1", "--python", python, "my python", "-c", SHOW)
    assert [line[3] for line in shown(done)] == [str(python)] * 3


def test_a_directory_that_is_copied(cluster: Cluster) -> None:
    here, there = cluster.head.file("/tmp/" + NAME), "/tmp/copy" + NAME
    (here / NAME).mkdir(parents=True)
    (here / NAME / "data").write_text("content")
    script = "import pathlib, sys; print(json.dumps(pathlib.Path(sys.argv[1], 'data').read_text()))"
    try:
        done = cluster.launch("-n", 2, "-s", 1, "-H", "node1:port=2222,node2", "--sync-dst-dir", there,
                              sys.executable, "-c", "import json; " + script, NAME, cwd="/tmp/" + NAME)  # fmt: skip
        assert shown(done) == ["content"] * 4
        assert [machine.file(there).is_dir() for machine in cluster.machines] == [False, True, True, False]
    finally:
        for machine in cluster.machines:
            machine.sweep()

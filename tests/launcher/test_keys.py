"""The keys of a launched job."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from launcher import keys

pytestmark = pytest.mark.processes

ROLES = ("scheduler", "server", "worker", "worker")


def test_each_process_has_a_file(tmp_path: Path) -> None:
    made = keys.make_keys(tmp_path, ROLES)
    named = {keys.key_file("scheduler", 0), keys.key_file("server", 0), keys.key_file("worker", 0), "worker-1.key"}
    assert {path.name for path in made.iterdir()} == named | {"roster.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o600}


def test_why_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a file in the way")
    with pytest.raises(keys.KeysFailed, match=r"no keys: .*File exists"):
        keys.make_keys(tmp_path, ROLES)


def test_a_python_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(keys.KeysFailed, match=r"no keys: .*No such file"):
        keys.make_keys(tmp_path, ROLES)

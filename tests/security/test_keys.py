"""Key files: who may read them, what is refused, and that nothing shows a secret."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest

from pslite import Config, Postoffice, keys, security
from pslite.errors import ConfigError

from .jobs import Keyring


def refused(ring: Keyring, role: str = "worker", rank: int = 0) -> str:
    with pytest.raises(ConfigError) as caught:
        ring.keys(role, rank)
    texts = [path.read_text() for path in ring.directory.iterdir() if path.is_file()]
    secrets = [secret for text in texts for secret in re.findall(r'"secret": "(.{40})"', text)]
    assert secrets
    assert not any(secret in str(caught.value) for secret in secrets)
    return str(caught.value)


def test_only_the_owner_can_read_them(ring: Keyring) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in ring.directory.iterdir()}
    names = ("scheduler.key", "server-0.key", "worker-0.key", "worker-1.key", "roster.json")
    assert modes == dict.fromkeys(names, 0o600)
    assert stat.S_IMODE(ring.directory.stat().st_mode) == 0o700


def test_a_loose_umask_does_not_loosen_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = security.make(tmp_path / "keys", 1, 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}


def test_every_process_has_its_own_and_all_know_the_public_ones(ring: Keyring) -> None:
    found = [ring.keys("scheduler"), ring.keys("server"), ring.keys("worker"), ring.keys("worker", 1)]
    assert [(k.role, k.rank) for k in found] == [("scheduler", 0), ("server", 0), ("worker", 0), ("worker", 1)]
    assert len({k.secret for k in found}) == len({k.public for k in found}) == 4
    assert all(k.roster.nodes == {found[0].public: 1, found[1].public: 8, found[2].public: 9, found[3].public: 11}
               for k in found)  # fmt: skip


def test_a_file_holds_no_secret_but_its_own(ring: Keyring) -> None:
    secrets = {path: json.loads(path.read_text())["secret"] for path in ring.directory.glob("*.key")}
    for path in ring.directory.iterdir():
        assert [p for p, secret in secrets.items() if secret in path.read_text()] in ([path], [])


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o644])
def test_a_key_that_others_can_read_is_refused(ring: Keyring, mode: int) -> None:
    ring.path("worker").chmod(mode)
    said = refused(ring)
    assert f"its mode is {mode:04o}" in said
    assert f"chmod 600 {ring.path('worker')}" in said


def test_a_roster_may_be_read_by_others_but_not_written(ring: Keyring) -> None:
    roster = ring.directory / security.ROSTER
    roster.chmod(0o644)
    ring.keys("worker")
    roster.chmod(0o664)
    assert "its mode is 0664" in refused(ring)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(ring: Keyring) -> None:
    os.chown(ring.path("worker"), 12345, -1)
    assert "belongs to user 12345" in refused(ring)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files of root")
def test_a_key_that_root_gives_to_a_group_is_taken(ring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pod of Kubernetes, whose user has the files of a Secret by his group; others must not have his own."""
    ring.path("worker").chmod(0o440)
    assert "its mode is 0440" in refused(ring)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert ring.keys("worker").role == "worker"
    for mode in (0o444, 0o460, 0o441):
        ring.path("worker").chmod(mode)
        assert f"its mode is {mode:04o}" in refused(ring)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"role": "worker"}', "\0" * 40, "[" * 10_000, '{"a": 1e999}'])
def test_a_damaged_file_is_refused(ring: Keyring, text: str) -> None:
    ring.path("worker").write_text(text)
    assert "make one with pslite keys" in refused(ring)


@pytest.mark.parametrize("text", ['{"boss": "x"}', '{"worker 0": 5}', '{"worker x": "y"}', '{"worker 0": "short"}'])
def test_a_damaged_roster_is_refused(ring: Keyring, text: str) -> None:
    (ring.directory / security.ROSTER).write_text(text)
    assert "roster" in refused(ring)


def test_what_is_no_file_is_refused(ring: Keyring) -> None:
    ring.path("worker").unlink()
    assert "No such file" in refused(ring)
    os.mkfifo(ring.path("worker"), 0o600)  # reading it would wait for a writer
    assert "no regular file" in refused(ring)


def test_files_of_two_jobs_do_not_go_together(ring: Keyring, other_ring: Keyring) -> None:
    ring.path("worker").write_text(other_ring.path("worker").read_text())
    assert "not that of worker 0 in roster.json" in refused(ring)


def test_a_secret_that_is_not_the_public_keys_is_refused(ring: Keyring, other_ring: Keyring) -> None:
    mixed = json.loads(ring.path("worker").read_text()) | {"secret": other_ring.keys("worker").secret.decode()}
    ring.path("worker").write_text(json.dumps(mixed))
    assert "not that of worker 0" in refused(ring)


def test_existing_keys_are_not_written_over(ring: Keyring) -> None:
    before = ring.path("scheduler").read_bytes()
    with pytest.raises(ConfigError, match="File exists"):
        security.make(ring.directory, 2, 1)
    assert ring.path("scheduler").read_bytes() == before
    assert ring.keys("worker", 1)


def test_a_link_that_somebody_laid_there_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "server-0.key").symlink_to(target)
    with pytest.raises(ConfigError, match="File exists"):
        security.make(tmp_path / "keys", 1, 1)
    assert not target.exists()
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["server-0.key"]  # nothing half made is left


def test_nothing_shows_a_secret(ring: Keyring) -> None:
    found = ring.keys("worker")
    assert found.secret.decode() not in repr(found)
    assert "secret" not in repr(found)


@pytest.mark.parametrize(("role", "rank"), [("server", None), ("scheduler", None), ("worker", 0)])
def test_the_key_of_another_process_is_refused(ring: Keyring, role: str, rank: int | None) -> None:
    config = Config(role=role, rank=rank, root="tcp://127.0.0.1:1", key_file=str(ring.path("worker", 1)))
    with pytest.raises(ConfigError, match=r"the key of worker 1: give this process (server-0|scheduler|worker-0)\.key"):
        Postoffice(config)


@pytest.mark.sockets
def test_the_rank_is_that_of_the_key(ring: Keyring) -> None:
    office = Postoffice(Config(role="worker", root="tcp://127.0.0.1:1", key_file=str(ring.path("worker", 1))))
    assert office.config.rank == 1
    office.close()


def test_the_command_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keys.main([str(tmp_path / "k"), "-n", "2", "-s", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(".key\n") == 4
    assert "set PSLITE_KEY_FILE" in printed
    assert security.load(str(tmp_path / "k" / "worker-1.key")).rank == 1
    assert keys.main([str(tmp_path / "k"), "-n", "2", "-s", "1"]) == 1
    assert "give an empty directory of yours" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["d"], ["d", "-n", "0", "-s", "1"], ["-n", "1", "-s", "1"], ["d", "-n", "x"]])
def test_the_command_refuses_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        keys.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: pslite keys")


@pytest.mark.parametrize("change", [{"worker_1": None}, {"worker_1": "x" * 40}])
def test_a_roster_is_read_again_when_it_has_changed(ring: Keyring, change: dict[str, str | None]) -> None:
    roster = ring.keys("scheduler").roster
    gone = ring.keys("worker", 1).public
    assert roster.nodes[gone] == 11
    ring.change(**change)
    roster.refresh()
    assert gone not in roster.nodes
    (ring.directory / security.ROSTER).write_text("damaged")
    roster.refresh()
    assert len(roster.nodes) >= 3  # what was known is kept

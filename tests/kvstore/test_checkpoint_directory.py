"""Checkpoints of a whole job on disk: whatever happens to the files, the newest complete one is read, or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.checkpoint.directory import Directory
from kvstore.checkpoint.job import Id, Stamp
from kvstore.server.partfile import PartFile
from pslite.errors import CheckpointError

from .job_directory import SERVERS, SETTINGS, found, keys, write


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    directory = Directory(tmp_path / "c")
    yield directory
    directory.close()


FIRST, SECOND = Id(1, 1), Id(1, 2)


def test_the_newest_is_read_and_old_ones_go(directory: Directory) -> None:
    assert found(directory) is None
    for number in range(1, 6):
        write(directory, Id(1, number), keep=2)
        assert found(directory) == (1, number)
    assert directory.ids() == [(1, 5), (1, 4)]
    assert len(os.listdir(directory.path)) == 2 * (SERVERS + 1)
    write(directory, Id(2, 1), keep=2)
    assert found(directory) == (2, 1), "a later job's is newer whatever its number"


def test_without_its_manifest_there_is_no_checkpoint(directory: Directory) -> None:
    write(directory, FIRST)
    os.unlink(os.path.join(directory.path, FIRST.manifest))
    assert found(directory) is None


def swapped(directory: Directory, one: str, other: str) -> None:
    a, b = Path(directory.path, one), Path(directory.path, other)
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


@pytest.mark.parametrize(
    ("one", "other"),
    [(SECOND.part(0), SECOND.part(1)), (SECOND.part(0), FIRST.part(0)), (SECOND.manifest, FIRST.manifest)],
)
def test_parts_of_different_numbers_or_servers_do_not_mix(directory: Directory, one: str, other: str) -> None:
    write(directory, Id(0, 1))
    write(directory, FIRST)
    write(directory, SECOND)
    swapped(directory, one, other)
    assert found(directory) in (FIRST, Id(0, 1))


def test_parts_of_another_job_do_not_mix(directory: Directory) -> None:
    write(directory, FIRST, "a")
    other = Path(directory.path, FIRST.part(1)).read_bytes()
    write(directory, FIRST, "b")
    Path(directory.path, FIRST.part(1)).write_bytes(other)
    with pytest.raises(CheckpointError, match="no checkpoint in it is good"):
        directory.newest()


def test_a_missing_part_a_pipe_and_a_link_are_no_parts(directory: Directory, tmp_path: Path) -> None:
    write(directory, FIRST)
    path = Path(directory.path, FIRST.part(1))
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"-00001\.part: cannot be read: No such file"):
        directory.newest()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="cannot be read"):
        directory.newest()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError):
        directory.newest()


def test_a_manifest_cannot_lead_elsewhere_or_ask_for_memory(directory: Directory) -> None:
    """Names are made of numbers, and nothing is allocated that the file has not."""
    write(directory, FIRST)
    for stamp in (Stamp(2**62, 1), Stamp(0, 1)):
        with pytest.raises(OSError, match=r"bytes of|No such file"):
            directory.complete(SECOND, "j", [stamp])
        with pytest.raises(OSError, match=r"bytes of"):
            directory.complete(FIRST, "j", [stamp])


def test_a_description_may_have_more(directory: Directory) -> None:
    """What a later version says of a key is passed on to who knows it."""
    file = PartFile(directory, "j", 0, 1)
    [saved, *_] = keys(0, 1)
    saved.more = {"rounds": 3, "taken": {0: 5, 1: 4}}
    file.begin(FIRST, SETTINGS)
    file.add([saved])
    file.complete(FIRST, [file.finish()], 1)
    checkpoint: Any = directory.newest()
    assert checkpoint.parts[0].keys[0].content["taken"] == {0: 5, 1: 4}
    checkpoint.close()


def test_two_jobs_cannot_write_into_one_directory(directory: Directory) -> None:
    directory.lock()
    other = Directory(directory.path)
    with pytest.raises(CheckpointError, match="another job writes"):
        other.lock()
    other.close()

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.error_record import ErrorRecord, read_error_record

GOOD = {"time": 1e9, "error": "ValueError: no", "caused_by": None}


def read(directory: Path, content: bytes) -> ErrorRecord | None:
    (directory / "error-worker-2.json").write_bytes(content)
    return read_error_record(directory, "worker", 2)


def test_a_record_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, json.dumps(GOOD).encode()) == ErrorRecord(1e9, "ValueError: no", None)
    assert read(tmp_path, json.dumps(GOOD | {"caused_by": "worker 1"}).encode()) == ErrorRecord(
        1e9, "ValueError: no", "worker 1"
    )
    assert read_error_record(tmp_path, "worker", 1) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"null",
        b"[" * 8000,
        json.dumps(GOOD).encode().ljust(8193),
        *(json.dumps({k: v for k, v in GOOD.items() if k != missing}).encode() for missing in GOOD),
        *(json.dumps(GOOD | {name: ["x"]}).encode() for name in GOOD),
    ],
)
def test_a_malformed_record_is_ignored(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) is None


@pytest.mark.timeout(10)
def test_what_is_no_file_is_ignored(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "error-worker-0.json")
    (tmp_path / "error-worker-1.json").mkdir()
    (tmp_path / "elsewhere").write_text(json.dumps(GOOD))
    (tmp_path / "error-worker-2.json").symlink_to(tmp_path / "elsewhere")
    assert [read_error_record(tmp_path, "worker", rank) for rank in range(3)] == [None] * 3


@given(st.text(st.characters(codec=None)))
def test_whatever_a_record_says_fits_on_a_line_of_utf_8(text: str) -> None:
    with TemporaryDirectory() as directory:
        record = read(Path(directory), json.dumps(GOOD | {"error": text, "caused_by": text}).encode())
    assert record is not None
    for shown in (record.error, record.caused_by or ""):
        assert shown.isprintable()
        assert shown.encode().decode() == shown

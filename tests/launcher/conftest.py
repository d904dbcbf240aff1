from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory with a short name, so that the launcher makes its own directories in it."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Where processes leave their pids."""
    path = tmp_path / "pids"
    path.mkdir()
    return path

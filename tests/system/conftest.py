from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .jobs import HandMadeJob


@pytest.fixture
def job(tmp_path: Path) -> Iterator[HandMadeJob]:
    """Three workers and a server, started by hand; the test may change the numbers before it starts them."""
    directory = tmp_path / "output"
    directory.mkdir()
    with HandMadeJob(directory) as made:
        yield made

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cases.case import lacking

from .hosts import NEEDS, Network


@pytest.fixture
def network() -> Iterator[Network]:
    """A switch of its own; where its tools are missing the test is skipped, or fails if CI=true."""
    if missing := lacking(NEEDS):
        end = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        end(f"this test needs {', '.join(missing)}")
    with Network() as made:
        yield made

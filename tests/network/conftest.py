from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .hosts import Network, problem


@pytest.fixture
def network() -> Iterator[Network]:
    """A switch without hosts. Skips where there are no namespaces; in CI that is a failure."""
    reason = problem()
    if reason and os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)
    with Network() as made:
        yield made

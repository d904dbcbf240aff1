"""Fixtures for all tests of kvstore."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvstore import rules
from kvstore.compression import base as compression
from kvstore.optimizer import base as optimizer

REGISTRIES = (rules._UPDATERS, optimizer._REGISTRY, compression._REGISTRY)


@pytest.fixture(autouse=True)
def _registries_stay() -> Iterator[None]:
    """What a test registers is known to that test alone."""
    before = [dict(registry) for registry in REGISTRIES]
    yield
    for registry, known in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(known)

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pslite.van.base import Van

from .jobs import Keyring


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    """The keys of the job."""
    return Keyring(tmp_path / "keys")


@pytest.fixture
def other_ring(tmp_path: Path) -> Keyring:
    """The keys of another job."""
    return Keyring(tmp_path / "other")


@pytest.fixture
def keep() -> Iterator[Callable[[Any], Any]]:
    """Closes a van or postoffice at the end."""
    with ExitStack() as stack:

        def keep(thing: Any) -> Any:
            stack.callback(thing.close, 0.0) if isinstance(thing, Van) else stack.callback(thing.close)
            return thing

        yield keep
